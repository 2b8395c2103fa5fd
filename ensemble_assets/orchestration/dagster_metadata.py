"""Describe artefacts and checks to Dagster: facts, charts, tables, columns and the report of a bundle.

One rule keeps texts of chunks and queries out, and it looks at values: numbers, booleans, words of fixed tables,
hex digests and device names pass. Three keys hold names that the operator chose. Every other string is dropped and
counted under ``dropped_metadata``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import EvaluationRecord, ExportRecord
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.collection.queries import QuerySource
from ensemble_assets.common import stages
from ensemble_assets.compute.backends.choice import REASONS as BACKEND_REASONS
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.bundle.report import earlier_figures, made_with, report_path, with_own_facts, write_report
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.quality_facts import measured_quality
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.report import charts
from ensemble_assets.report.facts import Facts
from ensemble_assets.report.read_facts import read_facts
from ensemble_assets.report.small_pictures import small_pictures
from ensemble_assets.retrieval.quality_verdicts import GATED_MEASURE
from ensemble_assets.settings import options
from ensemble_assets.telemetry.allowed_names import FIELDS, OUTCOMES, REASONS, SOURCES
from ensemble_assets.telemetry.allowed_values import Scalar, plain_scalar
from ensemble_assets.telemetry.ids import public_name

DROPPED = "dropped_metadata"
NAMES = frozenset({"alias", "model", "collection_in_qdrant"})
"""Keys whose value the operator chose; shown as it is if it is a plain name, else as a hash."""

_WORDS = (
    "failed", "no_judgements",  # status
    "chunks", "queries", "chunks and queries", "pairs", "points", "judged queries",  # unit
    "budget_off", "no_baseline", "costs_unknown",  # why nothing limits rerank
    "torch", "openvino", "int8",  # backend, precision
    "terms-of-this-collection",  # index space
    "derived probes",  # where judgements come from
)  # fmt: skip
_DIGEST = re.compile(r"(vocabulary-)?([0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})", re.ASCII)
_KEY = re.compile(r"(dagster/)?[a-z][a-z0-9_]{0,63}", re.ASCII)
_MEASURE = re.compile(r"(nDCG|MRR|recall|MAP)(@\d{1,4})?", re.ASCII)

Cell = str | int | float | bool | None


def admitted_metadata(facts: Mapping[str, object], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the facts of a step that Dagster may show, and add the pictures, which hold no texts.

    A fact of None is left out. Every refused fact is counted as ``dropped_metadata``.
    """
    given = {name: value for name, value in facts.items() if value is not None}
    shown = {name: _admitted(name, value) for name, value in given.items() if _is_key(name)}
    passed = {name: value for name, value in shown.items() if value is not None}
    drawn = {name: picture for name, picture in pictures.items() if _is_key(name) and isinstance(picture, _PICTURES)}
    dropped = len(given) + len(pictures) - len(passed) - len(drawn)
    return {**passed, **drawn, **({DROPPED: dropped} if dropped else {})}


_PLOTTED = (
    "dagster/row_count", "wall_seconds", "tokens_per_second", "reused", "truncated", "peak_bytes", "fallback_count",
    "coverage_ratio", "reached_depth", "skipped", "texts_cut", "bytes",
)  # fmt: skip
"""Figures that Dagster plots over time, each in a chart of its own. All others stand in one table."""

PROBES = "probes "
"""Start of the name of a figure that derived probes gave, so that it is no point on the line of real judgements."""


def described(record: Record, rows: int, pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a stage's record to Dagster: figures to plot, pictures, and a table with all the rest."""
    facts: dict[str, Scalar] = {"dagster/row_count": rows, **record.scalars()}
    facts = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}
    passed = admitted_metadata(facts, pictures)
    start = PROBES if isinstance(record, EvaluationRecord) and not record.judged else ""
    gated = {
        f"{ranked} {GATED_MEASURE}": f"{start}{stages.list_title(ranked)} {GATED_MEASURE}"
        for ranked in stages.list_names()
    }
    names = {name: gated.get(name, name) for name in (*_PLOTTED, *gated, *pictures, DROPPED) if name in passed}
    rest = [{"fact": name, "value": str(value)} for name, value in passed.items() if name not in names]
    return {**{shown: passed[name] for name, shown in names.items()}, "facts": table(rest, len(rest))}


_PICTURES = (dg.MarkdownMetadataValue, dg.TableMetadataValue, dg.PathMetadataValue, dg.TableSchema)


def _is_key(name: str) -> bool:
    """Say whether ``name`` is written as this program writes keys: ``snake_case``, ``MAP`` or ``<list> MAP``."""
    ranked, _, measure = name.rpartition(" ")
    of_list = ranked in ("", *stages.list_names()) and _MEASURE.fullmatch(measure)
    return _KEY.fullmatch(name) is not None or bool(of_list)


def _admitted(name: str, value: object) -> Scalar | None:
    if not isinstance(value, str):
        return plain_scalar(value)
    if name in NAMES:
        return public_name(value)
    words = all(part in _fixed_words() for part in value.split(","))
    passes = words or _DIGEST.fullmatch(value) or FIELDS["device"].check(value, {}) is not None
    return value if passes else None


@lru_cache(maxsize=1)
def _fixed_words() -> frozenset[str]:
    """Collect the words that stages, settings and telemetry choose their values from."""
    choices = (choice for option in options().values() for choice in option.choices)
    names = (name for stage in stages.PIPELINE for name in (stage.name, stage.asset))
    tables = (OUTCOMES, REASONS, SOURCES, BACKEND_REASONS, get_args(QuerySource), choices, names, _WORDS)
    return frozenset(word for table in tables for word in table if word)


def picture(chart: charts.Chart) -> dg.MetadataValue:
    """Wrap a chart as Markdown; its words are read out in place of the drawing."""
    encoded = base64.b64encode(chart.image().encode()).decode()
    words = chart.words if chart.words.startswith(chart.title) else f"{chart.title}: {chart.words}"
    return dg.MetadataValue.md(f"![{words}](data:image/svg+xml;base64,{encoded})")


def histogram(values: NDArray[np.floating | np.integer], title: str, unit: str) -> dg.MetadataValue:
    """Draw a histogram of the finite values."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return dg.MetadataValue.md(f"{title}: no values")
    return picture(charts.histogram(title, finite, unit, charts.SMALL_WIDTH))


def bars(names: Sequence[str], values: Sequence[float], title: str, unit: str) -> dg.MetadataValue:
    """Draw one bar per name."""
    rows = [charts.Bar(name, 0.0, value) for name, value in zip(names, values, strict=True)]
    return picture(charts.bars(title, rows, (), unit, charts.SMALL_WIDTH))


def table(rows: Sequence[Mapping[str, Cell]], limit: int = 20) -> dg.MetadataValue:
    """Make a table of at most ``limit`` rows; a sentence where there are none."""
    if not rows:
        return dg.MetadataValue.md("nothing to report")
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows[:limit]])


def figures(numbers: Mapping[str, object]) -> dict[str, dg.MetadataValue]:
    """Give the figures of a check as one table: Dagster plots single numbers, and joins those of all collections."""
    rows = [{"figure": name, "value": str(value)} for name, value in admitted_metadata(numbers, {}).items()]
    return {"figures": table(rows, len(rows))} if rows else {}


def lists_by_measures(means: Mapping[str, Mapping[str, float]]) -> list[dict[str, Cell]]:
    """Give one row per ranked list, under the title that people know it by, and one column per measure."""
    return [
        {"list": stages.list_title(name), **{measure: round(mean, 4) for measure, mean in measures.items()}}
        for name, measures in means.items()
    ]


def column_metadata(asset: str, artefact: Artefact) -> dict[str, Any]:
    """Describe the columns of an artefact's main frame; nothing for an artefact of arrays or files alone."""
    frame = next((stage.main_frame for stage in stages.PIPELINE if stage.asset == asset), "")
    if not frame or not artefact.has(frame):
        return {}
    columns: Mapping[str, str] = artefact.index["files"][f"{frame}.parquet"]["columns"]
    schema = dg.TableSchema([dg.TableColumn(name, dtype) for name, dtype in columns.items()])
    return {"dagster/column_schema": schema}


def report_metadata(
    run: StageRun, bundle: Path, upstream: Upstream, record: ExportRecord
) -> tuple[ExportRecord, dict[str, dg.MetadataValue]]:
    """Write the report of a bundle that was just exported, and show its path, charts and tables.

    The record that comes back has the figures that the next report is compared with.
    """
    artefacts = upstream.by_stage()
    current = run.span.record() if run.span is not None else None
    candidates = artefacts["fusion"].frame("candidates")
    quality = measured_quality(open_store(run.settings), run.collection, artefacts)
    facts = read_facts(bundle, run.telemetry.journal_path, candidates, quality, current)
    record = replace(record, figures=facts.figures, previous=earlier_figures(run), made_with=made_with())
    facts = with_own_facts(facts, bundle, record, run.settings)
    where: dg.MetadataValue
    try:
        where = dg.MetadataValue.path(str(write_report(facts, report_path(bundle))))
    except OSError as error:  # the bundle is whole and in place; a page about it must not fail it
        where = dg.MetadataValue.md(f"not written ({error.strerror}); ensemble-assets report makes it later")
    drawings = {name: picture(chart) for name, chart in small_pictures(facts).items()}
    return record, {"run_report": where, **drawings, **_report_tables(facts)}


def _report_tables(facts: Facts) -> dict[str, dg.MetadataValue]:
    rows: dict[str, list[dict[str, Cell]]] = {
        "fallback_reasons": [
            dict(zip(("stage", "reason", "source", "count"), row, strict=True)) for row in facts.fallbacks
        ],
        "toggles": [dict(zip(("option", "value", "layer", "set by"), row, strict=True)) for row in facts.toggles],
        "coverage": [dict(facts.coverage)] if facts.coverage else [],
        "quality": lists_by_measures(facts.quality),
    }
    return {name: table(listed) for name, listed in rows.items() if listed or name == "fallback_reasons"}
