"""Accuracy gained under attack by smoothing frozen filters (section 4.3.3, Figure 7)."""

import csv
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from randmix.analysis import plots
from randmix.errors import UserError, check_choice
from randmix.workdir import json_files


class Curve(NamedTuple):
    """Accuracy under one attack.

    Attributes:
        index: the filters' smoothing index.
        data: the data set and the examples evaluated.
        epsilons: [points], in 1/255, ascending.
        accuracies: [points], in [0, 1].
    """

    index: float
    data: str
    epsilons: tuple[float, ...]
    accuracies: tuple[float, ...]


def read(folder: epath.PathLike, attack: str) -> Curve:
    """Reads the accuracies that ``python -m randmix evaluate`` wrote to a folder.

    Raises:
        UserError: the folder has no accuracies under attack, or none for this attack.
    """
    folder = epath.Path(folder)
    files = [folder / name for name in ("attacks.csv", "attacks.json")]
    if not all(file.exists() for file in files):
        raise UserError(
            f"{folder}: no accuracies under attack there; first run python -m randmix evaluate "
            f"--workdir=... --attacks={attack}"
        )
    try:
        rows = [
            (row["attack"], float(row["epsilon"]), float(row["accuracy"]))
            for row in csv.DictReader(files[0].read_text().splitlines())
        ]
    except (csv.Error, KeyError, TypeError, ValueError):
        raise UserError(f"{files[0]}: damaged; measure the attacks again") from None
    about = json_files.read(
        files[1],
        {"smoothing_index": float, "data": str, "examples": str},
        what_to_do="measure the attacks again",
    )
    check_choice(f"{folder}: --attack", attack, sorted({name for name, *_ in rows}))
    points = sorted(point for name, *point in rows if name == attack)
    epsilons, accuracies = zip(*points, strict=True)
    return Curve(
        about["smoothing_index"], f"{about['data']}: {about['examples']}", epsilons, accuracies
    )


def relative_gains(curves: Sequence[Curve]) -> np.ndarray:
    """Relative gain of each curve at each epsilon: (accuracy - baseline) / baseline.

    Args:
        curves: curves of one attack, exactly one of them of smoothing index 0: the baseline.

    Returns:
        [curves, points] float64, NaN where the baseline is 0.

    Raises:
        UserError: no baseline or several, or curves with different epsilons or data.
    """
    baselines = [curve for curve in curves if curve.index == 0]
    if len(baselines) != 1:
        raise UserError(
            f"--folders: got {len(baselines)} of smoothing index 0, allowed one, the baseline"
        )
    (baseline,) = baselines
    for curve in curves:
        for name in ("data", "epsilons"):
            got, allowed = getattr(curve, name), getattr(baseline, name)
            if got != allowed:
                raise UserError(
                    f"--folders: got {name} {got!r} at index {curve.index:g}, "
                    f"allowed {allowed!r} as at index 0"
                )
    base = np.asarray(baseline.accuracies)
    gains = np.asarray([curve.accuracies for curve in curves]) - base
    return np.divide(gains, base, out=np.full_like(gains, np.nan), where=base > 0)


@plots.style()
def figure(
    indices: Sequence[float],
    gains: Mapping[float, np.ndarray],
    clean: np.ndarray,
    *,
    ylabel: str,
) -> Figure:
    """Relative gain against the smoothing index, one line per epsilon, above the clean accuracy.

    Args:
        indices: smoothing indices, ascending.
        gains: by epsilon in 1/255, [seeds, indices] in per cent.
        clean: [seeds, indices] in per cent; no seed leaves the lower panel empty.
        ylabel: label of the gains, with the attack.
    """
    drawing = plots.new_figure(4.6, 4.4)
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(2.5, 1))
    for place, (epsilon, values) in enumerate(gains.items()):
        label = f"epsilon {epsilon:g}/255"
        plots.mean_and_spread(above, indices, values, label=label, **plots.series(place))
    above.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    above.set(ylabel=ylabel)
    above.legend(fontsize=7)
    if len(clean):
        plots.mean_and_spread(below, indices, clean, label="clean", **plots.series(0))
    below.set(ylabel="clean accuracy (%)", xlabel="smoothing index")
    below.set_xticks(indices, [f"{index:g}" for index in indices])
    return drawing


@plots.style()
def draw(folders: Sequence[epath.PathLike], attack: str, out: epath.PathLike) -> list[epath.Path]:
    """Draws folders of accuracies under attack and returns the files written to ``out``.

    Raises:
        UserError: as `read` and `relative_gains` do, or ``out`` can't be written.
    """
    curves = sorted(read(folder, attack) for folder in folders)
    gains = relative_gains(curves)
    rows = [
        {
            "attack": attack,
            "smoothing_index": curve.index,
            "epsilon": epsilon,
            "accuracy": accuracy,
            "relative_gain": "" if np.isnan(gain) else float(gain),
        }
        for curve, line in zip(curves, gains, strict=True)
        for epsilon, accuracy, gain in zip(curve.epsilons, curve.accuracies, line, strict=True)
    ]
    epsilons = np.asarray(curves[0].epsilons)
    accuracies = np.asarray([curve.accuracies for curve in curves])
    percent = {e: 100 * line[None] for e, line in zip(epsilons, gains.T, strict=True) if e > 0}
    clean = 100 * accuracies.T[epsilons == 0]
    indices, ylabel = [curve.index for curve in curves], f"relative gain under {attack} (%)"
    picture = figure(indices, percent, clean, ylabel=ylabel)
    picture.axes[0].set_title(f"{curves[0].data} examples")
    return plots.save(picture, epath.Path(out) / "smoothing", rows)
