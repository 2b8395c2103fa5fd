"""Draw the report's figures small enough for a Dagster materialisation: one or two kB each."""

from __future__ import annotations

import numpy as np

from ensemble_assets.common import stages
from ensemble_assets.report.charts import (
    SMALL_WIDTH,
    Bar,
    Chart,
    Limit,
    bars,
    grid,
    shown,
    small_curve,
    small_histogram,
)
from ensemble_assets.report.facts import Facts

_MOST_DEVICES = 4
"""Devices whose memory is drawn; more would not fit."""


def small_pictures(facts: Facts) -> dict[str, Chart]:
    """Draw stage times, memory, scores and rank moves by name; charts without facts are left out."""
    pictures = {
        "stage_times": _times(facts),
        "memory_over_time": _memory(facts),
        "scores": _scores(facts),
        "rerank_moves": _moves(facts),
    }
    return {name: chart for name, chart in pictures.items() if chart is not None}


def _times(facts: Facts) -> Chart | None:
    limits = [Limit(facts.limit_name, facts.limit[1])] if facts.limit else []
    rows = [Bar(*times) for times in facts.times]
    return bars("Seconds per stage", rows, limits, "s", SMALL_WIDTH) if rows else None


def _memory(facts: Facts) -> Chart | None:
    curves = []
    for memory in facts.memory[:_MOST_DEVICES]:
        ceiling = facts.ceiling(memory.device)
        below = f", ceiling {shown(ceiling / 1e9)} GB (dashed)" if ceiling else ""
        label = f"{memory.device}: at most {shown(float(memory.used.max()) / 1e9)} GB{below}"
        curves.append(small_curve(label, memory.times, memory.used, ceiling))
    return grid("Memory over time", curves, 1) if curves else None


def _scores(facts: Facts) -> Chart | None:
    charts = []
    for ranked in stages.LISTS:
        if ranked.name in facts.scores:
            values = facts.scores[ranked.name]
            low, middle, high = (shown(float(value)) for value in np.quantile(values, (0, 0.5, 1)))
            charts.append(small_histogram(f"{ranked.title}: {low} to {high}, median {middle}", values))
    return grid("Scores", charts, 2) if charts else None


def _moves(facts: Facts) -> Chart | None:
    if not len(facts.moves):
        return None
    changed, queries = facts.top_changed
    moved = f"{float(np.mean(facts.moves != 0)):.0%} of the scored candidates moved"
    label = f"{moved}, the first one changed for {changed:,} of {queries:,} queries"
    widest = max(float(np.abs(facts.moves).max()), 1.0)
    ends = (f"down {shown(widest)} ranks", f"up {shown(widest)}")
    return grid("Ranks that candidates moved", [small_histogram(label, facts.moves, SMALL_WIDTH, widest, ends)], 1)
