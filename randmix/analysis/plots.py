"""The figures' common style, and saving them as PNG and SVG with their data as CSV.

    @plots.style()
    def accuracy_figure(...) -> Figure:
        figure = plots.new_figure(5, 3)
        axes = figure.subplots()
        axes.set(xlabel="depth (blocks per stage)", ylabel="test accuracy (%)")
        for i, (mode, values) in enumerate(results.items()):
            plots.mean_and_spread(axes, depths, values, label=mode, **plots.series(i))
        axes.legend()
        return figure

    plots.save(accuracy_figure(...), "results/accuracy", rows)

Figures must be legible in greyscale: series differ in lightness, line style and marker, and the
lightness of image colour maps increases with the value. Nothing here uses pyplot, whose figures are
global state.
"""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from randmix.errors import writing
from randmix.runtime import durable

# CIE lightness 18, 42, 54, 65 and 77 of 100, in an order that colour-blind readers can also tell.
COLORS = ("#0b2a5b", "#b8323a", "#2f8f8b", "#df892f", "#a9c1dd")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")

MAGNITUDE_MAP = "cividis"  # for values from 0 up
SIGNED_MAP = "gray"  # for values around 0, which is mid-grey

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with Matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "figure.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 3,  # long enough to tell line styles apart
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "svg.hashsalt": "randmix",  # the same figure yields the same file
}
# Metadata that would make two files of the same figure differ.
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Applies the figures' Matplotlib settings; a context manager, or a decorator ``@style()``."""
    # Matplotlib's hints ask for literal keys, which a dict[str, Any] doesn't have.
    with matplotlib.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        yield


def new_figure(
    width: float,
    height: float,
    layout: Literal["constrained"] | None = "constrained",
) -> Figure:
    """Returns an empty figure, its size in inches, whose layout keeps labels inside.

    Draw on it within `style`. With the layout None, axes are placed by hand.
    """
    return Figure(figsize=(width, height), layout=layout)


def series(index: int) -> dict[str, Any]:
    """Colour, line style and marker of series number ``index``, as arguments of ``axes.plot``.

    Counting starts at 0. The first five differ in lightness, later ones in how colours and lines
    are paired: 25 combinations in all.

    >>> series(0)
    {'color': '#0b2a5b', 'linestyle': '-', 'marker': 'o'}
    """
    again, place = divmod(index, len(COLORS))
    other = (place + again) % len(_LINES)
    return {"color": COLORS[place], "linestyle": _LINES[other], "marker": _MARKERS[other]}


def mean_and_spread(
    axes: Axes,
    x: Sequence[float],
    values: np.ndarray,
    *,
    label: str,
    bars: bool = False,
    **appearance: Any,
) -> None:
    """Draws the mean over seeds as a line with one sample standard deviation to each side.

    Args:
        axes: the axes to draw on.
        x: [points].
        values: [seeds, points]; NaN where a seed has no value. Points of a single seed have no
            spread.
        label: the legend's entry.
        bars: draws the spread as error bars instead of a band.
        **appearance: arguments of ``axes.plot``, see `series`.
    """
    known = np.ma.masked_invalid(np.asarray(values, float))
    mean, spread = known.mean(axis=0), known.std(axis=0, ddof=1)
    if bars:
        errors = np.ma.filled(spread, np.nan)
        axes.errorbar(x, mean, errors, label=label, capsize=2, elinewidth=0.8, **appearance)
        return
    (line,) = axes.plot(x, mean, label=label, **appearance)
    if len(known) > 1:
        axes.fill_between(
            x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0
        )


def tile(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
    """Tiles [rows, columns, h, w, ...] into [rows (h + gap) - gap, columns (w + gap) - gap, ...].

    Gaps are NaN, which ``imshow`` leaves in the background colour.

    >>> tile(np.ones((1, 2, 1, 2)))
    array([[ 1.,  1., nan,  1.,  1.]])
    """
    rows, columns, h, w, *channels = images.shape
    sheet = np.full((rows, h + gap, columns, w + gap, *channels), np.nan)
    sheet[:, :h, :, :w] = np.swapaxes(images, 1, 2)
    return sheet.reshape(rows * (h + gap), columns * (w + gap), *channels)[
        : rows * (h + gap) - gap, : columns * (w + gap) - gap
    ]


def save(
    figure: Figure, path: epath.PathLike, rows: Sequence[Mapping[str, Any]] = ()
) -> list[epath.Path]:
    """Writes a figure and the data that it shows; creates missing folders.

    Args:
        figure: a figure drawn within `style`.
        path: the files' path without a suffix.
        rows: the data, one mapping from column to value per row, all with the same columns; floats
            are written with six significant digits. Without rows no CSV is written.

    Returns:
        The files written: ``path.png``, ``path.svg`` and ``path.csv``.

    Raises:
        UserError: the files can't be written.
    """
    path = epath.Path(path)
    files = {}
    with style():
        for suffix, metadata in METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            files[path.parent / f"{path.name}.{suffix}"] = buffer.getvalue()
    if rows:
        files[path.parent / f"{path.name}.csv"] = csv_text(rows).encode()
    with writing(path.parent, "give a folder that you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            durable.write(file, content)
    return list(files)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Formats rows as CSV, floats with six significant digits.

    Args:
        rows: one mapping from column to value per row, all with the same columns.
        columns: the columns; those of the first row by default.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: f"{v:.6g}" if isinstance(v, float | np.floating) else v for k, v in row.items()}
        )
    return text.getvalue()


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Shows an image [H, W, 1] or [H, W, 3] with values in [0, 1], clipped, and hides the axes."""
    image = np.clip(image, 0, 1)
    gray = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
