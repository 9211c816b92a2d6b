"""The report's tables: mean and standard deviation over seeds, linked to the runs.

Most have one row per size and one column per mode.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from randmix.reproduce.figures import ATTACKS, DATA, MODELS
from randmix.reproduce.records import BANKS, MODES, Records


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


def build(experiment: str, records: Records, counted: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of an experiment from its records, or for E11 from ``counting.rows``."""
    makers = {
        "E1": _coverage,
        "E3": _banks,
        "E6": _attacks,
        "E7": _smoothing,
        "E8": _smoothed_filters,
        "E9": _layers,
        "E12": _shares,
    }
    if experiment in makers:
        tables = makers[experiment](records)
    elif experiment == "E10":
        tables = _by_mode(
            records, "E10", "psnr", ("model.depth", "model.kernel_size", "model.width")
        )
    elif experiment == "E11":
        tables = _counts(counted)
    else:
        sizes = ("model.width",) if experiment == "E4" else ("model.depth",)
        tables = _by_mode(records, experiment, "accuracy", sizes)
    return [table for table in tables if table.rows]


def _by_mode(records: Records, experiment: str, metric: str, sizes: Sequence[str]) -> list[Table]:
    part = records.where(experiment, metric)
    modes = [mode for mode in MODES if any(record.mode == mode for record in part)]
    tables = []
    for name in part.values("data.name"):
        of_data = part.where(experiment, data__name=name)
        rows = []
        for values in sorted({tuple(r.settings.get(size) for size in sizes) for r in of_data}):
            at = dict(zip((size.replace(".", "__") for size in sizes), values, strict=True))
            title = ", ".join(
                f"{_short(size)} {value}" for size, value in zip(sizes, values, strict=True)
            )
            cells = [_cell(of_data.where(experiment, mode=mode, **at), metric) for mode in modes]
            rows.append([Cell(title), *cells])
        what = "Test PSNR in dB" if metric == "psnr" else "Test accuracy in per cent"
        caption = (
            f"{what}, {DATA.get(name, name)}: mean ± standard deviation over seeds (their number)."
        )
        tables.append(Table(caption, ["", *(MODES[mode] for mode in modes)], rows))
    return tables


def _coverage(records: Records) -> list[Table]:
    part = records.where("E1")
    rows = [
        [
            Cell(f"{count:,}"),
            *(
                _cell(part.where("E1", metric, filters=count), metric)
                for metric in ("coverage", "mean_coverage")
            ),
        ]
        for count in part.values("filters")
    ]
    caption = (
        "Coverage of random banks in per cent of all frequencies: "
        "mean ± standard deviation over banks (their number)."
    )
    return [
        Table(caption, ["filters", "over half of the maximum", "mean over all thresholds"], rows)
    ]


def _banks(records: Records) -> list[Table]:
    part = records.where("E3", "accuracy")
    chans = part.where("E3", mode="chans")
    rows = [[Cell("Full"), _cell(part.where("E3", mode="full"), "accuracy")]]
    rows += [
        [Cell(f"Chans, {title}"), _cell(chans.where("E3", model__filters=bank), "accuracy")]
        for bank, title in BANKS.items()
    ]
    caption = "Test accuracy in per cent: mean ± standard deviation over seeds (their number)."
    return [Table(caption, ["filters", "accuracy"], rows if part else [])]


def _attacks(records: Records) -> list[Table]:
    part = Records(r for r in records if r.experiment == "E6" and r.settings.get("epsilon", 0) > 0)
    clean = records.where("E6", "accuracy")
    tables = []
    for defended in (False, True):
        rows = []
        of = [
            Records(r for r in some if bool(r.settings["defense.epsilon"]) == defended)
            for some in (part, clean)
        ]
        keys = ("data.name", "model.name", "model.depth")
        for data, model, depth in sorted({tuple(r.settings[k] for k in keys) for r in of[0]}):
            at = {"data__name": data, "model__name": model, "model__depth": depth}
            for attack in ("clean", *ATTACKS):
                from_, metric = (of[1], "accuracy") if attack == "clean" else (of[0], attack)
                cells = [
                    _cell(from_.where("E6", metric, mode=m, **at), "accuracy")
                    for m in ("full", "chans")
                ]
                title = f"{MODELS[model]}, {DATA.get(data, data)}, depth {depth}"
                rows.append([Cell(f"{title}: {ATTACKS.get(attack, attack)}"), *cells])
        trained = "Trained on FGSM samples" if defended else "Trained without defence"
        caption = (
            f"{trained}: accuracy in per cent on the entire test set, and under attack on its "
            "first images, averaged over all epsilons above 0; mean ± standard deviation over "
            "seeds (their number)."
        )
        tables.append(Table(caption, ["", "Full", "Chans"], rows))
    return tables


def _smoothing(records: Records) -> list[Table]:
    fgsm, clean = records.where("E7", "fgsm"), records.where("E7", "accuracy")
    epsilons = [epsilon for epsilon in fgsm.values("epsilon") if epsilon]
    rows = []
    for index in clean.values("model.smoothing_index"):
        at = fgsm.where("E7", model__smoothing_index=index)
        cells = [_cell(at.where("E7", epsilon=epsilon), "accuracy") for epsilon in epsilons]
        rows.append(
            [
                Cell(f"{index:g}"),
                _cell(clean.where("E7", model__smoothing_index=index), "accuracy"),
                *cells,
            ]
        )
    caption = (
        "Accuracy in per cent, clean and under FGSM at each epsilon (in 1/255): "
        "mean ± standard deviation over seeds (their number)."
    )
    return [
        Table(
            caption, ["smoothing index", "clean", *(f"{epsilon:g}" for epsilon in epsilons)], rows
        )
    ]


def _smoothed_filters(records: Records) -> list[Table]:
    part = records.where("E8")
    rows = [
        [
            Cell(f"{index:g}"),
            *(_cell(part.where("E8", m, index=index), m) for m in ("coverage", "mean_frequency")),
        ]
        for index in part.values("index")
    ]
    caption = (
        "Coverage in per cent of all frequencies, and mean frequency in hundredths of a cycle "
        "per pixel."
    )
    return [Table(caption, ["smoothing index", "coverage", "mean frequency"], rows)]


def _layers(records: Records) -> list[Table]:
    part = records.where("E9", "coverage")
    rows = [
        [Cell(layer), _cell(part.where("E9", layer=layer), "coverage")]
        for layer in part.values("layer")
    ]
    caption = "Coverage of each layer's learned filters, in per cent of all frequencies."
    return [Table(caption, ["layer", "coverage"], rows)]


def _shares(records: Records) -> list[Table]:
    part = records.where("E12", "accuracy")
    rows = [
        [Cell(f"{share:g}"), _cell(part.where("E12", share=share), "accuracy")]
        for share in part.values("share")
    ]
    caption = "Test accuracy in per cent: mean ± standard deviation over seeds (their number)."
    return [Table(caption, ["share of spatial filters learned", "accuracy"], rows)]


def _counts(counted: Sequence[Mapping[str, Any]]) -> list[Table]:
    rows = [
        [
            Cell(f"{row['model']}, {DATA.get(row['data'], row['data'])}"),
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
    return [Table("Trainable parameters.", columns, rows)]


def _cell(records: Records, metric: str) -> Cell:
    """Mean ± standard deviation (number of seeds); everything but PSNR is multiplied by 100."""
    values = np.asarray([*records.by_seed().values()])
    if not len(values):
        return Cell("n/a")
    digits = 2 if metric == "psnr" else 1
    values = values if metric == "psnr" else 100 * values
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return Cell(f"{values.mean():.{digits}f}{spread} ({len(values)})", records.runs)


def _short(key: str) -> str:
    return {"kernel_size": "k"}.get(name := key.rpartition(".")[2], name)
