"""The first figure: every verdict with its effect, interval, threshold and zone of equivalence."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from randmix.analysis import plots
from randmix.analysis.spectrum.figures import Picture
from randmix.experiments.statistics import Interval, t_interval
from randmix.reproduce import verdicts
from randmix.reproduce.claims import ABOVE, BELOW, EXACTLY, WITHIN
from randmix.reproduce.sentences import sentence, test_of, weakest
from randmix.reproduce.titles import title_of
from randmix.reproduce.verdicts import Judgement, Result

_LIMIT = 5.0  # of the x axis; what lies beyond is drawn at the edge, with an arrow
_ROW = 0.56  # inches; the unit of a panel's y axis
_LINE = 0.4  # rows, of each effect of a claim that has several
_MORE = 0.4  # rows, of a claim whose sentence is long or whose equality has an effect of its own
_ZONE = 0.44  # rows, height of a zone of equivalence
_LEFT, _LINE_LEFT, _RIGHT = 38, 48, 76  # characters of a line of text beside the rows
_SHORT, _LONG = 3, 4  # most lines of a sentence beside a row, and beside one with more room
# Colour and marker by the verdict's first word; they differ in shape as well, for greyscale.
_STYLES = {
    verdicts.SUPPORTED: ("#155e46", "o"),
    verdicts.CONTRADICTED: ("#97222b", "s"),
    verdicts.EQUAL: ("#0b2a5b", "D"),
}
_OPEN = "#6a5200"  # of verdicts that decide nothing, whose markers are hollow


def pages(judged: Sequence[Judgement]) -> list[list[Judgement]]:
    """The judgements by figure: for each data set the primary claims, then the secondary ones.

    Those of no data set are in the figures of the first.
    """
    names = [*dict.fromkeys(one.data for one in judged if one.data)] or [""]
    chosen = [
        [one for one in judged if (one.data or names[0]) == name and one.claim.primary is primary]
        for name in names
        for primary in (True, False)
    ]
    return [*filter(None, chosen)]


@plots.style()
def draw(judged: Sequence[Judgement]) -> Picture:
    """Draws one of the ``pages``, a row a claim.

    A row shows the effect that decides on its claim; where several do, each has a line below the
    row. An effect is drawn in a unit of its own: the margin or the threshold, whichever is larger,
    or one unit of the effect where both are 0.
    """
    height = 1.1 + _ROW * sum(map(_height, judged))
    figure = plots.new_figure(10.2, height, None)
    figure.subplots_adjust(left=0.245, right=0.575, top=1 - 0.35 / height, bottom=0.75 / height)
    axes, rows = figure.subplots(), []
    titles = ("Secondary claims, not corrected", "Primary claims, corrected for their number")
    title, data = titles[judged[0].claim.primary], max(one.data for one in judged)
    _panel(axes, f"{title_of(data)}: {title.lower()}" if data else title, judged, rows)
    axes.set_xlabel(
        "effect in the unit of its row; at 0 there is no difference\n"
        "tick: threshold, its arrow points to what is claimed; shaded: practically equal\n"
        "line: 95 % interval, thick: 90 %, which decides on equality; hollow: nothing is decided"
    )
    return Picture(figure, rows)


def _height(one: Judgement) -> float:
    """Height of a claim, in rows."""
    return _head(one) + _LINE * len(_lines(one))


def _head(one: Judgement) -> float:
    """Height of a claim without the lines of its effects, in rows."""
    result = None if _lines(one) else weakest(one)
    return 1 + _MORE * (len(_words(one)) > _SHORT or bool(result and _equal_apart(one, result)))


def _words(one: Judgement) -> list[str]:
    return textwrap.wrap(sentence(one), _RIGHT, max_lines=_LONG, placeholder=" \u2026")


def _equal_apart(one: Judgement, result: Result) -> bool:
    """Whether equality is judged by another effect than the claim, which has a line of its own."""
    equal = test_of(one, result).equal
    return bool(equal and equal.words != result.words and result.equal)


def _lines(one: Judgement) -> Sequence[Result]:
    """The deciding effects of a claim, if it has several and one of them is known."""
    return one.deciding if len(one.deciding) > 1 and weakest(one) else ()


def _panel(axes: Axes, title: str, judged: Sequence[Judgement], rows: list[dict[str, Any]]) -> None:
    bottom = sum(map(_height, judged)) - 0.5
    axes.set(xlim=(-_LIMIT - 0.3, _LIMIT + 0.3), ylim=(bottom, -0.5), yticks=[])
    axes.set_xticks(range(-int(_LIMIT), int(_LIMIT) + 1))
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_title(title, loc="left", fontweight="bold", x=-0.74)
    y = 0.0
    for one in judged:
        if y:
            axes.axhline(y - 0.5, color="0.88", linewidth=0.6, xmin=-0.74, xmax=2.27, clip_on=False)
        _texts(axes, y, one)
        for i, result in enumerate(_lines(one)):
            _line(axes, y + _head(one) - 0.5 + _LINE * (i + 0.25), one, result, rows)
        if not _lines(one):
            _single(axes, y, one, rows)
        y += _height(one)


def _single(axes: Axes, y: float, one: Judgement, rows: list[dict[str, Any]]) -> None:
    """The row of a claim that one effect decides."""
    result = weakest(one)
    scale = _scale(result) if result else math.nan
    if result is None:
        axes.text(0, y, "nothing to compare", color="0.4", ha="center", va="center")
    else:
        _effect(axes, y, one, result, scale, one.verdict)
        about = {"fontsize": 5.5, "color": "0.35", "va": "center", "ha": "right"}
        axes.text(_LIMIT + 0.2, y + _head(one) - 0.64, _unit(result, scale), **about)
    rows.append(_row(one, result, scale))


def _line(axes: Axes, y: float, one: Judgement, result: Result, rows: list[dict[str, Any]]) -> None:
    """The line of one effect of a claim that several decide, with its name and its own verdict."""
    place = {"transform": axes.get_yaxis_transform(), "clip_on": False, "va": "center"}
    alike = len({other.words for other in one.deciding}) == 1
    name = result.condition if alike else result.title
    axes.text(-0.66, y, textwrap.shorten(name, _LINE_LEFT), fontsize=6, color="0.25", **place)
    scale, known = _scale(result), not math.isnan(result.interval.mean)
    # Only the corrected verdict on all of them is a primary claim's.
    verdict = one.verdict if one.claim.primary else result.verdict
    said = [] if one.claim.primary else [result.verdict]
    if known:
        _effect(axes, y, one, result, scale, verdict, small=True)
        said += [_unit(result, scale)]
    else:
        axes.text(0, y, "nothing to compare", color="0.4", fontsize=6, ha="center", va="center")
    color, _ = _look(verdict)
    axes.text(1.04, y, "; ".join(said), fontsize=6, color=color if known else "0.4", **place)
    rows.append(_row(one, result if known else None, scale))


def _unit(result: Result, scale: float) -> str:
    unit = result.unit.removesuffix("s") if scale == 1 else result.unit
    return f"unit: {scale:.2g} {unit}".strip()


def _texts(axes: Axes, y: float, one: Judgement) -> None:
    """The claim, its verdict and the sentence."""
    place = {"transform": axes.get_yaxis_transform(), "clip_on": False}
    color, _ = _look(one.verdict)
    axes.text(-0.74, y, one.claim.id, fontweight="bold", va="center", **place)
    axes.text(-0.66, y, textwrap.fill(one.claim.text, _LEFT), fontsize=7, va="center", **place)
    axes.text(1.04, y - 0.43, one.verdict, color=color, fontweight="bold", va="top", **place)
    axes.text(1.04, y - 0.16, "\n".join(_words(one)), fontsize=6.3, va="top", color="0.25", **place)


def _effect(
    axes: Axes,
    y: float,
    one: Judgement,
    result: Result,
    scale: float,
    verdict: str,
    *,
    small: bool = False,
) -> None:
    size = _LINE if small else 1.0
    test = test_of(one, result)
    same = bool(test.equal) and test.equal.words == result.words
    zone = result.threshold if result.side == WITHIN else result.margin if same else 0.0
    _zone(axes, y, zone / scale, _ZONE if not small else 0.8 * _LINE)
    ends = {ABOVE: (1,), BELOW: (-1,), WITHIN: (-1, 1), EXACTLY: ()}[result.side]
    for side in ends:
        at = result.threshold * (side if result.side == WITHIN else 1) / scale
        points = -side if result.side == WITHIN else side
        axes.plot([at, at], [y - 0.3 * size, y + 0.3 * size], color="black", linewidth=1)
        axes.annotate(
            "",
            (at + 0.42 * points, y - 0.26 * size),
            (at, y - 0.26 * size),
            arrowprops={"arrowstyle": "-|>", "linewidth": 0.7 * size, "color": "black"},
        )
    inner = t_interval([*result.values.values()], 0.9) if zone else None
    exact = result.side == EXACTLY
    _whisker(axes, y, result.interval, inner, scale, verdict, exact=exact, small=small)
    if test.equal and result.equal and _equal_apart(one, result) and not small:
        below = y + 0.2 + _MORE
        _zone(axes, below, result.margin / scale, _ZONE)
        _whisker(axes, below, result.equal, None, scale, verdict, small=True)
        about = {"fontsize": 5.5, "color": "0.35", "va": "center"}
        axes.text(-_LIMIT - 0.2, below, f"{test.equal.words}, 90 %", **about)


def _zone(axes: Axes, y: float, half: float, height: float) -> None:
    if half:
        axes.barh(y, 2 * half, height, left=-half, color="#dfe6ef", zorder=0.5)


def _whisker(
    axes: Axes,
    y: float,
    interval: Interval,
    inner: Interval | None,
    scale: float,
    verdict: str,
    *,
    exact: bool = False,
    small: bool = False,
) -> None:
    """A mean with its interval, cut at the edges; without one where it has none."""
    color, marker = _look(verdict)
    for part, width in ((interval, 0.9), (inner, 2.6)):
        if part and part.n > 1 and not exact:
            ends = [_cut(end / scale) for end in (part.low, part.high)]
            axes.plot(ends, [y, y], color=color, linewidth=width * (0.7 if small else 1))
    for end, tip in ((interval.low, "<"), (interval.high, ">")):
        if abs(end / scale) > _LIMIT and (interval.n > 1 and not exact):
            axes.plot(_cut(end / scale), y, tip, color=color, markersize=3.5)
    if abs(interval.mean / scale) > _LIMIT:
        marker = ">" if interval.mean > 0 else "<"
    face = color if verdict.startswith(tuple(_STYLES)) else "white"
    size = 3 if small else 5.5
    axes.plot(
        _cut(interval.mean / scale),
        y,
        marker,
        markersize=size,
        color=color,
        markerfacecolor=face,
    )


def _cut(value: float) -> float:
    return max(-_LIMIT, min(_LIMIT, value))


def _look(verdict: str) -> tuple[str, str]:
    """Colour and marker of a verdict."""
    found = (look for word, look in _STYLES.items() if verdict.startswith(word))
    return next(found, (_OPEN, "o"))


def _scale(result: Result) -> float:
    return max(result.margin, abs(result.threshold)) or 1.0


def _row(one: Judgement, result: Result | None, scale: float) -> dict[str, Any]:
    """A row of the figure's data."""
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    interval, equal = (result.interval, result.equal) if result else (nothing, None)
    equal = equal or nothing
    return {
        "claim": one.claim.id,
        "data": one.data,
        "primary": one.claim.primary,
        "verdict": one.verdict,
        "effect": result.title if result else "",
        "unit": result.unit if result else "",
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "seeds": interval.n,
        "side": result.side if result else "",
        "threshold": result.threshold if result else math.nan,
        "margin": result.margin if result else math.nan,
        "equal_low": equal.low,
        "equal_high": equal.high,
        "drawn_in_units_of": scale,
        "sentence": sentence(one),
    }
