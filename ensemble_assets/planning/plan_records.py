"""Plans on disk, and what became of them: what was predicted beside what happened."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.machine import digest, this_host
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import cache_folder

if TYPE_CHECKING:
    from ensemble_assets.planning.planner import CollectionPlan

TOLERANCE = 0.25
"""A plan is held to be right if the run takes at most this share more or less."""
_PLACES = 4


def as_json(made: CollectionPlan) -> dict[str, Any]:
    """A plan as a plain dictionary: seconds by stage at the depth that is reached, ratios, and where they come from."""
    seconds, full = made.plan.seconds, made.plan.full
    return {
        "collection": made.collection,
        "content": made.content,
        "chunks": made.chunks,
        "queries": made.queries,
        "seconds": _rounded(seconds),
        "depth": made.plan.depth,
        "requested_depth": made.plan.requested,
        "seconds_at_requested_depth": _rounded(full),
        "vs_sla": _ratio(seconds.vs_sla(made.plain_dense)),
        "vs_own_dense": _ratio(seconds.vs_own_dense()),
        "deepest": made.plan.deepest,
        "dense_only_seconds": _ratio(made.plain_dense),
        "basis": dict(made.basis),
        "notes": list(made.notes),
    }


def store_plan(settings: Settings, made: CollectionPlan) -> None:
    """Keep it, so that the next run of the same content with the same settings is held against it."""
    content = {"planned_at": datetime.now(UTC).isoformat(timespec="seconds"), **as_json(made)}
    with atomic_write(_path(settings, made.content)) as file:
        file.write(json.dumps(content, indent=1).encode())


def compared(settings: Settings, content: str, costs: StageSeconds) -> dict[str, Any] | None:
    """What was predicted for this content and these settings, and by which share it was off; None without a plan.

    Errors are (predicted - actual) / actual, so a positive one means that the run was faster.
    """
    planned: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        planned = json.loads(_path(settings, content).read_bytes())
    predicted = planned.get("seconds")
    if not isinstance(predicted, dict):
        return None
    total, actual = sum(float(one) for one in predicted.values()), costs.total
    error = (total - actual) / actual if actual > 0 else 0.0
    return {
        "planned_at": planned["planned_at"],
        "predicted_seconds": predicted,
        "actual_seconds": _rounded(costs),
        "predicted_depth": planned["depth"],
        "predicted_total": round(total, _PLACES),
        "actual_total": round(actual, _PLACES),
        "error": round(error, _PLACES),
        "stage_errors": {
            stage: round((float(predicted[stage]) - took) / took, _PLACES)
            for stage, took in asdict(costs).items()
            if took > 0 and stage in predicted
        },
        "within_tolerance": abs(error) <= TOLERANCE,
        "basis": planned["basis"],
    }


def _path(settings: Settings, content: str) -> Path:
    """One file per content and everything in the settings that changes what a run costs."""
    chosen = asdict(settings)
    sections = {name: chosen[name] for name in ("models", "device", "encoding", "rerank", "sparse", "fusion")}
    facts = [this_host().fingerprint, content, sections, settings.enable_sparse, settings.enable_rerank]
    return cache_folder(settings.paths) / "plans" / f"{digest(facts)}.json"


def _rounded(seconds: StageSeconds) -> dict[str, float]:
    return {stage: round(took, _PLACES) for stage, took in asdict(seconds).items()}


def _ratio(value: float | None) -> float | None:
    return None if value is None else round(value, _PLACES)
