"""Inline SVG figures drawn by small pure functions: one colour, direct labels, a title and a description for readers.

Colours are CSS classes of the page (``bar``, ``curve``, ``limit``, ``grid``), so a figure follows light and dark.
Meaning is never in colour alone: limits are dashed and named, values stand beside their bars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH = 640
_BINS = 24
_SMALLEST = 1e-9
_LEFT, _RIGHT, _ROW, _ABOVE_BARS = 130, 90, 26, 34


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: from ``start`` to ``start + length`` on the value axis."""

    label: str
    start: float
    length: float


@dataclass(frozen=True)
class Limit:
    """A named value that bars or curves are compared with."""

    label: str
    at: float


def figure(name: str, title: str, description: str, size: tuple[float, float], body: str) -> str:
    """The frame of every picture: accessible name and description, ``size`` (width, height), scales to its place."""
    return (
        f'<svg role="img" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>{body}</svg>'
    )


def shown(value: float) -> str:
    """A number for people: three significant digits, whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def horizontal_bars(name: str, title: str, bars: Sequence[Bar], limits: Sequence[Limit], unit: str) -> str:
    """Rows with their label on the left and their length on the right; limits are dashed vertical lines."""
    extent = _extent([*(bar.start + bar.length for bar in bars), *(limit.at for limit in limits)])
    scale = (WIDTH - _LEFT - _RIGHT) / extent
    top = _ABOVE_BARS if limits else 4
    bottom = top + _ROW * len(bars)
    parts = [_limit_line(limit, _LEFT + limit.at * scale, bottom, row) for row, limit in enumerate(limits)]
    for row, bar in enumerate(bars):
        x, y = _LEFT + bar.start * scale, top + _ROW * row
        width = max(bar.length * scale, 1.0)
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect class="bar" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}"/>'
            f'<text x="{WIDTH - 4}" y="{y + 16}" text-anchor="end">{shown(bar.length)} {escape(unit)}</text>'
        )
    told = [f"{bar.label} {shown(bar.length)} {unit}" for bar in bars]
    told += [f"{limit.label} at {shown(limit.at)} {unit}" for limit in limits]
    return figure(name, title, "; ".join(told), (WIDTH, bottom + 8), "".join(parts))


def _limit_line(limit: Limit, x: float, bottom: float, row: int) -> str:
    y = 12 + 12 * (row % 2)
    anchor = "end" if x > WIDTH * 0.7 else "start"
    return (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 3}" y2="{bottom}"/>'
        f'<text class="small halo" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(limit.label)}</text>'
    )


def histogram(name: str, title: str, values: NDArray[np.float64], unit: str, width: int = WIDTH) -> str:
    """How values are spread; whole numbers of a small range get one bar each.

    Args:
        name: unique on the page.
        title: what is counted.
        values: ``[n] float64``, finite, at least one.
        unit: of the values.
        width: of the drawing; half for two beside each other, so that letters keep their size.
    """
    edges, inset = _edges(values)
    counts, _ = np.histogram(values, edges)
    base = 120
    step = (width - 40) / len(counts)
    tallest = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect class="bar" x="{20 + i * step:.1f}" y="{base - 95 * n / tallest:.1f}" width="{step * 0.86:.1f}" '
        f'height="{95 * n / tallest:.1f}"><title>{shown(low + inset)} to {shown(high - inset)}: {n}</title></rect>'
        for i, (n, low, high) in enumerate(zip(counts.tolist(), edges[:-1], edges[1:], strict=True))
    )
    middle = float(np.median(values))
    x = 20 + (width - 40) * (middle - edges[0]) / (edges[-1] - edges[0])
    told = (
        f"{len(values):,} values from {shown(values.min())} to {shown(values.max())} {unit}, median {shown(middle)}, "
        f"tallest bar {tallest:,}"
    )
    labels = (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{base}"/>'
        f'<text class="small" x="{x:.1f}" y="12" text-anchor="middle">median {shown(middle)}</text>'
        f'<text class="small" x="20" y="{base + 16}">{shown(edges[0] + inset)}</text>'
        f'<text class="small" x="{width - 20}" y="{base + 16}" text-anchor="end">'
        f"{shown(edges[-1] - inset)} {escape(unit)}</text>"
    )
    return figure(name, title, told, (width, base + 30), bars + labels)


def _edges(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Bar edges, and how far inside them the values lie that a bar is named by (whole numbers: half)."""
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.round(values)) and high - low <= 2 * _BINS:
        return np.arange(low - 0.5, high + 1.0, 1.0), 0.5
    spread = high - low > 1e-9 * max(1.0, abs(low), abs(high))
    return np.linspace(low, high if spread else low + 1.0, _BINS + 1), 0.0


def curve(
    name: str, title: str, times: NDArray[np.float64], values: NDArray[np.float64], limits: Sequence[Limit], unit: str
) -> str:
    """A value over time with named limits.

    Args:
        name: unique on the page.
        title: what is shown.
        times: ``[n] float64`` seconds, ascending, at least one.
        values: ``[n] float64``, at least 0.
        limits: dashed horizontal lines.
        unit: of the values.
    """
    height, left, base = 190.0, 60.0, 150.0
    top = 1.05 * _extent([float(values.max()), *(limit.at for limit in limits)])
    span = _extent([float(times[-1] - times[0])])
    x = left + (WIDTH - left - 20) * (times - times[0]) / span
    y = base - (base - 20) * values / top
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="small" x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{shown(value)}</text>'
        for value, at in ((v, base - (base - 20) * v / top) for v in _ticks(top))
    )
    lines = "".join(
        f'<line class="limit" x1="{left}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="small" x="{WIDTH - 22}" y="{at - 4:.1f}" text-anchor="end">{escape(limit.label)}</text>'
        for limit, at in ((limit, base - (base - 20) * limit.at / top) for limit in limits)
    )
    axis = (
        f'<text class="small" x="{left}" y="{base + 18}">0 s</text>'
        f'<text class="small" x="{WIDTH - 20}" y="{base + 18}" text-anchor="end">{shown(span)} s</text>'
        f'<text class="small" x="4" y="12">{escape(unit)}</text>'
    )
    told = [f"highest {shown(float(values.max()))} {unit} over {shown(span)} seconds"]
    told += [f"{limit.label} at {shown(limit.at)} {unit}" for limit in limits]
    body = f'{grid}{lines}<polyline class="curve" points="{points}"/>{axis}'
    return figure(name, title, "; ".join(told), (WIDTH, height), body)


def _extent(values: Sequence[float]) -> float:
    """What the axis must reach; 1 where nothing on it can be seen."""
    largest = max(values, default=0.0)
    return largest if largest > _SMALLEST else 1.0


def _ticks(top: float) -> list[float]:
    """Three to six round values from 0 up to ``top``."""
    step = 10 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if top / size <= 6)
    return [i * step for i in range(int(top / step) + 1)]
