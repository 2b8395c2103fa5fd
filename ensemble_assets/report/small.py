"""The report's figures at a size that fits a Dagster materialisation: SVG of one or two kB each, drawn from the facts.

They stand in an ``<img>``, so they bring their own colours, which can be read on white and on black. What each shows is
told in words as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.report.charts import shown
from ensemble_assets.report.facts import Facts, Memory

_WIDTH, _LEFT, _ROW = 420, 70, 18
_POINTS, _BINS = 48, 18
_TITLES = {"dense": "dense", "sparse": "sparse", "fused": "fused", "rerank": "reranker"}
_STYLE = (
    "<style>text{font:11px sans-serif;fill:#7d8590}path,rect{fill:#3f83d6}"
    ".l{fill:none;stroke:#c8661b;stroke-width:1.5;stroke-dasharray:4 3}.c{fill:none;stroke:#3f83d6;stroke-width:1.5}"
    "</style>"
)

Drawing = tuple[str, str]
"""The SVG, and what it shows in words."""


def small_pictures(facts: Facts) -> dict[str, Drawing]:
    """By name; without those that there are no facts for."""
    made = {
        "stage_times": _times(facts),
        "memory_over_time": _memory(facts),
        "scores": _scores(facts.scores),
        "rerank_moves": _moves(facts),
    }
    return {name: drawing for name, drawing in made.items() if drawing is not None}


def _times(facts: Facts) -> Drawing | None:
    ran = [(stage.name, stage.seconds) for stage in facts.stages if stage.seconds is not None]
    if not ran:
        return None
    baseline, named = facts.reference
    total = sum(seconds for _, seconds in ran)
    limit = baseline * facts.limit_ratio if baseline else None
    scale = (_WIDTH - _LEFT - 60) / max(total, limit or 0.0, 1e-9)
    begin, rows = 0.0, []
    for number, (name, seconds) in enumerate(ran):
        x, y = _LEFT + begin * scale, 22 + _ROW * number
        rows.append(
            f'<text x="0" y="{y + 11}">{name}</text><rect x="{x:.1f}" y="{y}" width="{max(seconds * scale, 1):.1f}" '
            f'height="13"/><text x="{_WIDTH}" y="{y + 11}" text-anchor="end">{shown(seconds)} s</text>'
        )
        begin += seconds
    height = 26 + _ROW * len(ran)
    told = ", ".join(f"{name} {shown(seconds)} s" for name, seconds in ran)
    if limit:
        x = _LEFT + limit * scale
        percent = f"{100 * (facts.limit_ratio - 1):+.0f} %"
        anchor = "end" if x > _WIDTH * 0.6 else "start"
        rows.append(
            f'<path class="l" d="M{x:.1f} 16V{height - 4}"/>'
            f'<text x="{x:.1f}" y="11" text-anchor="{anchor}">{named} {percent}</text>'
        )
        told += f"; limit {shown(limit)} s, {named} {percent}"
    return _frame(height, rows), f"Seconds per stage: {told}"


def _memory(facts: Facts) -> Drawing | None:
    if not facts.memory:
        return None
    parts, told = [], []
    for number, memory in enumerate(facts.memory[:4]):
        parts.append(_curve(memory, facts.ceiling(memory.device), 80 * number))
        told.append(f"{memory.device} at most {shown(float(memory.used.max()) / 1e9)} GB")
    ceiling = facts.ceiling(facts.memory[0].device)
    told += [f"ceiling {shown(ceiling / 1e9)} GB"] if ceiling else []
    return _frame(80 * len(parts), parts), f"Memory over time: {', '.join(told)}"


def _curve(memory: Memory, ceiling: float | None, top: float) -> str:
    highest = float(memory.used.max())
    scale = 45 / max(highest, ceiling or 0.0, 1.0)
    times, used = _thinned(memory.times, memory.used)
    span = max(float(times[-1] - times[0]), 1e-9)
    points = " ".join(
        f"{a:.0f},{b:.1f}"
        for a, b in zip((times - times[0]) * (_WIDTH - 4) / span, top + 68 - used * scale, strict=True)
    )
    limit = f'<path class="l" d="M0 {top + 68 - ceiling * scale:.1f}H{_WIDTH}"/>' if ceiling else ""
    below = f", ceiling {shown(ceiling / 1e9)} GB (dashed)" if ceiling else ""
    label = f"{memory.device}: at most {shown(highest / 1e9)} GB{below}, {shown(span)} s"
    return f'<text x="0" y="{top + 11}">{escape(label)}</text>{limit}<polyline class="c" points="{points}"/>'


def _thinned(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``_POINTS`` of them, each the highest of those that it stands for."""
    starts = np.unique(np.linspace(0, len(times), _POINTS, endpoint=False).astype(np.int64))
    return times[starts], np.maximum.reduceat(values, starts)


def _scores(scores: Mapping[str, NDArray[np.float64]]) -> Drawing | None:
    if not scores:
        return None
    parts, told = [], []
    for number, (name, values) in enumerate(scores.items()):
        x, y = (_WIDTH // 2) * (number % 2), 66 * (number // 2)
        low, middle, high = (shown(float(value)) for value in np.quantile(values, (0, 0.5, 1)))
        parts.append(f'<text x="{x}" y="{y + 11}">{_TITLES[name]}: {low} to {high}, median {middle}</text>')
        parts.append(_bars(np.histogram(values, _BINS)[0], x, y + 60, _WIDTH // 2 - 12))
        told.append(f"{_TITLES[name]} {low} to {high}, median {middle}")
    return _frame(66 * ((len(scores) + 1) // 2), parts), f"Scores: {'; '.join(told)}"


def _moves(facts: Facts) -> Drawing | None:
    if not len(facts.moves):
        return None
    changed, queries = facts.top_changed
    widest = max(float(np.abs(facts.moves).max()), 1.0)
    step = max(1.0, np.ceil((2 * widest + 1) / (2 * _BINS + 1)))
    edges = np.arange(-widest - 0.5, widest + 0.5 + step, step)
    counts, _ = np.histogram(facts.moves, edges)
    moved = f"{float(np.mean(facts.moves != 0)):.0%} of the scored candidates moved"
    first = f"the first one changed for {changed:,} of {queries:,} queries"
    parts = [
        f'<text x="0" y="11">{moved}, {first}</text>',
        _bars(counts, 0, 66, _WIDTH),
        f'<text x="0" y="80">down {shown(widest)} ranks</text>'
        f'<text x="{_WIDTH // 2}" y="80" text-anchor="middle">0</text>'
        f'<text x="{_WIDTH}" y="80" text-anchor="end">up {shown(widest)}</text>',
    ]
    return _frame(86, parts), f"Ranks that candidates moved: {moved}; {first}"


def _bars(counts: NDArray[np.int64], left: float, base: float, width: float) -> str:
    """A histogram as one path."""
    step, tallest = width / len(counts), max(int(counts.max()), 1)
    return f'<path d="{"".join(_bar_paths(counts, left, base, step, 44 / tallest))}"/>'


def _bar_paths(counts: NDArray[np.int64], left: float, base: float, step: float, scale: float) -> Iterator[str]:
    for number, count in enumerate(counts.tolist()):
        if count:
            x, height = left + number * step, max(round(count * scale), 1)
            yield f"M{x:.0f} {base}v-{height}h{int(step * 0.9)}v{height}z"


def _frame(height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}">{_STYLE}{"".join(parts)}</svg>'
    )
