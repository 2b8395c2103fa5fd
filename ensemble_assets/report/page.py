"""The report's page: sections made from the facts of a bundle, in the order in which an operator asks.

Each section is a function from facts to HTML; a section without facts is left out. Nothing on the page needs a network,
and its content security policy forbids one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import polars as pl

from ensemble_assets.report.charts import WIDTH, Bar, Limit, curve, histogram, horizontal_bars, shown
from ensemble_assets.report.facts import Facts, Memory, Stage, read_facts
from ensemble_assets.report.style import STYLE
from ensemble_assets.telemetry.span_record import SpanRecord

Cell = str | float | None
_RATIOS = {
    "vs_sla": "Whole run over the plain engine's dense stage",
    "vs_own_dense": "All stages over this run's dense stage",
}
_LISTS = {"dense": "Dense", "sparse": "Sparse", "fused": "Fused", "rerank": "Reranker"}


def build_report(
    bundle: Path,
    *,
    journal: Path | None = None,
    candidates: pl.DataFrame | None = None,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    current: SpanRecord | None = None,
) -> str:
    """One self-contained HTML page about a bundle.

    Args:
        bundle: folder with ``processing_summary.json``; its ``<prefix>_rerank.jsonl`` is read if it is there.
        journal: the run's telemetry journal, for memory over time.
        candidates: the run's ``CANDIDATES`` frame, for dense and sparse scores; only score columns are looked at.
        quality: mean per run and measure; otherwise the manifest's section ``quality``.
        current: the span of the export that asks for the report and is not over yet.

    Raises:
        ArtefactError: if the folder has no readable manifest.
    """
    return page_of(read_facts(bundle, journal, candidates, quality, current))


def page_of(facts: Facts) -> str:
    """The page that shows ``facts``."""
    made = {title: section(facts) for title, section in _SECTIONS.items()}
    present = {title: html for title, html in made.items() if html}
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in present)
    body = "".join(
        f'<section aria-labelledby="{_anchor(title)}"><h2 id="{_anchor(title)}">{title}</h2>{html}</section>'
        for title, html in present.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(facts.collection)}: retrieval run</title><style>{STYLE}</style></head>"
        f'<body><header>{_head(facts)}<nav aria-label="Sections">{links}</nav></header><main>{body}</main></body>'
        "</html>\n"
    )


def _head(facts: Facts) -> str:
    ran = [stage for stage in facts.stages if stage.seconds is not None]
    seconds = sum(stage.seconds or 0.0 for stage in ran)
    fell_back = sum(number for *_, number in facts.fallbacks)
    figures: dict[str, str] = {
        "chunks": shown(facts.chunks) if facts.chunks is not None else "not recorded",
        "stages, total": f"{shown(seconds)} s" if ran else "not recorded",
        "fallbacks": shown(fell_back),
        "warnings in the manifest": shown(facts.warnings),
    }
    written = f"Written {escape(facts.generated_at.replace('T', ' '))}. " if facts.generated_at else ""
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f"<h1>{escape(facts.collection)}</h1><p>{written}Bundle {escape(facts.schema)}.</p><dl>{cells}</dl>"


def _times(facts: Facts) -> str:
    ran = [stage for stage in facts.stages if stage.seconds is not None]
    if not ran:
        return ""
    baseline, named = facts.reference
    stored = facts.baseline_seconds is not None
    bars = [Bar("dense-only", 0.0, baseline)] if stored and baseline else []
    begin = 0.0
    for stage in ran:
        bars.append(Bar(stage.name, begin, stage.seconds or 0.0))
        begin += stage.seconds or 0.0
    limits = []
    if baseline:
        beyond = f"{100 * (facts.limit_ratio - 1):+.0f} %"
        limits = [Limit(named, baseline), Limit(f"{named} {beyond}", baseline * facts.limit_ratio)]
    told = "Each bar starts where the stage before it ended. "
    if baseline:
        told += f"Total {begin / baseline:.2f} times {named}; the limit is {facts.limit_ratio:.2f}. "
    if not stored:
        told += "No stored baseline of the plain engine: compared with the dense stage of the same run. "
    told += " ".join(f"{_RATIOS[name]}: {value:.2f}." for name, value in facts.ratios.items())
    picture = horizontal_bars("times", "Seconds per stage", bars, limits, "s")
    return f"<p>{told}</p>{picture}{_stage_table(facts.stages)}"


def _stage_table(stages: Sequence[Stage]) -> str:
    rows: list[list[Cell]] = []
    for stage in stages:
        rate = stage.tokens / stage.seconds if stage.tokens and stage.seconds else None
        state = f"{stage.status} ({stage.reason})" if stage.reason else stage.status
        rows.append(
            [stage.name, state, stage.seconds, stage.items, rate, stage.device, stage.truncated, stage.fallbacks]
        )
    names = ("stage", "status", "seconds", "items", "tokens/s", "device", "truncated", "fallbacks")
    return table("Stages", names, rows)


def _memory(facts: Facts) -> str:
    parts = [_memory_curve(number, memory, facts.ceiling(memory.device)) for number, memory in enumerate(facts.memory)]
    peaks = [stage for stage in facts.stages if stage.peak_bytes]
    if peaks:
        bars = [Bar(f"{stage.name} {stage.device}"[:20], 0.0, (stage.peak_bytes or 0.0) / 1e9) for stage in peaks]
        limit = max(filter(None, (facts.ceiling(stage.device) for stage in peaks)), default=None)
        limits = [Limit(f"ceiling {shown(limit / 1e9)} GB", limit / 1e9)] if limit else []
        parts.append(f"<h3>Peak per stage</h3>{horizontal_bars('peaks', 'Peak memory per stage', bars, limits, 'GB')}")
    if not parts:
        return ""
    return "<p>Memory in use on each device, all programs counted on GPUs. 1 GB is 10⁹ bytes.</p>" + "".join(parts)


def _memory_curve(number: int, memory: Memory, ceiling: float | None) -> str:
    limits = [Limit(f"ceiling {shown(ceiling / 1e9)} GB", ceiling / 1e9)] if ceiling else []
    title = f"Memory over time on {memory.device}"
    picture = curve(f"memory{number}", title, memory.times, memory.used / 1e9, limits, "GB")
    return f"<h3>{escape(title)}</h3>{picture}"


def _scores(facts: Facts) -> str:
    pictures = [
        f"<div><h3>{title}</h3>"
        f"{histogram(f'scores-{name}', f'{title} scores', facts.scores[name], '', WIDTH // 2)}</div>"
        for name, title in _LISTS.items()
        if name in facts.scores
    ]
    told = "<p>Scores of all candidates of all queries.</p>"
    return f'{told}<div class="pair">{"".join(pictures)}</div>' if pictures else ""


def _moves(facts: Facts) -> str:
    if not len(facts.moves):
        return ""
    changed, queries = facts.top_changed
    moved = float(np.mean(facts.moves != 0))
    told = (
        f"{moved:.0%} of the scored candidates moved; the first candidate changed for {changed:,} of {queries:,} "
        "queries. Right of 0: moved up, in ranks."
    )
    picture = histogram("moves", "Ranks that candidates moved", facts.moves, "ranks")
    return f"<p>{told}</p>{picture}"


def _fallbacks(facts: Facts) -> str:
    parts = []
    if facts.coverage:
        named = {"total": "chunks", "available": "with a sparse vector", "coverage_ratio": "coverage"}
        rows: list[list[Cell]] = [
            [named[name], f"{value:.1%}" if name == "coverage_ratio" else value]
            for name, value in facts.coverage.items()
        ]
        parts.append(table("Sparse coverage", ("what", "value"), rows))
    if facts.fallbacks:
        listed: list[list[Cell]] = [list(row) for row in facts.fallbacks]
        parts.append(table("Fallbacks", ("stage", "reason", "source", "count"), listed))
    elif facts.stages:
        parts.append("<p>No fallback was recorded.</p>")
    return "".join(parts)


def _toggles(facts: Facts) -> str:
    rows: list[list[Cell]] = [list(row) for row in facts.toggles]
    names = ("option", "value", "layer", "set by")
    return table("Where each setting came from, the strongest layer wins", names, rows) if rows else ""


def _quality(facts: Facts) -> str:
    if not any(facts.quality.values()):
        return ""
    measures = list(dict.fromkeys(name for values in facts.quality.values() for name in values))
    rows: list[list[Cell]] = [
        [run, *(f"{values[name]:.4f}" if name in values else None for name in measures)]
        for run, values in facts.quality.items()
    ]
    first = measures[0]
    bars = [Bar(run, 0.0, values[first]) for run, values in facts.quality.items() if first in values]
    picture = horizontal_bars("quality", f"{first} per list", bars, (), "")
    heading = f"<h3>{escape(first)} per list</h3>"
    return f"<p>Means over the judged queries.</p>{heading}{picture}{table('Quality', ('list', *measures), rows)}"


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with a caption and header cells; numbers to the right, missing values as a dash."""
    numeric = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(names))]
    marks = [' class="n"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{mark}>{escape(name)}</th>' for name, mark in zip(names, marks, strict=True))
    body = "".join(f"<tr>{_row(row, marks)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[Cell], marks: Sequence[str]) -> str:
    cells = [escape(value) if isinstance(value, str) else shown(value) if value is not None else "" for value in row]
    first, *others = [cell or "-" for cell in cells]
    return f'<th scope="row">{first}</th>' + "".join(
        f"<td{mark}>{cell}</td>" for cell, mark in zip(others, marks[1:], strict=True)
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


_SECTIONS: Mapping[str, Callable[[Facts], str]] = {
    "Time": _times,
    "Memory": _memory,
    "Quality": _quality,
    "Scores": _scores,
    "Reranking": _moves,
    "Coverage and fallbacks": _fallbacks,
    "Settings": _toggles,
}
