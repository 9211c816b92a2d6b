"""Figures of filters and their envelopes: the paper's figures 1, 7 (right), 8 and 9.

Each function returns pictures by file name, to be saved with
``plots.save(picture.figure, folder / name, picture.rows)``. Envelopes are shown relative to their
own maximum, as coverage is measured; filters relative to their own largest weight.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from randmix.analysis import plots
from randmix.analysis.spectrum.envelopes import (
    THRESHOLD,
    coverage,
    effective_coverage,
    envelope,
    mean_coverage,
    mean_frequency,
    radial_profile,
)
from randmix.analysis.spectrum.restriction import bank_coverage, rank
from randmix.models import filters

_PANEL = 1.35  # inches
_COLUMNS = 8  # most panels side by side
_BANKS = 5  # most banks whose envelopes are shown, so that they stay legible on a page
_SAMPLE = 25  # most filters shown per bank
_SCALE = "weight / largest weight of the filter: black -1, light grey 1"


class Picture(NamedTuple):
    """A figure, and the data that it shows as table rows."""

    figure: Figure
    rows: Sequence[Mapping[str, Any]] = ()


@plots.style()
def layers(kernels: Mapping[str, np.ndarray]) -> dict[str, Picture]:
    """Envelope and sample filters of each layer (figure 9).

    Args:
        kernels: [k, k, C] or [k, k, C, m] by layer, as ``spectrum.layers`` returns them.

    Returns:
        The pictures "envelopes", with one row per layer, and "filters".
    """
    envelopes = {name: envelope(kernel) for name, kernel in kernels.items()}
    rows = measures(kernels)
    figure, panels = _panels(len(kernels))
    for axes, row in zip(panels, rows, strict=True):
        _draw_envelope(
            axes,
            envelopes[row["layer"]],
            f"{row['layer']}\ncoverage {row['coverage']:.2f}, rank {row['rank']:.3g}",
        )
    _finish_envelopes(panels)

    sheets, panels = _panels(len(kernels))
    for axes, (name, kernel) in zip(panels, kernels.items(), strict=True):
        _draw_filters(axes, [kernel], name)
    sheets.suptitle(_SCALE)
    return {"envelopes": Picture(figure, rows), "filters": Picture(sheets)}


def measures(kernels: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The measures of each layer, one row for each; ``kernels`` is as in ``layers``."""
    return [
        {
            "layer": name,
            "filters": math.prod(kernel.shape[2:]),
            "kernel_size": kernel.shape[0],
            **_measures(envelope(kernel)),
            "bank_coverage": bank_coverage(kernel),
            "rank": rank(kernel),
        }
        for name, kernel in kernels.items()
    ]


@plots.style()
def random_banks(
    counts: Iterable[int], *, kernel_size: int, seeds: Sequence[int]
) -> dict[str, Picture]:
    """Envelopes of random banks by size, and their coverage (figure 1).

    Each bank contains the smaller ones of its seed. The images show the first seed, at up to five
    sizes from the smallest to the largest.

    Args:
        counts: sizes of the banks, in filters, each at least 1.
        kernel_size: side of the filters, in pixels.
        seeds: at least one.

    Returns:
        The picture "random", with one row per seed and size.
    """
    counts = sorted(set(counts))
    rows, shown = [], []
    for seed in seeds:
        shape = (kernel_size, kernel_size, counts[-1])
        bank = np.asarray(filters.random(jax.random.key(seed), shape))
        envelopes = _growing_envelopes(bank, counts)
        shown = shown or envelopes
        rows += [
            {
                "seed": seed,
                "filters": count,
                "kernel_size": kernel_size,
                **_measures(values),
                "rank": rank(bank[..., :count]),
            }
            for count, values in zip(counts, envelopes, strict=True)
        ]
    places = np.linspace(0, len(counts) - 1, min(_BANKS, len(counts))).round().astype(int)
    figure = plots.new_figure(max(4.5, 0.9 + _PANEL * len(places)), _PANEL + 2.7)
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[_PANEL + 0.5, 2.2])
    panels = list(above.subplots(1, len(places), squeeze=False)[0])
    for axes, place in zip(panels, places, strict=True):
        count = counts[place]
        _draw_envelope(axes, shown[place], f"{count:,} filter{'s' if count > 1 else ''}")
    _finish_envelopes(panels)
    _draw_coverage(below.subplots(), rows, counts, seeds=len(seeds))
    return {"random": Picture(figure, rows)}


@plots.style()
def smoothing(bank: Sequence[np.ndarray], indices: Iterable[float]) -> dict[str, Picture]:
    """Filters, envelopes and radial profiles of a bank at several smoothing indices (figures 7, 8).

    Args:
        bank: kernels [k, k, C] or [k, k, C, m], of one or several layers, treated as one bank.
        indices: smoothing indices, each at least 0; see ``filters.smooth``.

    Returns:
        The pictures "smoothing", with one row per index, and "smoothing_profile", with one per
        index and ring.
    """
    indices = sorted(set(indices))
    smoothed = [
        [np.asarray(filters.smooth(jnp.asarray(kernel), i)) for kernel in bank] for i in indices
    ]
    envelopes = [functools.reduce(np.maximum, map(envelope, kernels)) for kernels in smoothed]
    figure, panels = _panels(2 * len(indices), rows=2)
    sheets, panels = panels[: len(indices)], panels[len(indices) :]
    rows = []
    for i, index in enumerate(indices):
        sigma = filters.SIGMA_PER_INDEX * index
        restriction = {
            "bank_coverage": _mean(bank_coverage, smoothed[i]),
            "rank": _mean(rank, smoothed[i]),
        }
        rows.append(
            {"index": index, "sigma_pixels": sigma, **_measures(envelopes[i]), **restriction}
        )
        _draw_filters(sheets[i], smoothed[i], f"index {index:g} (sigma {sigma:g} px)")
        _draw_envelope(panels[i], envelopes[i], f"coverage {rows[-1]['coverage']:.2f}")
    figure.suptitle(_SCALE)
    _finish_envelopes(panels)
    return {"smoothing": Picture(figure, rows), "smoothing_profile": _profiles(indices, envelopes)}


def _profiles(indices: Sequence[float], envelopes: Sequence[np.ndarray]) -> Picture:
    figure = plots.new_figure(4.5, 2.8)
    axes = figure.subplots()
    rows = []
    for i, (index, values) in enumerate(zip(indices, envelopes, strict=True)):
        frequencies, means = radial_profile(values)
        axes.plot(
            frequencies,
            means,
            label=f"{index:g}",
            **plots.series(i),
            markevery=(2 * i, len(means) // 6),
        )
        rows += [
            {"index": index, "frequency": f, "envelope": mean}
            for f, mean in zip(frequencies, means, strict=True)
        ]
    axes.set(
        xlabel="distance from frequency zero (cycles/pixel)", ylabel="mean of the envelope per ring"
    )
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.legend(title="smoothing index")
    return Picture(figure, rows)


def _measures(values: np.ndarray) -> dict[str, float]:
    return {
        "coverage": coverage(values),
        "mean_coverage": mean_coverage(values),
        "effective_coverage": effective_coverage(values),
        "mean_frequency": mean_frequency(values),
    }


def _mean(measure: Callable[[np.ndarray], float], kernels: Sequence[np.ndarray]) -> float:
    """The mean of a measure over layers."""
    return float(np.mean([measure(kernel) for kernel in kernels]))


def _growing_envelopes(bank: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Envelopes of the first ``counts`` (ascending) filters of a bank [k, k, C].

    Each filter is transformed once.
    """
    found = [envelope(bank[..., : counts[0]])]
    for start, stop in itertools.pairwise(counts):
        found.append(np.maximum(found[-1], envelope(bank[..., start:stop])))
    return found


def _panels(count: int, rows: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with that many square panels, in rows of nearly equal length, at most 8."""
    rows = rows or -(-count // _COLUMNS)
    columns = -(-count // rows)
    # Panels are as large as fits; "compressed" then removes the empty space between them.
    figure = plots.new_figure(max(4, 1.2 + _PANEL * columns), 0.8 + (_PANEL + 0.35) * rows)
    figure.set_layout_engine("compressed", w_pad=0.08)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _draw_coverage(
    axes: Axes, rows: Sequence[Mapping[str, Any]], counts: Sequence[int], *, seeds: int
) -> None:
    """Plots coverage against the size of the bank."""
    labels = {
        "coverage": f"over {THRESHOLD:g} of the maximum",
        "mean_coverage": "mean over all thresholds",
        "effective_coverage": "effective",
    }
    for i, (name, label) in enumerate(labels.items()):
        values = np.reshape([row[name] for row in rows], (seeds, len(counts)))
        plots.mean_and_spread(axes, counts, values, label=label, **plots.series(i))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    spread = f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    axes.set_xlabel(
        f"random {rows[0]['kernel_size']} x {rows[0]['kernel_size']} filters in the bank{spread}"
    )
    axes.set(ylim=(0, 1.05), ylabel="share of frequencies")
    axes.legend(loc="lower right")


def _draw_envelope(axes: Axes, values: np.ndarray, title: str) -> None:
    peak = values.max() or 1
    # This order of the extent puts the lowest vertical frequency, the first row, at the top.
    axes.imshow(
        values / peak, cmap=plots.MAGNITUDE_MAP, vmin=0, vmax=1, extent=(-0.5, 0.5, 0.5, -0.5)
    )
    axes.set_title(title)
    axes.set(xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    axes.grid(False)


def _finish_envelopes(panels: Sequence[Axes]) -> None:
    """Labels the outer panels' axes, and adds one colour bar beside the first row."""
    grid = panels[0].get_gridspec()
    assert grid is not None, "panels come from _panels or random_banks, in a grid"
    columns = grid.ncols
    for i, axes in enumerate(panels):
        left, bottom = i % columns == 0, i + columns >= len(panels)
        axes.set(xlabel="cycles/pixel" if bottom else "", ylabel="cycles/pixel" if left else "")
        axes.tick_params(labelbottom=bottom, labelleft=left)
    corner = panels[columns - 1]
    scale = corner.inset_axes((1.1, 0, 0.07, 1))
    corner.figure.colorbar(corner.images[0], cax=scale, label="envelope / maximum")


def _draw_filters(axes: Axes, bank: Sequence[np.ndarray], title: str) -> None:
    """Draws up to 25 filters, spaced evenly over the bank, as a square grid."""
    shown = _sample(bank)
    side = math.isqrt(len(shown) - 1) + 1
    squares = np.full((side * side, *shown.shape[1:]), np.nan)
    squares[: len(shown)] = shown
    sheet = plots.tile(squares.reshape(side, side, *shown.shape[1:]), gap=shown.shape[1] // 6)
    # The colour scale extends beyond 1, so that no weight is as white as the gaps between filters.
    axes.imshow(sheet, cmap=plots.SIGNED_MAP, vmin=-1, vmax=1.4, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def _sample(bank: Sequence[np.ndarray]) -> np.ndarray:
    """Filters [count, side, side], enlarged to one size and divided by their largest weights."""
    singles = [kernel.reshape(*kernel.shape[:2], -1) for kernel in bank]
    places = [(layer, i) for layer, kernel in enumerate(singles) for i in range(kernel.shape[2])]
    common = math.lcm(*map(len, singles))
    side = common * -(-12 // common)  # at least 12, so that the gaps are narrow
    shown = []
    for place in np.linspace(0, len(places) - 1, min(_SAMPLE, len(places))).round().astype(int):
        layer, i = places[place]
        weights = singles[layer][:, :, i].astype(np.float32)
        weights /= np.abs(weights).max() or 1
        shown.append(
            weights.repeat(side // len(weights), axis=0).repeat(side // len(weights), axis=1)
        )
    return np.stack(shown)
