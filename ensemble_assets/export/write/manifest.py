"""Build the run manifest of a bundle, ``processing_summary.json``, from the records of the stages.

It holds no text of a chunk or query; queries appear as ids and keyed hashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ensemble_assets.artefacts.fast_json import compact
from ensemble_assets.common.errors import ContractError
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.export.write.manifest_stages import RerankRun, SparseRun

SCHEMA_VERSION = "v4.1"

_SPAN_KEYS = ("span_id", "status", "reason", "attributes", "timestamp")
_METRIC_KEYS = ("status", "reason", "metrics")
_EVENT_COUNTS = ("lease_events_recorded", "batch_progress_events_recorded", "mitigation_events_recorded")
_NOTHING_ROTATES = {"rotation_events_recorded": 0}
"""The old program loaded its models in turns and counted them; old readers add the count up."""

_ONLY_SOMETIMES = ("warnings", "rerank_run", "sparse_run")
_ABSOLUTE_PATH = re.compile(r"(?:^|(?<=[\s('\"=,]))(?:/|[A-Za-z]:[\\/]|\\\\)(?:[^\s'\"),]*[\\/])?([^\s'\"),\\/]*)")


@dataclass(frozen=True)
class FeatureToggles:
    """The optional stages that were on, and the settings that said so.

    ``sources`` are by key; ``provenance`` has rows ``{key, value, source, layer}``.
    """

    enable_rerank: bool
    enable_sparse: bool
    sparse_models: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    provenance: Sequence[Mapping[str, Any]] = ()

    def as_json(self) -> dict[str, Any]:
        """Make the section ``feature_toggles``; it adds one line per row, for people."""
        return {**asdict(self), "provenance_lines": list(map(_provenance_line, self.provenance))}


def _provenance_line(row: Mapping[str, Any]) -> str:
    """Word a row as the old program did: ``enable_rerank: off (override via EMBEDDER_ENABLE_RERANK; default on)``."""
    value, source = row["value"], str(row["source"]).removeprefix("environment variable ")
    if not isinstance(value, bool):
        return f"{row['key']}: {value if isinstance(value, str) else compact(value)} ({source})"
    origin = source if row["layer"] == "default" else f"override via {source}; default on"
    return f"{row['key']}: {'on' if value else 'off'} ({origin})"


@dataclass(frozen=True)
class ManifestInputs:
    """The inputs of the manifest; ``generated_at`` is ISO 8601, ``warnings`` hold no texts of chunks or queries.

    Attributes:
        telemetry: ``spans`` by name (``rag.dense``), ``metrics`` by stage (``dense``), counts of events by name.
        performance_baseline: seconds and ratios against the stored baseline; empty without one.
        rerank_run: None when the stage is off, as ``sparse_run``.
        ensemble_state: the dense models of the bundle.
        more: additive top-level sections of this project.
    """

    generated_at: str
    collection: str
    chunk_count: int
    toggles: FeatureToggles
    dense_run: Mapping[str, Any]
    telemetry: Mapping[str, Any] = field(default_factory=dict)
    performance_baseline: Mapping[str, Any] = field(default_factory=dict)
    rerank_run: RerankRun | None = None
    sparse_run: SparseRun | None = None
    warnings: tuple[str, ...] = ()
    ensemble_state: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def build_manifest(run: ManifestInputs) -> dict[str, Any]:
    """Make the manifest's object, keys in the contract's order; sections of some runs only come last.

    Absolute paths in any text are cut to their last part: manifests travel, folders of this machine do not. A stage
    that is on without its run, or off with one, and telemetry outside of the contract are a ``ContractError``.
    """
    _require_runs_fit_toggles(run)
    toggles = run.toggles.as_json()
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "generated_at": run.generated_at,
        "collection": run.collection,
        "chunk_count": run.chunk_count,
        "feature_toggles": toggles,
        "activation_provenance": toggles["provenance"],
        "activation_provenance_lines": toggles["provenance_lines"],
        "dense_run": dict(run.dense_run),
    }
    manifest["compatibility"] = {"current": SCHEMA_VERSION, "legacy": ["v4.0"]}
    manifest["telemetry"] = _telemetry(run)
    manifest["performance_baseline"] = dict(run.performance_baseline)
    manifest["ensemble_state"] = dict(run.ensemble_state)
    manifest.update({key: value for key, value in run.more.items() if key not in (*manifest, *_ONLY_SOMETIMES)})
    sometimes = (
        list(run.warnings) or None,
        run.rerank_run and run.rerank_run.as_json(),
        run.sparse_run and run.sparse_run.as_json(),
    )
    manifest.update({key: value for key, value in zip(_ONLY_SOMETIMES, sometimes, strict=True) if value is not None})
    cleaned: dict[str, Any] = _without_paths(manifest)
    return cleaned


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Encode the manifest: indent 2, not ASCII-escaped; ``ContractError`` for a value that JSON does not have."""
    try:
        return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the run manifest cannot be written as JSON: {error}") from None


def _require_runs_fit_toggles(run: ManifestInputs) -> None:
    for stage, enabled, record in (
        ("rerank", run.toggles.enable_rerank, run.rerank_run),
        ("sparse", run.toggles.enable_sparse, run.sparse_run),
    ):
        if enabled != (record is not None):
            state, given = ("on", "no run of it") if enabled else ("off", "a run of it")
            raise ContractError(f"{run.collection}: the {stage} stage is {state}, but there is {given} to report")


def _telemetry(run: ManifestInputs) -> dict[str, Any]:
    counts = dict(run.telemetry)
    given, measured = counts.pop("spans", {}), counts.pop("metrics", {})
    _require_known("span", given, [f"rag.{stage}" for stage in TIMED_STAGES])
    _require_known("stage of metrics", measured, TIMED_STAGES)
    _require_known("telemetry count", counts, _EVENT_COUNTS)
    off = {"sparse": not run.toggles.enable_sparse, "rerank": not run.toggles.enable_rerank}
    spans, metrics = {}, {}
    for stage in TIMED_STAGES:
        skipped = {"status": "skipped", "reason": "feature_disabled" if off.get(stage) else "not_recorded"}
        no_span = {"span_id": "", **skipped, "attributes": {}, "timestamp": run.generated_at}
        name = f"rag.{stage}"
        spans[name] = _picked(f"span {name}", given.get(name) or no_span, _SPAN_KEYS)
        figures = measured.get(stage) or {**skipped, "metrics": []}
        metrics[stage] = _picked(f"metrics of {stage}", figures, _METRIC_KEYS)
    return {
        "spans": spans,
        "metrics": metrics,
        **{name: int(counts.get(name, 0)) for name in _EVENT_COUNTS},
        **_NOTHING_ROTATES,
    }


def _picked(what: str, record: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    _require_known(f"key of {what}", record, keys)
    return {key: record[key] for key in keys if key in record}


def _require_known(what: str, names: Mapping[str, Any], allowed: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise ContractError(f"run manifest: unknown {what} {', '.join(unknown)}; known are {', '.join(allowed)}")


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return value
