"""The project's one look for pictures, and how they are saved: PNG, SVG and the data as CSV.

    @plots.style()
    def accuracy_figure(...) -> Figure:
        figure = plots.new_figure(5, 3)
        axes = figure.subplots()
        axes.set(xlabel="depth (blocks a stage)", ylabel="test accuracy (%)")
        for i, (mode, values) in enumerate(results.items()):
            plots.mean_and_spread(axes, depths, values, label=mode, **plots.series(i))
        axes.legend()
        return figure

    plots.save(accuracy_figure(...), "results/accuracy", rows)

Pictures must be read in grey too: series differ in lightness, line and marker, and images have colour maps whose
lightness rises with the value. Nothing here uses pyplot, whose figures are global state. Matplotlib is imported
when a picture is drawn, so that training does without it.
"""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from randmix.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# CIE lightness 18, 42, 54, 65 and 77 of 100, in an order that colour-blind readers tell apart too.
COLORS = ("#0b2a5b", "#b8323a", "#2f8f8b", "#df892f", "#a9c1dd")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")

MAGNITUDE_MAP = "cividis"  # from 0 up
SIGNED_MAP = "gray"  # around 0: mid-grey

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same on every machine
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
    "legend.handlelength": 3,  # long enough to tell the lines
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "svg.hashsalt": "randmix",  # the same picture is the same file
}
# What would make two files of one picture differ.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings while a picture is drawn; a context manager, or a decorator as ``@style()``."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, layout: str = "constrained") -> "Figure":
    """An empty figure of that many inches that keeps its labels inside; to be drawn within `style`.

    The layout "compressed" is the one for images, whose panels have a fixed shape.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def series(index: int) -> dict[str, Any]:
    """Colour, line and marker of the series at a place from 0, as keyword arguments of ``axes.plot``.

    The first five differ in lightness, and further ones in the pairing of colour and line: 25 in all.

    >>> series(0)
    {'color': '#0b2a5b', 'linestyle': '-', 'marker': 'o'}
    """
    again, place = divmod(index, len(COLORS))
    other = (place + again) % len(_LINES)
    return {"color": COLORS[place], "linestyle": _LINES[other], "marker": _MARKERS[other]}


def mean_and_spread(
    axes: "Axes", x: Sequence[float], values: np.ndarray, *, label: str, **appearance: Any
) -> None:
    """Draws the mean over seeds as a line, with a band of one sample standard deviation around it.

    Args:
        axes: where.
        x: [points].
        values: [seeds, points]; with one seed there is no band.
        label: for the legend.
        **appearance: of ``axes.plot``, see `series`.
    """
    values = np.asarray(values, float)
    mean = values.mean(axis=0)
    (line,) = axes.plot(x, mean, label=label, **appearance)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(
            x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0
        )


def tile(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
    """Images [rows, columns, h, w, ...] side by side: [rows (h + gap) - gap, columns (w + gap) - gap, ...].

    The gaps are NaN, which ``imshow`` leaves in the background's colour.

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
    figure: "Figure", path: epath.PathLike, rows: Sequence[Mapping[str, Any]] = ()
) -> list[epath.Path]:
    """Writes a figure, and the data that it shows, side by side; folders are made.

    Args:
        figure: drawn within `style`.
        path: of the files, without a suffix.
        rows: the data, one mapping of column to value each, all with the same columns; numbers that aren't whole
            are written with six digits. Without rows there is no CSV.

    Returns:
        The files: ``path.png``, ``path.svg`` and ``path.csv``.

    Raises:
        UserError: they can't be written.
    """
    path = epath.Path(path)
    files = {}
    with style():
        for suffix, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata)
            files[path.parent / f"{path.name}.{suffix}"] = buffer.getvalue()
    if rows:
        files[path.parent / f"{path.name}.csv"] = _csv(rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            file.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path.parent}: can't be written ({error.strerror}); give a folder that you may write to"
        ) from error
    return list(files)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: f"{v:.6g}" if isinstance(v, float | np.floating) else v for k, v in row.items()}
        )
    return text.getvalue()
