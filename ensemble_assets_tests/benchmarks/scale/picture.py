"""Draw seconds of the processor and memory per stage over the number of chunks, both in logarithmic scales, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP, _LEGEND = 360, 300, 60, 40, 80, 130
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#000000",
    "#882255",
    "#44aa99",
)
_PANELS = (("processor_seconds", "seconds of the processor"), ("peak_mb", "peak resident memory, MB"))


def draw(results: Sequence[Mapping[str, Any]]) -> str:
    """Give an SVG of two panels with one line a stage; ``results`` are objects that the benchmark printed."""
    rows = sorted(results, key=lambda result: int(result["chunks"]))
    stages = list(dict.fromkeys(stage for result in rows for stage in result["stages"]))
    colours = {stage: _COLOURS[number % len(_COLOURS)] for number, stage in enumerate(stages)}
    width = _LEFT + len(_PANELS) * (_WIDTH + _GAP) + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT + 2 * _TOP + 10}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{_HEIGHT + 2 * _TOP + 10}" fill="white"/>',
    ]
    for number, (figure, title) in enumerate(_PANELS):
        parts += _panel(rows, figure, title, _LEFT + number * (_WIDTH + _GAP), colours)
    for number, (stage, colour) in enumerate(colours.items()):
        x, y = _LEFT + len(_PANELS) * (_WIDTH + _GAP) - 20, _TOP + 14 * number
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="4" fill="{colour}"/><text x="{x + 20}" y="{y + 6}">')
        parts.append(f"{stage}</text>")
    return "".join([*parts, "</svg>\n"])


def _panel(
    rows: Sequence[Mapping[str, Any]], figure: str, title: str, left: int, colours: Mapping[str, str]
) -> list[str]:
    points = {
        stage: [(int(row["chunks"]), max(0.01, row["stages"][stage][figure])) for row in rows if stage in row["stages"]]
        for stage in colours
    }
    sizes = [size for line in points.values() for size, _ in line]
    values = [value for line in points.values() for _, value in line]
    across = _Scale(min(sizes), max(sizes), left, left + _WIDTH)
    up = _Scale(min(values), max(values), _TOP + _HEIGHT, _TOP)
    middle = left + _WIDTH // 2
    parts = [f'<text x="{middle}" y="{_TOP - 16}" text-anchor="middle" font-size="14">{title}</text>']
    for power in across.powers():
        x = across(power)
        parts.append(f'<path d="M{x} {_TOP}V{_TOP + _HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{power:,.0f}</text>')
    for power in up.powers():
        y = up(power)
        parts.append(f'<path d="M{left} {y}H{left + _WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{power:g}</text>')
    parts.append(f'<text x="{middle}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">chunks</text>')
    for stage, line in points.items():
        path = " ".join(f"{across(size)},{up(value)}" for size, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[stage]}" stroke-width="2"/>')
        dots = (f'<circle cx="{across(size)}" cy="{up(value)}" r="3" fill="{colours[stage]}"/>' for size, value in line)
        parts += dots
    return parts


class _Scale:
    """A logarithmic scale from whole powers of ten around two values to two places."""

    def __init__(self, least: float, most: float, first: float, last: float) -> None:
        self._least = math.floor(math.log10(least))
        self._most = max(self._least + 1, math.ceil(math.log10(most)))
        self._first, self._last = first, last

    def powers(self) -> list[float]:
        """Give the powers of ten in it."""
        return [10.0**power for power in range(self._least, self._most + 1)]

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._least) / (self._most - self._least)
        return round(self._first + share * (self._last - self._first), 1)
