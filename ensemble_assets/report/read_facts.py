"""Read the report's facts from a bundle: known keys of the manifest, numbers of the ranked lists, the journal.

Every part may be missing (v4.0 bundles, old manifests, stages that were off) and is then left out. Strings are shown
only if they are fixed words or plain names: an old manifest may hold a query in an unexpected place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble_assets.common import stages
from ensemble_assets.common.stage_times import LIMIT_RATIO
from ensemble_assets.export.read.bundle_reader import read_manifest
from ensemble_assets.models.registry import MODELS, PROFILES
from ensemble_assets.report.facts import Facts, Memory, Stage
from ensemble_assets.report.ranked_lists import rank_moves, ranked_lists, score_lists, top_changed
from ensemble_assets.settings import options
from ensemble_assets.telemetry.allowed_names import FIELDS
from ensemble_assets.telemetry.allowed_values import Scalar, finite_number, is_slug
from ensemble_assets.telemetry.journal import JournalContent, read_journal
from ensemble_assets.telemetry.span_record import SpanRecord

_LAYER = re.compile(r"default|config file|\.env|environment|run")
_SOURCE = re.compile(
    r"(default|earlier materialisation of the stage|--[a-z-]+|[\w.-]+\.ya?ml [a-z_.]+|run config [a-z_.]+"
    r"|environment variable [A-Z_]+( in \.env)?)",
    re.ASCII,
)
_SCHEMA = re.compile(r"v\d{1,2}\.\d{1,2}", re.ASCII)
_PUBLISHED = re.compile(
    r"((qrels?|queries|topics|test|dev|validation|valid|val|eval|train|\d{5}-of-\d{5})[-_./])+"
    r"(jsonl|ndjson|parquet|tsv|csv|txt)(\.gz|\.zst)?",
    re.ASCII | re.IGNORECASE,
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d).*", re.ASCII)
_MEASURE = re.compile(r"(nDCG|MRR|RR|MAP|AP|P|recall|R)(@\d{1,4})?", re.ASCII)


def read_facts(
    bundle: Path,
    journal: Path | None = None,
    candidates: pl.DataFrame | None = None,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    current: SpanRecord | None = None,
) -> Facts:
    """Read the facts of a bundle; ``ArtefactError`` if the folder has no readable manifest.

    Args:
        bundle: folder with ``processing_summary.json``; its ``<prefix>_rerank.jsonl`` is read if it is there.
        journal: the run's telemetry journal, for memory over time.
        candidates: the run's ``CANDIDATES`` frame, for first-stage scores; only its score columns are read.
        quality: mean per ranked list and measure; by default the manifest's section ``quality``.
        current: the span of the export that asks for the report and is not over yet.
    """
    manifest = read_manifest(bundle)
    ranked = list(ranked_lists(bundle))
    baseline = _section(manifest, "performance_baseline")
    vectors = _section(_section(manifest, "sparse_run"), "vectors")
    journalled = read_journal(journal) if journal is not None else JournalContent()
    spans = {span.span_id: span.attributes for span in journalled.spans}
    if current is not None:
        elapsed = {"latency_seconds": current.ended_at - current.started_at}
        spans[current.span_id] = {**elapsed, **current.attributes}
    warnings = manifest.get("warnings")
    unread = _section(_section(manifest, "dense_run"), "unread")
    return Facts(
        collection=word(manifest.get("collection")) or word(bundle.name) or "collection",
        generated_at=_first_match(_TIME, manifest.get("generated_at")),
        schema=_first_match(_SCHEMA, manifest.get("schema_version")) or "v4.0",
        chunks=_whole(manifest.get("chunk_count")),
        stages=tuple(_stages(manifest, spans)),
        baseline_seconds=finite_number(baseline.get("dense_only_seconds")),
        limit_ratio=finite_number(baseline.get("limit_ratio")) or LIMIT_RATIO,
        ratios=_numbers(baseline, ("vs_sla", "vs_own_dense")),
        memory=tuple(_memory(journalled)),
        scores=score_lists(ranked, candidates),
        moves=np.array([move for lists in ranked for move in rank_moves(lists)], np.float64),
        top_changed=(sum(top_changed(lists) for lists in ranked), len(ranked)),
        coverage=_numbers(vectors, ("total", "available", "coverage_ratio")),
        fallbacks=tuple(_fallbacks(manifest)),
        toggles=tuple(_toggles(manifest)),
        quality=_quality(quality if quality is not None else manifest.get("quality")),
        warnings=len(warnings) if isinstance(warnings, list) else 0,
        derived=manifest.get("query_source") == "derived",
        models=tuple(_models(manifest)),
        judged_by=_judged_by(manifest.get("query_files")),
        unread=(_whole(unread.get("texts")) or 0, _whole(unread.get("of")) or 0),
    )


def word(value: object) -> str:
    """Return ``value`` if it is a plain name, else an empty string."""
    return str(value) if is_slug(value) else ""


def _judged_by(files: object) -> str:
    """Give the second file, which judged. A name that people chose may say anything, so it is not repeated."""
    if not isinstance(files, list) or len(files) < 2:
        return ""
    return files[1] if isinstance(files[1], str) and _PUBLISHED.fullmatch(files[1]) else "a file of another name"


def _section(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    number = finite_number(value)
    return int(number) if number is not None else None


def _numbers(section: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    numbers = {name: finite_number(section.get(name)) for name in names}
    return {name: number for name, number in numbers.items() if number is not None}


def _first_match(pattern: re.Pattern[str], value: object) -> str:
    """Return the pattern's first group, or the whole value where it has none; empty if it does not match."""
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    return match.group(min(pattern.groups, 1)) if match else ""


def _fixed_word(name: str, holder: Mapping[str, Any], otherwise: str) -> str:
    """Return the value of a telemetry field if the field accepts it."""
    plain = FIELDS[name].check(holder.get(name), {})
    return str(plain) if plain is not None else otherwise


def _stages(manifest: Mapping[str, Any], journalled: Mapping[str, Mapping[str, Scalar]]) -> Iterator[Stage]:
    """Read stages from the manifest, completed by the journal. Only the journal has the export stage's end."""
    spans = _section(_section(manifest, "telemetry"), "spans")
    for name in stages.TIMED_STAGES:
        span = _section(spans, f"rag.{name}")
        attributes = {**_section(span, "attributes"), **journalled.get(str(span.get("span_id")), {})}
        run = {**_section(manifest, f"{name}_run"), **attributes}
        seconds = finite_number(attributes.get("latency_seconds")) or _run_seconds(manifest, name)
        reused = _section(_section(manifest, "performance_baseline"), "reused").get(name)
        if not span and seconds is None:
            continue
        skipped = span.get("status") == "skipped" and seconds is None
        yield Stage(
            name=name,
            status="skipped" if skipped else _fixed_word("outcome", run, "active"),
            reason=_fixed_word("reason", span, "") if seconds is None else "",
            seconds=seconds,
            device=_fixed_word("device", run, ""),
            ceiling_bytes=finite_number(attributes.get("ceiling_bytes")),
            fallbacks=finite_number(run.get("fallback_count")),
            reused=finite_number(reused) or None,
            **_numbers(run, ("items", "tokens", "peak_bytes", "truncated", "wait_seconds")),
        )


def _models(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Give stage, model and number format of every model that the run names."""
    precisions = _section(_section(manifest, "performance_baseline"), "precision")
    dense, sparse = _section(manifest, "dense_run").get("models"), _section(manifest, "sparse_run").get("models")
    slugs = {
        "dense": [model.get("slug") for model in dense or () if isinstance(model, dict)],
        "sparse": sparse if isinstance(sparse, list) else [],
        "rerank": [_section(manifest, "rerank_run").get("model_name")],
    }
    for stage, names in slugs.items():
        form = _fixed_word("precision", {"precision": precisions.get(stage)}, "")
        yield from ((stage, name if name in MODELS else "not a registered model", form) for name in names if name)


def _run_seconds(manifest: Mapping[str, Any], stage: str) -> float | None:
    """Find a stage's seconds in its section: ``seconds``, or ``latency_ms`` there or in its payload (rerank)."""
    run = _section(manifest, f"{stage}_run")
    milliseconds = finite_number({**run, **_section(run, "payload")}.get("latency_ms"))
    seconds = finite_number(run.get("seconds"))
    return milliseconds / 1000 if seconds is None and milliseconds is not None else seconds


def _memory(journal: JournalContent) -> Iterator[Memory]:
    """Collect the samples of each device; of a stage too quick for the sampler, the memory after each batch."""
    samples: dict[str, dict[str, list[tuple[float, float]]]] = {"device.memory": {}, "batch.done": {}}
    for _, event in journal.samples:
        device, used = _fixed_word("device", event.facts, ""), finite_number(event.facts.get("used_bytes"))
        if event.name in samples and device and used is not None:
            at = finite_number(event.facts.get("sampled_at")) or event.at
            samples[event.name].setdefault(device, []).append((at, used))
    for device, points in sorted({**samples["batch.done"], **samples["device.memory"]}.items()):
        times, used_bytes = np.array(sorted(points), np.float64).T
        yield Memory(device, times, used_bytes)


def _fallbacks(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    for stage in stages.MODEL_STAGES:
        run = _section(manifest, f"{stage}_run")
        reasons = _section(run, "fallback_reasons") or _section(_section(run, "payload"), "fallback_reasons")
        source = _fixed_word("source", {"source": run.get("fallback_source")}, "")
        counted = {reason: _whole(number) for reason, number in reasons.items()}
        if not counted and _whole(run.get("fallback_count")):
            counted = {str(run.get("fallback_reason")): _whole(run["fallback_count"])}
        for reason, number in counted.items():
            if number:
                yield stage, _fixed_word("reason", {"reason": reason}, "other"), source, number


def _toggles(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    rows = _section(manifest, "feature_toggles").get("provenance")
    for row in rows if isinstance(rows, list) else ():
        key = row.get("key") if isinstance(row, dict) else None
        key = "models.sparse" if key == "sparse_models" else key
        if isinstance(key, str) and key in options():
            layer, source = _first_match(_LAYER, row.get("layer")), _first_match(_SOURCE, row.get("source"))
            yield key, _setting(row.get("value")), layer, source


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "the profile's"
    return value if isinstance(value, str) and value in (*MODELS, *PROFILES) else "set"


def _quality(value: object) -> dict[str, dict[str, float]]:
    means = value if isinstance(value, Mapping) else {}
    return {
        name: {
            measure: number
            for measure, mean in means[name].items()
            if isinstance(measure, str) and _MEASURE.fullmatch(measure) and (number := finite_number(mean)) is not None
        }
        for name in stages.list_names()
        if isinstance(means.get(name), Mapping)
    }
