"""Keep the costs of runs and the predictions for them, in two small JSON files of this machine.

Plans are fitted to the costs. A finished run is compared with its plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.json_cache import Entries, JsonCache
from ensemble_assets.common.machine import digest, library_versions, this_host
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import choose_models
from ensemble_assets.settings.default_paths import cache_folder

TOLERANCE = 0.25
"""A plan counts as right if the whole run takes at most this share more or less."""

_STAGES, _PLANS = 256, 64
"""Entries of the two files that stay; the oldest ones are dropped."""
_PLACES = 4


@dataclass(frozen=True)
class Observation:
    """One run of one stage: work in tokens, query-chunk pairs (fusion) or chunks (export), and wall seconds."""

    work: float
    seconds: float
    origin: Literal["calibration", "run"]


def models_of(settings: Settings, stage: str) -> tuple[ModelSpec, ...]:
    """List the models that a stage runs; the further sparse models only stand in for the first."""
    choice = choose_models(settings.models)
    return {"dense": choice.dense, "sparse": choice.sparse[:1], "rerank": (choice.rerank,)}.get(stage, ())


def stage_key(settings: Settings, stage: str) -> str:
    """Name all that a cost depends on: machine, libraries, stage, models, device and encoding options."""
    options = {**settings.device.model_dump(), **settings.encoding.model_dump(), "reuse": False, "rows_from": ()}
    slugs = [spec.slug for spec in models_of(settings, stage)]
    return f"{stage}-{digest([this_host().fingerprint, library_versions(), stage, slugs, options])}"


def recall(settings: Settings, stage: str) -> list[Observation]:
    """Return the newest observation of a stage last, and before it at most one of clearly different work."""
    return _parse(_costs(settings).read().get(stage_key(settings, stage)))


def remember(settings: Settings, observations: Mapping[str, Sequence[Observation]]) -> bool:
    """Store observations by stage, each list from oldest to newest; False if the file could not be written."""

    def add(entries: Entries) -> Entries:
        for stage, new in observations.items():
            key = stage_key(settings, stage)
            *older, newest = [*_parse(entries.pop(key, None)), *new]
            different = [each for each in older if not 0.5 < each.work / newest.work < 2]
            entries[key] = [asdict(each) for each in [*different[-1:], newest]]
        return entries

    return _costs(settings).update(add)


def remember_run(upstream: Upstream, run: StageRun, export_seconds: float) -> None:
    """Store the cost of every stage of a finished run, except stages that were off, fell back or reused results.

    ``export_seconds`` are 0 where the bundle stayed as it was.
    """
    chunks, fusion = float(upstream.chunks.record.items), upstream.fusion.record
    costs = {"fusion": (fusion.queries * chunks, fusion.wall_seconds), "export": (chunks, export_seconds)}
    for stage in MODEL_STAGES:
        record: StageRecord = upstream.by_stage()[stage].record
        asked = [spec.slug for spec in models_of(run.settings, stage)]
        as_asked = [model.slug for model in record.models][: len(asked)] == asked  # late interaction comes after them
        if as_asked and record.status == "completed" and record.run_id == run.run_id and not record.reused:
            costs[stage] = (float(record.tokens), record.wall_seconds)
    remember(run.settings, {stage: [Observation(*cost, "run")] for stage, cost in costs.items() if min(cost) > 0})


def store_plan(settings: Settings, plan: Mapping[str, Any]) -> None:
    """Store a plan (``CollectionPlan.as_json``) for the next run of the same content with the same settings."""
    planned_at = datetime.now(UTC).isoformat(timespec="seconds")
    _plans(settings).put({_plan_key(settings, plan["content"]): {"planned_at": planned_at, **plan}})


def compare_with_plan(settings: Settings, content: str, costs: StageSeconds) -> dict[str, Any] | None:
    """Compare the seconds of a run with its plan; None if nothing was planned for this content and these settings.

    Errors are (predicted - actual) / actual, so a positive one means that the run was faster.
    """
    plan = _plans(settings).read().get(_plan_key(settings, content))
    if not isinstance(plan, dict) or not isinstance(plan.get("seconds"), dict):
        return None
    predicted: dict[str, float] = plan["seconds"]
    total, actual = sum(predicted.values()), costs.total
    error = (total - actual) / actual if actual > 0 else 0.0
    return {
        "planned_at": plan["planned_at"],
        "predicted_seconds": predicted,
        "actual_seconds": rounded(costs),
        "predicted_depth": plan["depth"],
        "predicted_total": round(total, _PLACES),
        "actual_total": round(actual, _PLACES),
        "error": round(error, _PLACES),
        "stage_errors": {
            stage: round((predicted[stage] - seconds) / seconds, _PLACES)
            for stage, seconds in asdict(costs).items()
            if seconds > 0 and stage in predicted
        },
        "within_tolerance": abs(error) <= TOLERANCE,
        "basis": plan["basis"],
    }


def rounded(seconds: StageSeconds) -> dict[str, float]:
    """Give seconds by stage, rounded for people."""
    return {stage: round(value, _PLACES) for stage, value in asdict(seconds).items()}


def _costs(settings: Settings) -> JsonCache:
    return JsonCache(cache_folder(settings.paths) / "stage_costs_by_token.json", _STAGES)


def _plans(settings: Settings) -> JsonCache:
    return JsonCache(cache_folder(settings.paths) / "plans.json", _PLANS)


def _plan_key(settings: Settings, content: str) -> str:
    """Name the content and all settings that change the cost of a run."""
    values = settings.model_dump()
    sections = {name: values[name] for name in ("models", "device", "encoding", "rerank", "sparse", "fusion")}
    return digest([this_host().fingerprint, content, sections, settings.enable_sparse, settings.enable_rerank])


def _parse(entry: Any) -> list[Observation]:
    try:
        return [
            Observation(float(row["work"]), float(row["seconds"]), "run" if row["origin"] == "run" else "calibration")
            for row in entry or ()
        ]
    except (TypeError, ValueError, KeyError):
        return []
