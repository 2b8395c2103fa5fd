"""Arrange the facts of a bundle as sections of the report's page, in the order in which an operator asks.

``page.html.j2`` is the page. It needs no network, and its content security policy forbids one. A section without
facts is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ensemble_assets.common import stages
from ensemble_assets.report.charts import WIDTH, Bar, Chart, Limit, bars, curve, histogram, shown
from ensemble_assets.report.facts import Facts, Memory, Stage

Cell = str | float | None

_RATIOS = {
    "vs_sla": "Whole run over the plain engine's dense stage",
    "vs_own_dense": "Without the export: dense, sparse, fusion and rerank over this run's dense stage",
}
_PHONE_COLUMNS = 3
"""Columns that fit into 390 pixels, whatever is in them."""
_COVERAGE = {"total": "chunks", "available": "with a sparse vector", "coverage_ratio": "coverage"}


@dataclass(frozen=True)
class Table:
    """A table with a caption; missing cells are None."""

    caption: str
    names: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    @property
    def has_many_columns(self) -> bool:
        """Whether a phone is too narrow for it, so that each row becomes a list there."""
        return len(self.names) > _PHONE_COLUMNS

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are aligned to the right."""
        return [any(isinstance(row[i], (int, float)) for row in self.rows) for i in range(len(self.names))]


@dataclass(frozen=True)
class Section:
    """A part of the page: a sentence or two, charts, tables. ``side_by_side`` puts charts of half width into pairs."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default=())
    side_by_side: bool = False

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return self.title.lower().replace(" ", "-")


def page_of(facts: Facts, more: Sequence[Section] = ()) -> str:
    """Write the page that shows ``facts``, and ``more`` sections at its end."""
    # autoescape is on for every template, so no name or number can become markup
    environment = Environment(
        loader=PackageLoader("ensemble_assets", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda value: value if isinstance(value, str) else shown(value)
    sections = [*(section for make in _SECTIONS if (section := make(facts)) is not None), *more]
    return environment.get_template("page.html.j2").render(facts=facts, figures=_figures(facts), sections=sections)


def _figures(facts: Facts) -> dict[str, str]:
    seconds = sum(seconds for *_, seconds in facts.times)
    return {
        "chunks": shown(facts.chunks) if facts.chunks is not None else "not recorded",
        "stages, total": f"{shown(seconds)} s" if facts.times else "not recorded",
        "fallbacks": shown(sum(count for *_, count in facts.fallbacks)),
        "warnings": shown(max(facts.warnings, len(facts.warning_texts))),
    }


def _time(facts: Facts) -> Section | None:
    if not facts.times:
        return None
    baseline, baseline_name = facts.reference
    rows = [Bar("dense-only", 0.0, facts.baseline_seconds)] if facts.baseline_seconds else []
    rows += [Bar(*times) for times in facts.times]
    total = sum(seconds for *_, seconds in facts.times)
    text = ["Each bar starts where the stage before it ended."]
    limits = []
    reused = any(stage.reused for stage in facts.stages)
    if reused:
        text.append("Rows of an earlier run were taken over, so these seconds are compared with nothing.")
    elif baseline:
        limits = [Limit(baseline_name, baseline), *([Limit(*facts.limit)] if facts.limit else [])]
        limit = f"; the limit is {facts.limit_ratio:.2f}" if facts.limit else ""
        text.append(f"Total {total / baseline:.2f} times {baseline_name}{limit}.")
    if facts.baseline_seconds is None and not reused:
        text.append(
            "There is no limit without a stored baseline of the plain script: ensemble-assets baseline sla takes one."
        )
    text += [f"{_RATIOS[name]}: {value:.2f}." for name, value in facts.ratios.items() if not reused]
    if any((stage.wait_seconds or 0) >= 0.1 for stage in facts.stages):
        text.append("Time in which another run had the device is not counted; it is under waited.")
    chart = bars("Seconds per stage", rows, limits, "s")
    return Section("Time", " ".join(text), [chart], [_stage_table(facts.stages)])


def _stage_table(ran: Sequence[Stage]) -> Table:
    rows: list[list[Cell]] = []
    for stage in ran:
        rate = stage.tokens / stage.seconds if stage.tokens and stage.seconds else None
        status = f"{stage.status} ({stage.reason})" if stage.reason else stage.status
        rows.append(
            [
                stage.name, status, stage.seconds, stage.items, stage.reused, rate, stage.device, stage.truncated,
                stage.fallbacks, stage.wait_seconds if (stage.wait_seconds or 0) >= 0.1 else None,
            ]
        )  # fmt: skip
    names = (
        "stage", "status", "seconds", "items", "reused", "tokens/s", "device", "truncated", "fallbacks", "waited"
    )  # fmt: skip
    return Table("Stages", names, rows)


def _memory(facts: Facts) -> Section | None:
    charts = [
        curve(f"Memory over time on {device.device}", device.times, device.used / 1e9, _ceiling(facts, device), "GB")
        for device in facts.memory
    ]
    peaks = [stage for stage in facts.stages if stage.peak_bytes]
    if peaks:
        rows = [Bar(f"{stage.name} {stage.device}"[:20], 0.0, (stage.peak_bytes or 0.0) / 1e9) for stage in peaks]
        charts.append(bars("Peak per stage", rows, _ceiling(facts, *peaks), "GB"))
    if not charts:
        return None
    text = "Memory in use on each device, all programs counted on GPUs. 1 GB is 10⁹ bytes."
    return Section("Memory", text, charts)


def _ceiling(facts: Facts, *users: Memory | Stage) -> list[Limit]:
    """Make the highest memory ceiling of the devices of stages or curves a limit, in GB."""
    ceiling = max(filter(None, (facts.ceiling(user.device) for user in users)), default=None)
    return [Limit(f"ceiling {shown(ceiling / 1e9)} GB", ceiling / 1e9)] if ceiling else []


def _quality(facts: Facts) -> Section | None:
    measures = list(dict.fromkeys(name for means in facts.quality.values() for name in means))
    if not measures:
        return None
    rows: list[list[Cell]] = [
        [stages.list_title(name), *(f"{means[measure]:.4f}" if measure in means else None for measure in measures)]
        for name, means in facts.quality.items()
    ]
    first = measures[0]
    lengths = [
        Bar(stages.list_title(name), 0.0, means[first]) for name, means in facts.quality.items() if first in means
    ]
    chart = bars(f"{first} per list", lengths, (), "")
    text = _QUERIES[facts.derived] + (f" Judged by {facts.judged_by}." if facts.judged_by else "")
    return Section("Quality", text, [chart], [Table("Quality", ("list", *measures), rows)])


_QUERIES = {
    False: "Means over the judged queries.",
    True: "Means over derived probes, which are headings of chunks and easier than questions.",
}


def _scores(facts: Facts) -> Section | None:
    charts = [
        histogram(ranked.title, facts.scores[ranked.name], "", WIDTH // 2)
        for ranked in stages.LISTS
        if ranked.name in facts.scores
    ]
    text = "Scores of all candidates of all queries."
    return Section("Scores", text, charts, side_by_side=True) if charts else None


def _moves(facts: Facts) -> Section | None:
    if not len(facts.moves):
        return None
    changed, queries = facts.top_changed
    text = (
        f"{float(np.mean(facts.moves != 0)):.0%} of the scored candidates moved; the first candidate changed for "
        f"{changed:,} of {queries:,} queries. Right of 0: moved up, in ranks."
    )
    return Section("Reranking", text, [histogram("Ranks that candidates moved", facts.moves, "ranks")])


def _fallbacks(facts: Facts) -> Section | None:
    tables = []
    if facts.coverage:
        rows: list[list[Cell]] = [
            [_COVERAGE[name], f"{value:.1%}" if name == "coverage_ratio" else value]
            for name, value in facts.coverage.items()
        ]
        tables.append(Table("Sparse coverage", ("chunks", "value"), rows))
    if facts.fallbacks:
        tables.append(Table("Fallbacks", ("stage", "reason", "source", "count"), facts.fallbacks))
    text = "No fallback was recorded." if facts.stages and not facts.fallbacks else ""
    return Section("Coverage and fallbacks", text, (), tables) if text or tables else None


def _warnings(facts: Facts) -> Section | None:
    rows = [(str(number), warning) for number, warning in enumerate(facts.warning_texts, start=1)]
    return Section("Warnings", "", (), [Table("Warnings of the run", ("", "warning"), rows)]) if rows else None


def _language(facts: Facts) -> Section | None:
    texts, sampled = facts.unread
    text = f"{texts:,} of {sampled:,} sampled chunks are in a language that no dense model of this run reads. "
    return Section("Language", f"{text}The profile embedded-multilingual reads a hundred.") if texts else None


def _comparison(facts: Facts) -> Section | None:
    figures = facts.figures
    measured = {measure: None for means in facts.quality.values() for measure in means}
    further = tuple(f", {measure}" for measure in list(measured)[1:])  # the first measure says it; others are above
    rows: list[list[Cell]] = []
    for name, now in figures.items():
        if name.endswith(further):
            continue
        before, accepted = facts.previous.get(name), facts.accepted.get(name)
        if before is not None or accepted is not None:
            digits = 4 if "@" in name else 0 if name == "chunks" else 2
            change = None if before is None else f"{now - before:+.{digits}f}"
            ranked, _, figure = name.partition(", ")
            title = stages.list_title(ranked) if "@" in name else ranked
            numbers = (None if v is None else f"{v:.{digits}f}" for v in (now, before))
            rows.append([f"{title}, {figure}" if figure else name, *numbers, change])
            rows[-1].append(None if accepted is None else f"{accepted:.{digits}f}")
    if not rows:
        return None
    names = ("figure", "this run", "run before", "change", "accepted baseline")
    text = "Seconds are left out for stages that took rows over."
    return Section("Compared", text, (), [Table("This run and earlier ones", names, rows)])


def _made_with(facts: Facts) -> Section | None:
    rows = list(facts.made_with.items())
    return Section("Made with", "", (), [Table("Processor and versions", ("what", "which"), rows)]) if rows else None


def _settings(facts: Facts) -> Section | None:
    if not facts.toggles:
        return None
    caption = "Where each setting came from, the strongest layer wins"
    return Section("Settings", "", (), [Table(caption, ("option", "value", "layer", "set by"), facts.toggles)])


def _models(facts: Facts) -> Section | None:
    if not facts.models:
        return None
    return Section("Models", _TRUNCATED, (), [Table("Models", ("stage", "model", "number format"), facts.models)])


_TRUNCATED = (
    "A truncated text has more tokens than its model reads; models.windows=2 reads twice as much of a chunk. "
    "The default reranker was trained and measured with pairs cut to 160 tokens, so for it that is usual."
)

_SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    _time, _quality, _warnings, _comparison, _models, _memory, _scores, _moves, _fallbacks, _language, _settings,
    _made_with,
)  # fmt: skip
