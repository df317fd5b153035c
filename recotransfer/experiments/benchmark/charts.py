"""Plots for the report as inline SVG that takes its colours and font from the page.

Each colour is drawn as a placeholder and then replaced by a CSS variable, so that one plot works on light and dark
screens and on paper. Text remains text. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Float = NDArray[np.float64]
LABEL = 30  # characters in a line of a label; longer labels continue on the next line
WIDTH = 440  # pixels: two plots fit side by side on a desktop, one is still legible on a phone
_TONES = ("ink", "muted", "grid", "card", "accent", "ablation", "good", "bad", "plain")
_COLOUR = {tone: f"#0{n}0{n}0{n}" for n, tone in enumerate(_TONES, start=1)}  # placeholders, see `_svg`
_FONT = 11.0
_ROW = 17.0  # pixels between two rows of a forest
_LINE = 12.0  # pixels that every further line of a label adds
_CORE = 0.5  # share of the rows, the best ones, that an axis is made for
_REACH = 1.5  # how far an axis reaches beyond those rows, in units of their range
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that texts have the same size on every machine
    "font.size": _FONT,
    "axes.labelsize": _FONT,
    "xtick.labelsize": _FONT - 1,
    "ytick.labelsize": _FONT - 1,
    "text.color": _COLOUR["ink"],
    "axes.labelcolor": _COLOUR["muted"],
    "axes.edgecolor": _COLOUR["grid"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _COLOUR["grid"],
    "ytick.color": _COLOUR["grid"],
    "xtick.labelcolor": _COLOUR["muted"],
    "ytick.labelcolor": _COLOUR["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": _COLOUR["grid"],
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
}


class Row(NamedTuple):
    """A dot with its interval, in the colour of `tone` (one of `_TONES`); hollow unless `filled`."""

    label: str
    value: float
    low: float
    high: float
    tone: str = "plain"
    filled: bool = True


class Panel(NamedTuple):
    """Rows under one heading, with a note below the heading (such as the number of pairs)."""

    title: str
    rows: Sequence[Row]
    note: str = ""


class Point(NamedTuple):
    """A point of a scatter plot: `x` on the horizontal axis, the row's value on the vertical."""

    x: float
    row: Row


class Line(NamedTuple):
    """A small panel of a quantity over steps, as dots and a line, with a note below the heading (the quantity)."""

    title: str
    x: Sequence[float]
    dots: Sequence[float]
    line: Sequence[float]
    tone: str = "plain"
    note: str = ""


def forest(
    name: str, panels: Sequence[Panel], *, axis: str, columns: int = 1, zero: bool = False, whole: bool = False
) -> str:
    """SVG of a forest plot: dots with intervals in panels on a common scale, labels on the left.

    The scale is made for the best rows: a row far below them is an arrow at the edge with its value, so that it does
    not squeeze their intervals.

    Args:
        name: name of the plot, unique on its page; screen readers read it.
        panels: the panels; a row whose value is NaN stays empty.
        axis: label of the value axis.
        columns: number of panels side by side.
        zero: mark zero and write signs, as for differences.
        whole: whether the scale has to hold every row.
    """
    with _styled():
        depth = max(len(panel.rows) for panel in panels)
        lines = math.ceil(len(panels) / columns)
        head = _head(panels)
        most = max(wrapped(row.label).count("\n") for panel in panels for row in panel.rows)
        tall = depth * (_ROW + _LINE * most) + 8
        figure = _figure(lines * (head + tall + 22) + 15)
        left = max(_extent(figure, wrapped(row.label))[0] for panel in panels for row in panel.rows) + 10
        wide = (WIDTH - left - 6 - 14 * (columns - 1)) / columns
        reference = [Row("", 0.0, 0.0, 0.0)] * zero  # what differences are to, one of the rows to show
        low, high = _range([v for p in panels for v in _shown_values([*p.rows, *reference], whole)], zero)
        for n, panel in enumerate(panels):
            line, column = divmod(n, columns)
            top = line * (head + tall + 22) + head
            axes = _axes(figure, left + column * (wide + 14), top, wide, tall)
            axes.set(xlim=(low, high), ylim=(depth - 0.4, -0.6))
            _rows(axes, panel.rows, labels=column == 0, signed=zero)
            _number_ticks(axes.xaxis, wide, signed=zero)
            axes.grid(axis="x")
            if zero:
                axes.axvline(0, color=_COLOUR["muted"], linewidth=1, zorder=1)

            if panel.title:
                _title(axes, panel.title, panel.note)

        _below(figure, axis, left)
        return _svg(figure, name)


def scatter(name: str, points: Sequence[Point], *, across: str, up: str, log: bool = False) -> str:
    """SVG of a scatter plot with vertical intervals and with labels that avoid each other and the points.

    Args:
        name: name of the plot, unique on its page.
        points: the points.
        across: label of the horizontal axis.
        up: label of the vertical axis.
        log: whether the horizontal axis is logarithmic.
    """
    with _styled():
        figure = _figure(314)
        left, top, wide, tall = 50.0, 24.0, WIDTH - 60.0, 252.0
        axes = _axes(figure, left, top, wide, tall)
        xs = [point.x for point in points]
        if log:
            axes.set_xscale("log")
            axes.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
        else:
            axes.set_xlim(*_range(xs, False, 0.08))

        axes.set_ylim(*_range(_shown_values([point.row for point in points], whole=False), False, 0.06))
        points = [_at_edge(point, *axes.get_ylim()) for point in points]
        for point in points:
            _dot(axes, point.x, point.row, upright=True)

        _log_ticks(axes) if log else _number_ticks(axes.xaxis, wide)
        _number_ticks(axes.yaxis, tall)
        axes.grid()
        _place_labels(figure, axes, points)
        axes.text(-left / wide, 1 + 12 / tall, up, transform=axes.transAxes, color=_COLOUR["muted"], va="center")
        _below(figure, across, left)
        return _svg(figure, name)


def small_lines(name: str, panels: Sequence[Line], *, columns: int, axis: str, whole: bool = True) -> str:
    """SVG of small panels, each on its own scale, with a dot for each step and a line.

    Args:
        name: name of the plot, unique on its page.
        panels: the panels.
        columns: number of panels side by side.
        axis: label of the step axis.
        whole: draw the line in steps, as for the best value so far, rather than from point to point.
    """
    with _styled():
        lines, tall, gap = math.ceil(len(panels) / columns), 70.0, 44.0
        wide = (WIDTH - gap * columns - 6) / columns
        room = int(wide / (0.62 * _FONT))  # a bold letter is about that wide
        head = _head(panels) + _FONT * 1.2 * max(wrapped(panel.title, room).count("\n") for panel in panels)
        figure = _figure(lines * (head + tall + 24) + 14)
        for n, panel in enumerate(panels):
            line, column = divmod(n, columns)
            axes = _axes(figure, gap + column * (wide + gap), line * (head + tall + 24) + head, wide, tall)
            axes.plot(panel.x, panel.dots, "o", color=_COLOUR["muted"], markersize=3, alpha=0.55, markeredgewidth=0)
            style = "steps-post" if whole else "default"
            axes.plot(panel.x, panel.line, color=_COLOUR[panel.tone], linewidth=1.8, drawstyle=style)
            axes.set_xlim(*_range(panel.x, False, 0.06))
            axes.set_ylim(*_range([*panel.dots, *panel.line], False, 0.1))
            _number_ticks(axes.xaxis, wide, integer=True)
            _number_ticks(axes.yaxis, tall * 1.5)
            axes.grid()
            _title(axes, wrapped(panel.title, room), panel.note)

        _below(figure, axis, gap)
        return _svg(figure, name)


@contextmanager
def _styled() -> Iterator[None]:
    """Apply the plot style, regardless of the user's matplotlib settings, which are restored afterwards."""
    mpl = require("matplotlib")

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing in DejaVu Sans, but the browser has fonts for it
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _figure(height: float) -> Figure:
    size = (WIDTH / 72, height / 72)
    figure: Figure = require("matplotlib.figure").Figure(figsize=size, dpi=72)  # one point is one pixel
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)

    return figure


def _axes(figure: Figure, left: float, top: float, wide: float, tall: float) -> Axes:
    """Axes at this place in pixels, measured from the top left."""
    height = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, wide / WIDTH, tall / height))


def _extent(figure: Figure, text: str) -> tuple[float, float]:
    """Width and height of the text in pixels."""
    box = figure.text(0, 0, text, linespacing=1.0).get_window_extent()
    figure.texts[-1].remove()
    return box.width, box.height


def wrapped(label: str, room: int = LABEL) -> str:
    """The whole label in lines of at most `room` characters, broken between words where that is possible."""
    return "\n".join(textwrap.wrap(label, max(room, 2))) or label


def _shown_values(rows: Sequence[Row], whole: bool) -> list[float]:
    """The values that an axis has to hold: those of all rows, or without those of rows far below the best ones."""
    finite = sorted((row for row in rows if math.isfinite(row.value)), key=lambda row: -row.value)
    best = finite[: max(2, int(_CORE * len(finite)))]
    ends = [value for row in best for value in (row.value, row.low, row.high) if math.isfinite(value)]
    least = min(ends, default=0.0) - _REACH * (max(ends, default=0.0) - min(ends, default=0.0))
    shown = [row for row in finite if whole or row.value >= least]

    return [max(value, least) if not whole else value for row in shown for value in (row.value, row.low, row.high)]


def _at_edge(point: Point, low: float, high: float) -> Point:
    """The point; one that the axis from `low` to `high` leaves out at its lower end, with the value in its label."""
    row = point.row
    if not row.value < low:
        return point

    edge = low + 0.02 * (high - low)
    label = f"{row.label} ↓ {_tick(float(f'{row.value:.3g}'))}"
    return Point(point.x, row._replace(label=label, value=edge, low=math.nan, high=math.nan))


def _range(values: Sequence[float], zero: bool, margin: float = 0.03) -> tuple[float, float]:
    """Axis limits around all finite values, and around zero if `zero`, with a margin."""
    finite = [value for value in values if math.isfinite(value)] + [0.0] * zero
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = (high - low or abs(high) or 1.0) * margin
    return low - room, high + room


def _title(axes: Axes, title: str, note: str) -> None:
    """Write the heading above the panel, in as many lines as it has, and the note between the two."""
    frame = axes.get_window_extent()
    up = (5 + (_FONT + 2) * bool(note)) / frame.height
    axes.text(0, 1 + up, title, transform=axes.transAxes, va="bottom", weight="bold")
    small = axes.text(0, 1 + 10 / frame.height, note, transform=axes.transAxes, va="center", fontsize=_FONT - 1)
    small.set_color(_COLOUR["muted"])


def _head(panels: Sequence[Panel] | Sequence[Line]) -> float:
    """Height of headings and notes in pixels."""
    if any(panel.note for panel in panels):
        return 36.0

    return 22.0 if any(panel.title for panel in panels) else 4.0


def _rows(axes: Axes, rows: Sequence[Row], labels: bool, signed: bool) -> None:
    """Draw the rows of a panel, one below the other; those left of the axis as an arrow with their value."""
    edge = axes.get_xlim()[0]
    for at, row in enumerate(rows):
        if row.value < edge:
            text = f"← {_tick(float(f'{row.value:.3g}'), signed)}"
            axes.text(edge, at, text, color=_COLOUR[row.tone], va="center", fontsize=_FONT - 1)
        elif math.isfinite(row.value):
            _dot(axes, at, row, upright=False)

    axes.set_yticks(range(len(rows)), [wrapped(row.label) for row in rows] if labels else [""] * len(rows))
    for text_of, row in zip(axes.get_yticklabels(), rows, strict=True):
        text_of.set(color=_COLOUR["ink" if row.tone == "plain" else row.tone], fontsize=_FONT, linespacing=1.0)


def _dot(axes: Axes, at: float, row: Row, upright: bool) -> None:
    """Draw the row's dot and interval at `at`, along the vertical axis if `upright`."""
    colour = _COLOUR[row.tone]
    ends = [row.low, row.high]
    if all(map(math.isfinite, ends)) and row.low < row.high:
        axes.plot(*([at, at], ends) if upright else (ends, [at, at]), color=colour, linewidth=1.6, zorder=2)

    face = colour if row.filled else _COLOUR["card"]
    place = ([at], [row.value]) if upright else ([row.value], [at])
    axes.plot(*place, "o", color=face, markeredgecolor=colour, markeredgewidth=1.6, markersize=6, zorder=3)


def _number_ticks(axis: Any, room: float, signed: bool = False, integer: bool = False) -> None:
    """Set as many ticks as fit into `room` pixels."""
    FuncFormatter = require("matplotlib.ticker").FuncFormatter
    MaxNLocator = require("matplotlib.ticker").MaxNLocator

    axis.set_major_locator(MaxNLocator(max(2, int(room // 45)), integer=integer, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, signed)))


def _tick(value: float, signed: bool = False) -> str:
    if abs(value) < 1e-9:
        return "0"

    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def _log_ticks(axes: Axes) -> None:
    """Set ticks at powers of ten, and at 2 and 5 times them where the range is small."""
    FixedLocator = require("matplotlib.ticker").FixedLocator
    FuncFormatter = require("matplotlib.ticker").FuncFormatter
    NullLocator = require("matplotlib.ticker").NullLocator

    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    axes.xaxis.set_major_locator(
        FixedLocator([s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _below(figure: Figure, text: str, left: float) -> None:
    """Write the label of the horizontal axis below all panels."""
    height = figure.get_figheight() * 72
    figure.text(left / WIDTH, 8 / height, text, color=_COLOUR["muted"], va="center")


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write each point's label near it, without overlaps between labels or with points as far as possible.

    A greedy search: labels choose their places one after the other, in three rounds. The best of several orders is
    drawn.
    """
    at = np.array([axes.transData.transform((point.x, point.row.value)) for point in points])
    ends = [[v if math.isfinite(v) else p.row.value for v in (p.row.low, p.row.high)] for p in points]
    upright = [[axes.transData.transform((p.x, end))[1] for end in pair] for p, pair in zip(points, ends, strict=True)]
    marks = [np.hstack([at - 5, at + 5])]
    marks.append(np.array([(x - 2, low, x + 2, high) for (x, _), (low, high) in zip(at, upright, strict=True)]))
    sizes = np.array([_extent(figure, wrapped(point.row.label)) for point in points])
    places, far = _places()
    boxes = _label_boxes(at[:, None], places, far, sizes[:, None])
    frame = axes.get_window_extent()
    outside = (boxes[..., 0] < frame.x0 - 40) | (boxes[..., 2] > frame.x1 + 8)
    outside |= (boxes[..., 1] < frame.y0) | (boxes[..., 3] > frame.y1 + 4)
    cost = far / 10 + _overlaps(boxes, np.concatenate(marks)) + 1e6 * outside  # before labels meet other labels
    orders = [np.lexsort((at[:, 0], -at[:, 1])), np.lexsort((at[:, 1], at[:, 0])), np.lexsort((at[:, 1], -at[:, 0]))]
    _, chosen = min((_greedy_places(boxes, cost, order) for order in orders), key=lambda outcome: outcome[0])

    for n, point in enumerate(points):
        _write_label(axes, point.row, at[n], boxes[n, chosen[n]], bool(far[chosen[n]] > 12))


def _greedy_places(boxes: Float, cost: Float, order: NDArray[np.int64]) -> tuple[float, list[int]]:
    """Total cost and chosen place of each label when they choose in this order, in three rounds."""
    chosen = np.full(len(boxes), -1)
    total = 0.0

    for _ in range(3):
        total = 0.0
        for n in order:
            others = [m for m in order if m != n and chosen[m] >= 0]
            with_others = cost[n] + _overlaps(boxes[n], boxes[others, chosen[others]]) if others else cost[n]
            chosen[n] = with_others.argmin()
            total += float(with_others.min())

    return total, chosen.tolist()


def _places() -> tuple[Float, Float]:
    """Directions (places, 2) and distances in pixels (places,) from a point to its label, the best first."""
    angles = np.radians([0, 180, 35, -35, 145, -145, 65, -65, 115, -115, 90, -90])
    distances = np.array([9.0, 14, 22, 32, 44, 60, 80, 100])
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    return np.tile(directions, (len(distances), 1)), np.repeat(distances, len(angles))


def _label_boxes(at: Float, places: Float, far: Float, sizes: Float) -> Float:
    """(points, places, 4) left, bottom, right and top of each label in pixels, its nearest edge at each place."""
    beside = np.where(np.abs(places) > [0.3, 0.8], np.sign(places), 0)
    centre = at + places * far[:, None] + beside * sizes / 2
    return np.concatenate([centre - sizes / 2, centre + sizes / 2], axis=-1)


def _overlaps(boxes: Float, others: Float) -> Float:
    """(...,) total overlap of each box (..., 4) with the others (n, 4), plus a constant per overlapping box."""
    shared = np.minimum(boxes[..., None, 2:], others[:, 2:]) - np.maximum(boxes[..., None, :2], others[:, :2])
    wide, tall = shared[..., 0] + 2, shared[..., 1] + 3
    return np.asarray(np.where((wide > 0) & (tall > 0), wide * tall + 20, 0.0).sum(axis=-1))


def _write_label(axes: Axes, row: Row, point: Float, box: Float, far: bool) -> None:
    """Write the label into its box, aligned to the side that faces the point, with a line to it if it is far."""
    x = float(point[0])
    if far:
        near = np.clip(point, np.add(box[:2], (0, 2)), np.subtract(box[2:], (0, 2)))
        ends = axes.transData.inverted().transform([point, near])
        axes.plot(ends[:, 0], ends[:, 1], color=_COLOUR["muted"], linewidth=0.7, zorder=1)

    side = "left" if box[0] >= x else "right" if box[2] <= x else "center"
    edge = {"left": box[0], "right": box[2], "center": (box[0] + box[2]) / 2}[side]
    place = axes.transData.inverted().transform((edge, (box[1] + box[3]) / 2))
    colour = _COLOUR["ink" if row.tone == "plain" else row.tone]
    axes.text(place[0], place[1], wrapped(row.label), ha=side, va="center_baseline", color=colour, linespacing=1.0)


def _svg(figure: Figure, name: str) -> str:
    """The SVG element with the page's font and colours, unique ids, and no reference to other files."""
    mpl = require("matplotlib")

    mpl.rcParams["svg.hashsalt"] = name  # ids are hashes, and several plots share one page
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="(?:figure|axes|patch|text|matplotlib\.axis|xtick|ytick|line2d|LineCollection)_\d+"', "", svg)
    svg = svg.replace("xlink:href", "href").replace("'DejaVu Sans'", "var(--font)")
    height = figure.get_figheight() * 72
    head = f'<svg class="plot" role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH} {height:.0f}">'
    svg = re.sub(r"^<svg[^>]*>", lambda _: head, svg)

    for tone, colour in _COLOUR.items():
        svg = svg.replace(colour, f"var(--{tone})")

    return svg.strip()
