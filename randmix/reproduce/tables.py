"""The report's tables: mean and standard deviation over seeds, linked to the runs.

Most have one row per size and one column per mode.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from randmix.reproduce import curves
from randmix.reproduce.effects import conditions, log_radii, ranked
from randmix.reproduce.records import BANKS, MODES, Records
from randmix.reproduce.titles import ATTACKS, MODELS, title_of, title_of_model


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the runs that it comes from."""

    text: str
    runs: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is its label."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


# What an un-shuffled image's PSNR is held against.
_BASELINES = {"mean_image_psnr": "mean training image", "reach": "reach (%)"}
_OVER_SEEDS = "mean ± standard deviation over seeds (their number)."
_SIZES = {"E4": ("model.width",), "E10": ("model.depth", "model.kernel_size", "model.width")}


def build(experiment: str, records: Records, counted: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of an experiment from its records, or for E11 from ``counting.rows``."""
    records = records.where(experiment)
    match experiment:
        case "E1":
            tables = [_coverage(records)]
        case "E3":
            tables = [_banks(records)]
        case "E6":
            tables = [_attacks(records, defended) for defended in (False, True)]
        case "E7":
            tables = [_smoothing(records)]
        case "E8":
            tables = [_smoothed_filters(records)]
        case "E9":
            tables = [_layers(records)]
        case "E11":
            tables = [_counts(counted)]
        case "E12":
            tables = [_shares(records)]
        case _:
            tables = _by_mode(records, _SIZES.get(experiment, ("model.depth",)))
    return [table for table in (*tables, _fit(records)) if table.rows]


def _by_mode(records: Records, sizes: Sequence[str]) -> list[Table]:
    """A table for each data set, with a row per size and a column per mode."""
    psnr = records.where(metric="psnr")
    what = "Test PSNR in dB" if psnr else "Test accuracy in per cent"
    part = psnr or records.where(metric="accuracy")
    modes = [mode for mode in MODES if part.where(mode=mode)]
    tables = []
    for name in part.values("data.name"):
        of_data = part.where(data__name=name)
        rows = []
        for values in sorted({tuple(r.settings.get(size) for size in sizes) for r in of_data}):
            at = dict(zip(sizes, values, strict=True))
            title = ", ".join(f"{_short(size)} {value}" for size, value in at.items())
            cells = [_cell(of_data.where(mode=mode, **at)) for mode in modes]
            baselines = records.where(data__name=name, **at)
            cells += [
                _cell(baselines.where(metric=metric)) for metric in (_BASELINES if psnr else ())
            ]
            rows.append([Cell(title), *cells])
        caption = f"{what}, {title_of(name)}: {_OVER_SEEDS}"
        columns = ["", *(MODES[mode] for mode in modes), *(_BASELINES.values() if psnr else ())]
        tables.append(Table(caption, columns, rows))
    return tables


def _fit(records: Records) -> Table:
    """Training beside test, of every model of an experiment that trains."""
    score = "psnr" if records.where(metric="psnr") else "accuracy"
    unit = "PSNR in dB" if score == "psnr" else "accuracy in per cent"
    rows = [
        [Cell(title), *(_cell(part.where(metric=f"{when}{score}")) for when in ("train_", ""))]
        for title, part in curves.lines(records)
        if part.where(metric=f"train_{score}")
    ]
    caption = (
        f"Training and test {unit}: {_OVER_SEEDS} Training is the last log interval's, on "
        "augmented images."
    )
    return Table(caption, ["", "training", "test"], rows)


def _by_setting(
    caption: str, setting: str, label: str, columns: Mapping[str, Records], form: str = "{:g}"
) -> Table:
    """A table with a row per value of a setting, and a column per selection of records."""
    first, *_ = columns.values()
    rows = [
        [
            Cell(form.format(value)),
            *(_cell(records.where(**{setting: value})) for records in columns.values()),
        ]
        for value in first.values(setting)
    ]
    return Table(caption, [label, *columns], rows)


def _coverage(records: Records) -> Table:
    caption = (
        "Coverage of random banks in per cent of all frequencies: "
        "mean ± standard deviation over banks (their number)."
    )
    columns = {
        "over half of the maximum": records.where(metric="coverage"),
        "mean over all thresholds": records.where(metric="mean_coverage"),
    }
    return _by_setting(caption, "filters", "filters", columns, "{:,}")


def _banks(records: Records) -> Table:
    accuracy = records.where(metric="accuracy")
    plain = Records(r for r in accuracy if r.settings.get("model.filter_rank") is None)
    rows = []
    for part in conditions(plain, ("model.name", "model.multiplier")):
        title = title_of_model(part[0].settings)
        chans = part.where(mode="chans")
        lines = {"Full": part.where(mode="full")}
        lines |= {f"Chans, {name}": chans.where(model__filters=b) for b, name in BANKS.items()}
        rows += [
            [Cell(f"{title}: {name}"), Cell(""), Cell(""), _cell(values)]
            for name, values in lines.items()
            if values
        ]
    for part in conditions(ranked(accuracy), ("bank_rank", "model.smoothing_index")):
        rank, index = (part[0].settings[name] for name in ("bank_rank", "model.smoothing_index"))
        coverage = np.mean([record.settings["bank_coverage"] for record in part])
        title = f"{MODELS['resnet']}: Chans, impulses, smoothing index {index:g}"
        rows.append([Cell(title), Cell(str(rank)), Cell(f"{coverage:.2f}"), _cell(part)])
    caption = f"Test accuracy in per cent: {_OVER_SEEDS} Rank and coverage are measured."
    return Table(caption, ["filters", "rank", "coverage", "accuracy"], rows)


def _attacks(records: Records, defended: bool) -> Table:
    attacked = Records(r for r in records if "epsilon" in r.settings and r.defended == defended)
    clean = Records(r for r in records.where(metric="accuracy") if r.defended == defended)
    rows = []
    keys = ("data.name", "model.name", "model.depth")
    for values in sorted({tuple(r.settings[k] for k in keys) for r in attacked}):
        data, model, depth = values
        title = f"{MODELS[model]}, {title_of(data)}, depth {depth}"
        at = dict(zip(keys, values, strict=True))
        cells = [_cell(clean.where(mode=mode, **at)) for mode in ("full", "chans")]
        rows.append([Cell(f"{title}: clean accuracy"), *cells])
        for attack, name in ATTACKS.items():
            part = attacked.where(metric=attack, **at)
            cells = [_radius(part.where(mode=mode)) for mode in ("full", "chans")]
            rows.append([Cell(f"{title}: halved by {name}"), *cells])
    trained = "Trained on FGSM samples" if defended else "Trained without defence"
    caption = (
        f"{trained}: accuracy in per cent on the entire test set, and the radius in 1/255 at which "
        "an attack halves it: the middle over seeds, ± standard deviation in octaves (number of "
        "seeds)."
    )
    return Table(caption, ["", "Full", "Chans"], rows)


def _smoothing(records: Records) -> Table:
    fgsm = records.where(metric="fgsm")
    columns = {"clean": records.where(metric="accuracy")}
    for epsilon in fgsm.values("epsilon"):
        if epsilon:
            columns[f"{epsilon:g}"] = fgsm.where(epsilon=epsilon)
    caption = (
        f"Accuracy in per cent, clean and under FGSM at each epsilon (in 1/255): {_OVER_SEEDS}"
    )
    return _by_setting(caption, "model.smoothing_index", "smoothing index", columns)


def _smoothed_filters(records: Records) -> Table:
    caption = (
        "Coverage in per cent of all frequencies, and mean frequency in hundredths of a cycle "
        "per pixel."
    )
    columns = {
        "coverage": records.where(metric="coverage"),
        "mean frequency": records.where(metric="mean_frequency"),
    }
    return _by_setting(caption, "index", "smoothing index", columns)


def _layers(records: Records) -> Table:
    caption = "Coverage of each layer's learned filters, in per cent of all frequencies."
    columns = {"coverage": records.where(metric="coverage")}
    return _by_setting(caption, "layer", "layer", columns, "{}")


def _shares(records: Records) -> Table:
    caption = f"Test accuracy in per cent: {_OVER_SEEDS}"
    columns = {"accuracy": records.where(metric="accuracy")}
    return _by_setting(caption, "share", "share of spatial filters learned", columns)


def _counts(counted: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            Cell(f"{row['model']}, {title_of(row['data'])}"),
            *(Cell(str(row[key])) for key in ("width", "depth", "kernel_size")),
            *(Cell(f"{row[mode]:,}") for mode in MODES),
            Cell("" if row["standard"] is None else f"{row['standard']:,}"),
            Cell("no" if row["differs"] else "yes"),
        ]
        for row in counted
    ]
    columns = [
        "model",
        "width",
        "depth",
        "k",
        *MODES.values(),
        "dense convolutions",
        "equal to the equations",
    ]
    return Table("Trainable parameters.", columns, rows)


def _radius(attacked: Records) -> Cell:
    """The radius that halves accuracy: 2 to the mean of its logarithms."""
    octaves = np.asarray([*log_radii(attacked).values()])
    if not np.isfinite(octaves).all():
        return Cell("outside the grid", attacked.runs)
    if not len(octaves):
        return Cell("n/a")
    spread = f" ± {octaves.std(ddof=1):.2f}" if len(octaves) > 1 else ""
    return Cell(f"{2 ** octaves.mean():.2f}{spread} ({len(octaves)})", attacked.runs)


def _cell(records: Records) -> Cell:
    """Mean ± standard deviation (number of seeds); everything but PSNR is multiplied by 100."""
    values = np.asarray([*records.by_seed().values()])
    if not len(values):
        return Cell("n/a")
    digits = 1
    if records[0].metric.endswith("psnr"):
        digits = 2
    else:
        values = 100 * values
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return Cell(f"{values.mean():.{digits}f}{spread} ({len(values)})", records.runs)


def _short(key: str) -> str:
    return {"kernel_size": "k"}.get(name := key.rpartition(".")[2], name)
