"""What finished stages cost, remembered for later plans: work and seconds from artefacts' facts, keys for the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.machine import digest, library_versions, this_host
from ensemble_assets.models.registry import ModelSpec
from ensemble_assets.pipeline.bundle_inputs import Upstream
from ensemble_assets.pipeline.model_choice import ModelChoice, choose_models
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.planning.cost_records import CostRecords, Observation
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import cache_folder

if TYPE_CHECKING:
    from ensemble_assets.planning.model_cost import ModelShape


def cost_records(settings: Settings) -> CostRecords:
    """The store of observed costs."""
    return CostRecords(cache_folder(settings.paths) / "stage_costs.json")


def cost_key(settings: Settings, stage: str, models: Sequence[str]) -> str:
    """What observations hold for: this machine, its libraries, the stage, its models, device and encoding options."""
    options = {**asdict(settings.device), **asdict(settings.encoding), "reuse": False}
    facts = [this_host().fingerprint, library_versions(), stage, list(models), options]
    return f"{stage}-{digest(facts)}"


def models_of(choice: ModelChoice, stage: str) -> tuple[ModelSpec, ...]:
    """The models that a stage runs; of several sparse ones only the first, the others stand in for it."""
    return {"dense": choice.dense, "sparse": choice.sparse[:1], "rerank": (choice.rerank,)}.get(stage, ())


def stage_key(settings: Settings, stage: str) -> str:
    """The key of a stage with the models that the settings choose."""
    return cost_key(settings, stage, [spec.slug for spec in models_of(choose_models(settings.models), stage)])


def model_work(shapes: Sequence[ModelShape], tokens: float, texts: float) -> float:
    """Operations of ``tokens`` tokens, over all models, in ``texts`` texts.

    Tokens are taken to be spread evenly over the models, and all texts to have the mean length.
    """
    share = tokens / max(1, len(shapes))
    return sum(shape.flops(share, share / max(1.0, texts)) for shape in shapes)


def remember_run(upstream: Upstream, run: StageRun, export_seconds: float) -> None:
    """Keep what every stage of a finished run cost, except those that were off, fell back or reused results."""
    observed = {
        "fusion": (float(upstream.fused.facts["queries"]) * _chunks(upstream), _wall(upstream.fused.facts)),
        "export": (_chunks(upstream), export_seconds),
        **{stage: _of_models(upstream, run, stage) for stage in ("dense", "sparse", "rerank")},
    }
    cost_records(run.settings).add(
        {
            stage_key(run.settings, stage): [Observation(work, seconds, "run")]
            for stage, (work, seconds) in observed.items()
            if work > 0 and seconds > 0
        }
    )


def _of_models(upstream: Upstream, run: StageRun, stage: str) -> tuple[float, float]:
    from ensemble_assets.planning.model_cost import shape_for

    facts = upstream.by_stage()[stage].facts
    specs = models_of(choose_models(run.settings.models), stage)
    used = [model["slug"] for model in facts["models"]]
    as_asked = facts["status"] == "completed" and used == [spec.slug for spec in specs]
    if not as_asked or facts.get("reused") or facts["run_id"] != run.run_id:
        return 0.0, 0.0
    try:
        shapes = [shape_for(spec) for spec in specs]
    except ModelUnavailableError:
        return 0.0, 0.0
    return model_work(shapes, float(facts["tokens"]), float(facts["items"])), _wall(facts)


def _wall(facts: Mapping[str, Any]) -> float:
    return float(facts["wall_seconds"])


def _chunks(upstream: Upstream) -> float:
    return float(upstream.chunks.facts["items"])
