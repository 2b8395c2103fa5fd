"""Draw charts as SVG text: bars, histograms and curves, for the report's page and for Dagster.

``Chart.inline`` puts a chart into a page, whose style sheet colours it for light or dark. ``Chart.image`` makes a
document of its own for an ``<img>``, in colours that can be read on white and on black. Meaning is never in colour
alone: limits are dashed and named, values stand beside their bars, and every chart has a description in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH = 640
"""Width of a chart on the page, in pixels."""
SMALL_WIDTH = 420
"""Width of a chart in Dagster's metadata, in pixels."""

_BINS, _SMALL_BINS = 24, 18
_POINTS, _SMALL_POINTS = 600, 40  # about one a pixel; few enough for the event of a materialisation
_SMALLEST = 1e-9  # an axis that reaches less than this shows nothing and becomes an axis to 1
_LEFT, _RIGHT, _ROW, _ABOVE_BARS = 130, 90, 26, 34
_CHARACTER = 6.5  # mean width of a character of 12 pixels, in sans-serif fonts
_IMAGE_STYLE = (
    "<style>text{font:11px sans-serif;fill:#7d8590}.bar{fill:#3f83d6}"
    ".limit,.curve{fill:none;stroke:#3f83d6;stroke-width:1.5}.limit{stroke:#c8661b;stroke-dasharray:4}</style>"
)
_TOOLTIP = re.compile("<title>[^<]*</title>")


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart, from ``start`` to ``start + length`` on the value axis."""

    label: str
    start: float
    length: float


@dataclass(frozen=True)
class Limit:
    """A named value that bars or curves are compared with."""

    label: str
    at: float


@dataclass(frozen=True)
class Chart:
    """A drawing: title, its numbers in words for readers who cannot see it, size in pixels, and the SVG elements."""

    title: str
    words: str
    width: float
    height: float
    body: str

    def inline(self, name: str) -> str:
        """Make the ``<svg>`` element of a page; ``name`` is unique on the page and starts its ids."""
        return (
            f'<svg role="img" viewBox="0 0 {self.width:.0f} {self.height:.0f}" aria-labelledby="{name}-t {name}-d">'
            f'<title id="{name}-t">{escape(self.title)}</title><desc id="{name}-d">{escape(self.words)}</desc>'
            f"{self.body}</svg>"
        )

    def image(self) -> str:
        """Make a whole SVG document with its own colours; without the tooltips, which an ``<img>`` does not show."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}"'
        body = _TOOLTIP.sub("", self.body)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{_IMAGE_STYLE}{body}</svg>'


def shown(value: float) -> str:
    """Write a number for people: three significant digits, whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def bars(title: str, rows: Sequence[Bar], limits: Sequence[Limit], unit: str, width: float = WIDTH) -> Chart:
    """Draw horizontal bars with their label on the left and their length on the right; limits are dashed lines."""
    extent = _extent([*(bar.start + bar.length for bar in rows), *(limit.at for limit in limits)])
    scale = (width - _LEFT - _RIGHT) / extent
    top = _ABOVE_BARS if limits else 4
    bottom = top + _ROW * len(rows)
    parts = []
    for number, limit in enumerate(limits):
        x, y = _LEFT + limit.at * scale, 12 + 12 * (number % 2)  # two lines of labels, so that neighbours stay apart
        parts.append(
            _line("limit", (x, y + 3), (x, bottom))
            + _text(x, y, limit.label, _anchor(x, width, limit.label), "small halo")
        )
    for number, bar in enumerate(rows):
        x, y = _LEFT + bar.start * scale, top + _ROW * number
        parts.append(
            _text(_LEFT - 8, y + 16, bar.label, "end")
            + f'<rect class="bar" x="{x:.4g}" y="{y + 4}" width="{max(bar.length * scale, 1.0):.4g}" '
            + f'height="{_ROW - 8}"/>'
            + _text(width - 4, y + 16, f"{shown(bar.length)} {unit}", "end")
        )
    words = [f"{bar.label} {shown(bar.length)} {unit}" for bar in rows]
    words += [f"{limit.label} is a line at {shown(limit.at)} {unit}" for limit in limits]
    return Chart(title, "; ".join(words), width, bottom + 8, "".join(parts))


def histogram(title: str, values: NDArray[np.float64], unit: str, width: float = WIDTH) -> Chart:
    """Draw how ``values`` (``[n] float64``, finite, n > 0) are spread; whole numbers of a small range get bars each."""
    edges, inset = _edges(values)
    counts, _ = np.histogram(values, edges)
    base, area = 120, 95
    step = (width - 40) / len(counts)
    tallest = max(int(counts.max()), 1)
    rects = "".join(
        f'<rect class="bar" x="{20 + i * step:.1f}" y="{base - area * n / tallest:.1f}" width="{step * 0.86:.1f}" '
        f'height="{area * n / tallest:.1f}"><title>{shown(low + inset)} to {shown(high - inset)}: {n}</title></rect>'
        for i, (n, low, high) in enumerate(zip(counts.tolist(), edges[:-1], edges[1:], strict=True))
    )
    middle = float(np.median(values))
    x = 20 + (width - 40) * (middle - edges[0]) / (edges[-1] - edges[0])
    words = (
        f"{len(values):,} values from {shown(values.min())} to {shown(values.max())} {unit}, median {shown(middle)}, "
        f"tallest bar {tallest:,}"
    )
    median = f"median {shown(middle)}"
    labels = (
        _line("limit", (x, 18), (x, base))
        + _text(x, 12, median, _anchor(x, width, median), "small")
        + _text(20, base + 16, shown(edges[0] + inset), "start", "small")
        + _text(width - 20, base + 16, f"{shown(edges[-1] - inset)} {unit}", "end", "small")
    )
    return Chart(title, words, width, base + 30, rects + labels)


def curve(
    title: str, times: NDArray[np.float64], values: NDArray[np.float64], limits: Sequence[Limit], unit: str
) -> Chart:
    """Draw a value over time, with named limits as dashed lines.

    ``times`` (seconds, ascending) and ``values`` (at least 0) are ``[n] float64``, n > 0.
    """
    height, left, right, base = 190.0, 60.0, WIDTH - 20.0, 150.0
    top = 1.05 * _extent([float(values.max()), *(limit.at for limit in limits)])
    scale = (base - 20) / top
    span = _extent([float(times[-1] - times[0])])
    parts = [
        _line("grid", (left, base - value * scale), (right, base - value * scale))
        + _text(left - 6, base - value * scale + 4, shown(value), "end", "small")
        for value in _ticks(top)
    ]
    for limit in limits:
        y = base - limit.at * scale
        parts.append(_line("limit", (left, y), (right, y)) + _text(right - 2, y - 4, limit.label, "end", "small"))
    thin_times, thin_values = thinned(times, values, _POINTS)
    parts += [
        _polyline(left + (right - left) * (thin_times - times[0]) / span, base - scale * thin_values, decimals=1),
        _text(left, base + 18, "0 s", "start", "small"),
        _text(right, base + 18, f"{shown(span)} s", "end", "small"),
        _text(4, 12, unit, "start", "small"),
    ]
    words = [f"highest {shown(float(values.max()))} {unit} over {shown(span)} seconds"]
    words += [f"{limit.label} is a line at {shown(limit.at)} {unit}" for limit in limits]
    return Chart(title, "; ".join(words), WIDTH, height, "".join(parts))


def small_histogram(
    label: str,
    values: NDArray[np.float64],
    width: float = SMALL_WIDTH / 2 - 12,
    reach: float | None = None,
    end_labels: tuple[str, str] = ("", ""),
) -> Chart:
    """Draw a histogram of ``values`` (``[n] float64``, finite, n > 0) as one outline below its label, in 300 bytes.

    With ``reach`` the axis goes from ``-reach`` to ``reach``, with ``end_labels`` below its ends and 0 between.
    """
    counts, _ = np.histogram(values, _SMALL_BINS if reach is None else _BINS + 1, (-reach, reach) if reach else None)
    step, scale = width / len(counts), 44 / max(int(counts.max()), 1)
    heights = [math.ceil(count * scale) for count in counts.tolist()]
    ends = (i for i, height in enumerate(heights) if i + 1 == len(heights) or heights[i + 1] != height)
    outline = "".join(f"V{60 - heights[i]}H{(i + 1) * step:.0f}" for i in ends)
    body = f'{_text(0, 11, label)}<path class="bar" d="M0 60{outline}V60z"/>'
    if reach is not None:
        body += (
            _text(0, 74, end_labels[0]) + _text(width / 2, 74, "0", "middle") + _text(width, 74, end_labels[1], "end")
        )
    return Chart(label, label, width, 66 if reach is None else 80, body)


def small_curve(label: str, times: NDArray[np.float64], values: NDArray[np.float64], limit: float | None) -> Chart:
    """Draw a curve below its label, in about 600 bytes; ``limit`` is a dashed line."""
    scale = 45 / _extent([float(values.max()), limit or 0.0])
    span = _extent([float(times[-1] - times[0])])
    thin_times, thin_values = thinned(times, values, _SMALL_POINTS)
    line = _polyline((thin_times - times[0]) * (SMALL_WIDTH - 4) / span, 68 - thin_values * scale, decimals=0)
    dashes = f'<path class="limit" d="M0 {68 - limit * scale:.0f}H{SMALL_WIDTH}"/>' if limit else ""
    return Chart(label, label, SMALL_WIDTH, 80, _text(0, 11, label) + dashes + line)


def grid(title: str, charts: Sequence[Chart], columns: int) -> Chart:
    """Put charts of one size into rows of ``columns``."""
    height = charts[0].height
    corners = [(SMALL_WIDTH // columns * (i % columns), height * (i // columns)) for i in range(len(charts))]
    placed = charts[0].body + "".join(
        f'<g transform="translate({x} {y:.0f})">{chart.body}</g>'
        for (x, y), chart in zip(corners[1:], charts[1:], strict=True)
    )
    words = f"{title}: {'; '.join(chart.words for chart in charts)}"
    return Chart(title, words, SMALL_WIDTH, height * math.ceil(len(charts) / columns), placed)


def thinned(
    times: NDArray[np.float64], values: NDArray[np.float64], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reduce a curve to at most ``most`` points, each the highest of the points that it stands for."""
    starts = np.unique(np.linspace(0, len(times), most, endpoint=False).astype(np.int64))
    return times[starts], np.maximum.reduceat(values, starts)


def _text(x: float, y: float, text: str, anchor: str = "start", classes: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    named = f' class="{classes}"' if classes else ""
    return f'<text{named} x="{x:.4g}" y="{y:.4g}"{where}>{escape(text)}</text>'


def _anchor(x: float, width: float, label: str) -> str:
    """Choose on which side of ``x`` a label goes, so that it stays inside the drawing."""
    return "end" if x + _CHARACTER * len(label) > width and x > width / 2 else "start"


def _line(name: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<path class="{name}" d="M{x1:.4g} {y1:.4g}L{x2:.4g} {y2:.4g}"/>'


def _polyline(x: NDArray[np.float64], y: NDArray[np.float64], decimals: int) -> str:
    points = " ".join(f"{a:.{decimals}f},{b:.{decimals}f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="curve" points="{points}"/>'


def _edges(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Choose the edges of bars, and the distance from an edge to the number that names its bar."""
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.round(values)) and high - low <= 2 * _BINS:
        return np.arange(low - 0.5, high + 1.0, 1.0), 0.5
    spread = high - low > 1e-9 * max(1.0, abs(low), abs(high))
    return np.linspace(low, high if spread else low + 1.0, _BINS + 1), 0.0


def _extent(values: Sequence[float]) -> float:
    """Find the value that an axis must reach: the largest value, or 1 if all are too small to be seen."""
    largest = max(values, default=0.0)
    return largest if largest > _SMALLEST else 1.0


def _ticks(top: float) -> list[float]:
    """Choose three to six round values from 0 up to ``top``."""
    step = 10 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if top / size <= 6)
    return [i * step for i in range(int(top / step) + 1)]
