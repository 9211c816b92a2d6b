"""The report's tables: mean and standard deviation over seeds, linked to the runs.

Most have one row per size and one column per mode.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from randmix.reproduce import curves, frozen_filters, lattice, scaling, shares
from randmix.reproduce.cells import (
    OVER_SEEDS,
    RADIUS_OVER_SEEDS,
    Cell,
    Table,
    by_setting,
    mean_cell,
    radius_cell,
)
from randmix.reproduce.effects import conditions, ranked
from randmix.reproduce.numbers import Numbers
from randmix.reproduce.presets import CONVERGENCE
from randmix.reproduce.titles import ATTACKS, BANKS, MODELS, MODES, title_of, title_of_model

# What an un-shuffled image's PSNR is held against.
_BASELINES = {
    "mean_image_psnr": "mean training image",
    "linear_psnr": "linear regression",
    "reach": "reach (%)",
}
_SIZES = {
    "E4": ("model.name", "model.width"),
    "E10": ("model.depth", "model.kernel_size", "model.width"),
    CONVERGENCE: ("model.name", "total_steps"),
}


def build(experiment: str, numbers: Numbers, counted: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of an experiment from its numbers, or for E11 from ``counting.rows``."""
    numbers = numbers.where(experiment)
    match experiment:
        case "E1":
            tables = [_coverage(numbers)]
        case "E3":
            tables = [_banks(numbers)]
        case "E6":
            tables = [_attacks(numbers, defended) for defended in (False, True)]
        case "E7":
            tables = [_smoothing(numbers)]
        case "E8":
            tables = [_smoothed_filters(numbers)]
        case "E9":
            tables = [_layers(numbers)]
        case "E11":
            tables = [_counts(counted)]
        case "E12":
            tables = [shares.table(numbers)]
        case "E13":
            tables = lattice.tables(numbers)
        case "E14":
            tables = frozen_filters.tables(numbers)
        case "E15":  # its runs, and how well they fit, are those of other experiments
            return [table for table in scaling.tables(numbers) if table.rows]
        case _:
            tables = _by_mode(numbers, _SIZES.get(experiment, ("model.depth",)))
    return [table for table in (*tables, _fit(numbers)) if table.rows]


def _by_mode(numbers: Numbers, sizes: Sequence[str]) -> list[Table]:
    """A table for each data set, with a row per size and a column per mode."""
    psnr = numbers.where(metric="psnr")
    if psnr:
        what, part = "Test PSNR in dB", psnr
    elif sizes == _SIZES[CONVERGENCE]:
        what = "Accuracy on held-out training images in per cent"
        part = numbers.where(metric="validation_accuracy")
    else:
        what, part = "Test accuracy in per cent", numbers.where(metric="accuracy")
    modes = [mode for mode in MODES if part.where(mode=mode)]
    tables = []
    for name in part.values("data.name"):
        of_data = part.where(data__name=name)
        rows = []
        for values in sorted({tuple(r.settings.get(size) for size in sizes) for r in of_data}):
            at = dict(zip(sizes, values, strict=True))
            title = ", ".join(_size(size, value) for size, value in at.items())
            cells = [mean_cell(of_data.where(mode=mode, **at)) for mode in modes]
            baselines = numbers.where(data__name=name, **at)
            cells += [
                mean_cell(baselines.where(metric=metric)) for metric in (_BASELINES if psnr else ())
            ]
            rows.append([Cell(title), *cells])
        caption = f"{what}, {title_of(name)}: {OVER_SEEDS}"
        columns = ["", *(MODES[mode] for mode in modes), *(_BASELINES.values() if psnr else ())]
        tables.append(Table(caption, columns, rows))
    return tables


def _fit(numbers: Numbers) -> Table:
    """Training beside test, of every model of an experiment that trains."""
    score = "psnr" if numbers.where(metric="psnr") else "accuracy"
    unit = "PSNR in dB" if score == "psnr" else "accuracy in per cent"
    rows = [
        [Cell(title), *(mean_cell(part.where(metric=f"{when}{score}")) for when in ("train_", ""))]
        for title, part in curves.lines(numbers)
        if part.where(metric=f"train_{score}")
    ]
    caption = (
        f"Training and test {unit}: {OVER_SEEDS} Training is the last log interval's, with "
        "the augmentation, if there is any."
    )
    return Table(caption, ["", "training", "test"], rows)


def _coverage(numbers: Numbers) -> Table:
    caption = (
        "Coverage of random banks in per cent of all frequencies: "
        "mean ± standard deviation over banks (their number)."
    )
    columns = {
        "over half of the maximum": numbers.where(metric="coverage"),
        "mean over all thresholds": numbers.where(metric="mean_coverage"),
    }
    return by_setting(caption, "filters", "filters", columns, "{:,}")


def _banks(numbers: Numbers) -> Table:
    accuracy = numbers.where(metric="accuracy")
    plain = accuracy.where(model__filter_rank=None)
    rows = []
    for part in conditions(plain, ("model.name", "model.multiplier")):
        title = title_of_model(part[0].settings)
        chans = part.where(mode="chans")
        lines = {"Full": part.where(mode="full")}
        lines |= {f"Chans, {name}": chans.where(model__filters=b) for b, name in BANKS.items()}
        rows += [
            [Cell(f"{title}: {name}"), Cell(""), Cell(""), mean_cell(values)]
            for name, values in lines.items()
            if values
        ]
    for part in conditions(ranked(accuracy), ("bank_rank", "model.smoothing_index")):
        rank, index = (part[0].settings[name] for name in ("bank_rank", "model.smoothing_index"))
        coverage = np.mean([number.settings["bank_coverage"] for number in part])
        title = f"{MODELS['resnet']}: Chans, impulses, smoothing index {index:g}"
        rows.append([Cell(title), Cell(str(rank)), Cell(f"{coverage:.2f}"), mean_cell(part)])
    caption = f"Test accuracy in per cent: {OVER_SEEDS} Rank and coverage are measured."
    return Table(caption, ["filters", "rank", "coverage", "accuracy"], rows)


def _attacks(numbers: Numbers, defended: bool) -> Table:
    attacked = Numbers(r for r in numbers if "epsilon" in r.settings and r.defended == defended)
    clean = Numbers(r for r in numbers.where(metric="accuracy") if r.defended == defended)
    rows = []
    keys = ("data.name", "model.name", "model.depth")
    for values in sorted({tuple(r.settings[k] for k in keys) for r in attacked}):
        data, model, depth = values
        title = f"{MODELS[model]}, {title_of(data)}, depth {depth}"
        at = dict(zip(keys, values, strict=True))
        cells = [mean_cell(clean.where(mode=mode, **at)) for mode in ("full", "chans")]
        rows.append([Cell(f"{title}: clean accuracy"), *cells])
        for attack, name in ATTACKS.items():
            part = attacked.where(metric=attack, **at)
            cells = [radius_cell(part.where(mode=mode)) for mode in ("full", "chans")]
            rows.append([Cell(f"{title}: halved by {name}"), *cells])
    trained = "Trained on FGSM samples" if defended else "Trained without defence"
    caption = (
        f"{trained}: accuracy in per cent on the entire test set, and the radius in 1/255 at which "
        f"an attack halves it, {RADIUS_OVER_SEEDS} The strong attack halves the accuracy on the "
        "first images alone."
    )
    return Table(caption, ["", "Full", "Chans"], rows)


def _smoothing(numbers: Numbers) -> Table:
    fgsm = numbers.where(metric="fgsm")
    columns = {"clean": numbers.where(metric="accuracy")}
    for epsilon in fgsm.values("epsilon"):
        if epsilon:
            columns[f"{epsilon:g}"] = fgsm.where(epsilon=epsilon)
    caption = f"Accuracy in per cent, clean and under FGSM at each epsilon (in 1/255): {OVER_SEEDS}"
    return by_setting(caption, "model.smoothing_index", "smoothing index", columns)


def _smoothed_filters(numbers: Numbers) -> Table:
    caption = (
        "Coverage in per cent of all frequencies, and mean frequency in hundredths of a cycle "
        "per pixel."
    )
    columns = {
        "coverage": numbers.where(metric="coverage"),
        "mean frequency": numbers.where(metric="mean_frequency"),
    }
    return by_setting(caption, "index", "smoothing index", columns)


def _layers(numbers: Numbers) -> Table:
    caption = "Coverage of each layer's learned filters, in per cent of all frequencies."
    columns = {"coverage": numbers.where(metric="coverage")}
    return by_setting(caption, "layer", "layer", columns, "{}")


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


def _size(key: str, value: Any) -> str:
    """A size of a model, its family or the length of its training, in words."""
    if key == "model.name":
        return MODELS[value]
    if key == "total_steps":
        return f"{value:,} steps"
    name = key.rpartition(".")[2]
    return f"{'k' if name == 'kernel_size' else name} {value}"
