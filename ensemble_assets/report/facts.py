"""What the report shows, taken from a bundle: an allow-list of manifest keys, the ranked lists' numbers, the journal.

Every part may be missing (v4.0 bundles, old manifests, stages that were off); what is missing is left out. Strings are
shown only if they are words known beforehand: an old manifest may hold a query where nobody expects one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.models.registry import MODELS, PROFILES
from ensemble_assets.report.ranked_lists import plain_number, rank_moves, ranked_lists, score_lists, top_changed
from ensemble_assets.settings.options import options
from ensemble_assets.telemetry.allowed_names import FIELDS, STAGES
from ensemble_assets.telemetry.allowed_values import Scalar, is_slug
from ensemble_assets.telemetry.journal import JournalContent, read_journal
from ensemble_assets.telemetry.span_record import SpanRecord

MANIFEST = "processing_summary.json"
GPU_CEILING_BYTES = 12_000_000_000
_LAYERS = ("default", "config file", ".env", "environment", "run")
_SOURCE = re.compile(
    r"default|earlier materialisation of the stage|--[a-z-]+|[\w.-]+\.ya?ml [a-z_.]+|run config [a-z_.]+"
    r"|environment variable [A-Z_]+( in \.env)?",
    re.ASCII,
)
_SCHEMA = re.compile(r"v\d{1,2}\.\d{1,2}", re.ASCII)
_MEASURE = re.compile(r"(nDCG|MRR|RR|MAP|AP|P|recall|R)(@\d{1,4})?", re.ASCII)
_RUNS = ("dense", "sparse", "fused", "reranked")
_SECONDS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "dense": (("dense_run", "seconds"), 1.0),
    "sparse": (("sparse_run", "latency_ms"), 1e-3),
    "fusion": (("fusion_run", "seconds"), 1.0),
    "rerank": (("rerank_run", "payload", "latency_ms"), 1e-3),
}


@dataclass(frozen=True)
class Stage:
    """One stage of the run; numbers are None where nobody recorded them."""

    name: str
    status: str
    reason: str = ""
    seconds: float | None = None
    items: float | None = None
    tokens: float | None = None
    device: str = ""
    peak_bytes: float | None = None
    ceiling_bytes: float | None = None
    fallbacks: float | None = None
    truncated: float | None = None


@dataclass(frozen=True)
class Memory:
    """Memory in use on one device over time; ``[n] float64`` seconds and bytes, in order of time."""

    device: str
    times: NDArray[np.float64]
    used: NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """Everything that the report shows.

    Attributes:
        baseline_seconds: what the dense-only engine takes; None without a stored baseline.
        limit_ratio: what the whole run may take of it.
        ratios: further measured ratios by name.
        scores: finite scores per list (dense, sparse, fused, rerank), ``[n] float64``.
        moves: fused rank minus final rank of every reranked candidate, ``[n] float64``; up is positive.
        top_changed: queries whose first candidate changed, and all queries.
        fallbacks: rows stage, reason, what stands in, how many.
        toggles: rows option, value, layer, source.
        quality: mean per run and measure.
        warnings: how many warnings the manifest has.
    """

    collection: str
    generated_at: str
    schema: str
    chunks: int | None
    stages: tuple[Stage, ...]
    baseline_seconds: float | None = None
    limit_ratio: float = 1.10
    ratios: Mapping[str, float] = field(default_factory=dict)
    memory: tuple[Memory, ...] = ()
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    moves: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    top_changed: tuple[int, int] = (0, 0)
    coverage: Mapping[str, float] = field(default_factory=dict)
    fallbacks: tuple[tuple[str, str, str, int], ...] = ()
    toggles: tuple[tuple[str, str, str, str], ...] = ()
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: int = 0

    @property
    def reference(self) -> tuple[float | None, str]:
        """Seconds that the run is compared with, and what they are: the stored baseline, else its own dense stage."""
        if self.baseline_seconds is not None:
            return self.baseline_seconds, "dense-only baseline"
        own = (stage.seconds for stage in self.stages if stage.name == "dense" and stage.seconds is not None)
        return next(own, None), "this run's dense stage"

    def ceiling(self, device: str) -> float | None:
        """The memory ceiling of a device, bytes: the run's, as its stages recorded it; on GPUs else the usual one."""
        known = max((stage.ceiling_bytes for stage in self.stages if stage.ceiling_bytes), default=None)
        return known or (None if not device or device.startswith(("cpu", "none")) else float(GPU_CEILING_BYTES))


def read_facts(
    bundle: Path,
    journal: Path | None = None,
    candidates: pl.DataFrame | None = None,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    current: SpanRecord | None = None,
) -> Facts:
    """The facts of a bundle; see ``page.build_report`` for the arguments and errors."""
    manifest = _manifest(bundle)
    ranked = list(ranked_lists(bundle))
    baseline = _mapping(manifest, "performance_baseline")
    told = read_journal(journal) if journal is not None else JournalContent()
    return Facts(
        collection=word(manifest.get("collection")) or word(bundle.name) or "collection",
        generated_at=str(manifest.get("generated_at", ""))[:19] if _is_time(manifest.get("generated_at")) else "",
        schema=_matching(_SCHEMA, manifest.get("schema_version")) or "v4.0",
        chunks=_whole(manifest.get("chunk_count")),
        stages=tuple(_stages(manifest, {**_by_id(told.spans), **_so_far(current)})),
        baseline_seconds=plain_number(baseline.get("dense_only_seconds")),
        limit_ratio=plain_number(baseline.get("limit_ratio")) or 1.10,
        ratios={
            name: value
            for name in ("vs_sla", "vs_own_dense")
            if (value := plain_number(baseline.get(name))) is not None
        },
        memory=tuple(_memory(told)),
        scores=score_lists(ranked, candidates),
        moves=np.array([move for lists in ranked for move in rank_moves(lists)], np.float64),
        top_changed=(sum(top_changed(lists) for lists in ranked), len(ranked)),
        coverage=_numbers(_mapping(_mapping(manifest, "sparse_run"), "vectors")),
        fallbacks=tuple(_fallbacks(manifest)),
        toggles=tuple(_toggles(manifest)),
        quality=_quality(quality if quality is not None else manifest.get("quality")),
        warnings=len(manifest["warnings"]) if isinstance(manifest.get("warnings"), list) else 0,
    )


def word(value: object) -> str:
    """``value`` if it is a slug, else nothing."""
    return str(value) if is_slug(value) else ""


def _manifest(bundle: Path) -> dict[str, Any]:
    path = bundle / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{bundle.name}: there is no {MANIFEST} in it. Name a bundle folder that has one") from None
    except (OSError, ValueError):
        raise ArtefactError(f"{MANIFEST}: cannot be read as JSON in UTF-8. Export the bundle again") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{MANIFEST}: expected a JSON object. Export the bundle again")
    return content


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    number = plain_number(value)
    return int(number) if number is not None else None


def _numbers(mapping: Mapping[str, Any]) -> dict[str, float]:
    named = {name: plain_number(mapping.get(name)) for name in ("total", "available", "coverage_ratio")}
    return {name: number for name, number in named.items() if number is not None}


def _is_time(value: object) -> bool:
    return isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", value, re.ASCII) is not None


def _by_id(ended: Iterable[SpanRecord]) -> dict[str, Mapping[str, Scalar]]:
    return {record.span_id: record.attributes for record in ended}


def _so_far(span: SpanRecord | None) -> dict[str, Mapping[str, Scalar]]:
    """The attributes of a span that is still open, with how long it has taken until now."""
    if span is None:
        return {}
    return {span.span_id: {"latency_seconds": span.ended_at - span.started_at, **span.attributes}}


def _stages(manifest: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Scalar]]) -> Iterator[Stage]:
    """Stages as the manifest has them; the journal knows more of the one that wrote it."""
    spans = _mapping(_mapping(manifest, "telemetry"), "spans")
    for name in STAGES:
        span = _mapping(spans, f"rag.{name}")
        attributes = {**_mapping(span, "attributes"), **by_id.get(str(span.get("span_id")), {})}
        run = {**_mapping(manifest, f"{name}_run"), **attributes}
        seconds = plain_number(attributes.get("latency_seconds")) or _run_seconds(manifest, name)
        if not span and seconds is None:
            continue
        yield Stage(
            name=name,
            status="skipped"
            if span.get("status") == "skipped" and seconds is None
            else _known("outcome", run, "active"),
            reason=_known("reason", span, "") if seconds is None else "",
            seconds=seconds,
            items=plain_number(run.get("items")),
            tokens=plain_number(run.get("tokens")),
            device=_known("device", run, ""),
            peak_bytes=plain_number(run.get("peak_bytes")),
            ceiling_bytes=plain_number(attributes.get("ceiling_bytes")),
            fallbacks=plain_number(run.get("fallback_count")),
            truncated=plain_number(run.get("truncated")),
        )


def _run_seconds(manifest: Mapping[str, Any], stage: str) -> float | None:
    if stage not in _SECONDS:
        return None
    (*holders, name), factor = _SECONDS[stage]
    section: Mapping[str, Any] = manifest
    for holder in holders:
        section = _mapping(section, holder)
    value = plain_number(section.get(name))
    return value * factor if value is not None else None


def _known(name: str, holder: Mapping[str, Any], otherwise: str) -> str:
    plain = FIELDS[name].check(holder.get(name), {})
    return str(plain) if plain is not None else otherwise


def _memory(journal: JournalContent) -> Iterator[Memory]:
    """The samples of a device; where it was too quick for the sampler, what was in use after each batch."""
    sampled: dict[str, dict[str, list[tuple[float, float]]]] = {"device.memory": {}, "batch.done": {}}
    for _, event in journal.samples:
        device, used = _known("device", event.facts, ""), plain_number(event.facts.get("used_bytes"))
        if event.name in sampled and device and used is not None:
            at = plain_number(event.facts.get("sampled_at")) or event.at
            sampled[event.name].setdefault(device, []).append((at, used))
    for device, samples in sorted({**sampled["batch.done"], **sampled["device.memory"]}.items()):
        times, used_bytes = np.array(sorted(samples), np.float64).T
        yield Memory(device, times, used_bytes)


def _fallbacks(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    for stage in ("dense", "sparse", "rerank"):
        run = _mapping(manifest, f"{stage}_run")
        reasons = _mapping(run, "fallback_reasons") or _mapping(_mapping(run, "payload"), "fallback_reasons")
        source = _known("source", {"source": run.get("fallback_source")}, "")
        counted = {reason: _whole(number) for reason, number in reasons.items()}
        if not counted and _whole(run.get("fallback_count")):
            counted = {str(run.get("fallback_reason")): _whole(run["fallback_count"])}
        for reason, number in counted.items():
            if number:
                yield stage, _known("reason", {"reason": reason}, "other"), source, number


def _toggles(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    rows = _mapping(manifest, "feature_toggles").get("provenance")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("key"), str) and row["key"] in options():
            layer = next((known for known in _LAYERS if known == row.get("layer")), "")
            yield row["key"], _value(row.get("value")), layer, _matching(_SOURCE, row.get("source"))


def _matching(pattern: re.Pattern[str], value: object) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "the profile's"
    return value if isinstance(value, str) and value in (*MODELS, *PROFILES) else "set"


def _quality(value: object) -> dict[str, dict[str, float]]:
    given = value if isinstance(value, Mapping) else {}
    return {
        run: {
            name: number
            for name, mean in given[run].items()
            if _matching(_MEASURE, name) and (number := plain_number(mean)) is not None
        }
        for run in _RUNS
        if isinstance(given.get(run), Mapping)
    }
