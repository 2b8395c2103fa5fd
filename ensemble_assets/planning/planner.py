"""Predicts a collection's run before anything runs: work from its texts, costs from what was observed here.

For models that need GPUs this machine does not have, costs come from published peak rates and say so. The arithmetic is
``compute.cost_fit``; how a plan is kept and compared with what happened is ``plan_records``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.latency_baseline import BaselineKey, content_fingerprint, find_baseline
from ensemble_assets.collection.folders import Collection
from ensemble_assets.collection.queries import load_queries
from ensemble_assets.collection.query_privacy import load_or_create_key
from ensemble_assets.common.machine import this_host
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import ModelSpec
from ensemble_assets.pipeline.collections import chunks_of
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.planning.calibration import Sample, calibrate, calibrate_search
from ensemble_assets.planning.observed_costs import cost_records, model_work, models_of, stage_key
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import baselines_folder, key_file

if TYPE_CHECKING:
    from ensemble_assets.compute.stages.rerank_depth import Against
    from ensemble_assets.planning.cost_fit import Plan, PlannedWork, StageCost
    from ensemble_assets.planning.model_cost import ModelShape

STAGES = ("dense", "sparse", "fusion", "rerank", "export")
GPU_PROFILE = "kaggle-t4x2"
_T4S = 2
_EXPORT_SECONDS = 0.002
"""Per chunk, where no export was seen on this machine yet; 2 cores of an AMD EPYC took 0.001 to 0.003."""

Basis = Literal["earlier runs", "calibration", "published peak rates, estimated", "assumed"]


@dataclass(frozen=True)
class CollectionPlan:
    """A prediction and what it stands on.

    Attributes:
        content: fingerprint of the collection's chunks.
        work: in operations (dense, sparse, rerank), query-chunk pairs (fusion) and chunks (export).
        basis: by stage, where its cost comes from.
        plain_dense: seconds of the plain script; None where they are not known.
        notes: what is assumed, in words.
    """

    collection: str
    content: str
    chunks: int
    queries: int
    work: PlannedWork
    plan: Plan
    basis: dict[str, Basis]
    plain_dense: float | None
    notes: tuple[str, ...] = ()


@dataclass
class Planner:
    """Plans collections with one set of settings.

    Attributes:
        computing: what calibration computes with.
        recalibrate: observe again what is known already.
        told: hears, in words, what takes time.
    """

    settings: Settings
    computing: Computing = field(default_factory=Computing)
    recalibrate: bool = False
    told: Callable[[str], None] = lambda words: None

    def plan(self, collection: Collection) -> CollectionPlan:
        """Predict one collection's run.

        Raises:
            InputError: if the collection cannot be read.
            ModelUnavailableError: if a model is not on this machine and is not of the GPU profile.
        """
        from ensemble_assets.planning.cost_fit import PlannedBudget, plan

        settings = self.settings
        sample = read_sample(settings, collection)
        content = content_fingerprint(sample.chunks["content_hash"])
        on_paper = settings.models.profile == GPU_PROFILE and not _has_gpu()
        work = self._work(sample, exact=not on_paper)
        costs, basis, notes = self._paper_costs() if on_paper else self._costs(sample)
        plain = _paper_plain(settings, work) if on_paper else self._baseline(content)
        against = cast("Against", settings.rerank.budget)
        budget = PlannedBudget(against, settings.rerank.budget_share, settings.rerank.floor, plain)
        made = plan(work, costs, budget)
        sizes = sample.chunks.height, sample.queries.height
        return CollectionPlan(collection.name, content, *sizes, work, made, basis, plain, tuple(notes))

    def _work(self, sample: Sample, *, exact: bool) -> PlannedWork:
        from ensemble_assets.planning.cost_fit import PlannedWork

        settings, choice = self.settings, choose_models(self.settings.models)
        depth = settings.rerank.depth if settings.enable_rerank else 0
        by_stage = {
            stage: sum(self._encoder_work(texts, sample, spec, exact=exact) for spec in models_of(choice, stage))
            for stage, texts in (("dense", sample.chunks["text"]), ("sparse", sample.searched))
        }
        return PlannedWork(
            dense=by_stage["dense"],
            sparse=by_stage["sparse"] if settings.enable_sparse else 0.0,
            fusion=float(sample.chunks.height * sample.queries.height),
            rerank=self._pair_work(sample, depth, exact=exact),
            export=float(sample.chunks.height),
        )

    def _encoder_work(self, chunks: pl.Series, sample: Sample, spec: ModelSpec, *, exact: bool) -> float:
        texts = [chunks, sample.queries["text"]]
        lengths = np.concatenate([token_lengths(one.unique(), spec, exact=exact) for one in texts])
        items = sum(map(len, texts))
        return model_work([_shape(spec)], float(np.minimum(lengths + 2, spec.chunk_tokens).sum()), items)

    def _pair_work(self, sample: Sample, depth: int, *, exact: bool) -> NDArray[np.float64]:
        """Operations down to every depth: each query with candidates as long as chunks are on average."""
        spec = choose_models(self.settings.models).rerank
        queries, chunks = (
            token_lengths(texts, spec, exact=exact).mean() for texts in (sample.queries["text"], sample.searched)
        )
        per_rank = sample.queries.height * min(queries + chunks + 3, spec.chunk_tokens)
        ranks = np.minimum(np.arange(depth + 1), sample.chunks.height)
        return np.array([model_work([_shape(spec)], per_rank * d, sample.queries.height * d) for d in ranks])

    def _costs(self, sample: Sample) -> tuple[dict[str, StageCost], dict[str, Basis], list[str]]:
        """What stages cost on this machine; calibrates those that were never seen."""
        from ensemble_assets.planning.cost_fit import StageCost, fit

        records, costs, basis = cost_records(self.settings), dict[str, StageCost](), dict[str, Basis]()
        for stage in STAGES:
            key = stage_key(self.settings, stage)
            seen = [] if self.recalibrate and stage != "export" else records.recall(key)
            if not seen and stage == "export":
                costs[stage], basis[stage] = StageCost(0.0, _EXPORT_SECONDS), "assumed"
                continue
            if not seen:
                self.told(f"calibrating {stage} …")
                seen = calibrate_search() if stage == "fusion" else calibrate(stage, sample, *self._with())
                records.add({key: seen})
            costs[stage] = fit(seen)
            basis[stage] = "earlier runs" if any(one.origin == "run" for one in seen) else "calibration"
        assumed = [f"{stage}: no run was seen on this machine yet" for stage, on in basis.items() if on == "assumed"]
        return costs, basis, assumed

    def _with(self) -> tuple[Settings, Computing]:
        return self.settings, self.computing

    def _baseline(self, content: str) -> float | None:
        models = tuple(locate(spec).fingerprint for spec in choose_models(self.settings.models).dense)
        key = BaselineKey(this_host(_gpus()), content, models)
        found = find_baseline(baselines_folder(self.settings.paths), key)
        return found.seconds if found else None

    def _paper_costs(self) -> tuple[dict[str, StageCost], dict[str, Basis], list[str]]:
        """Costs on two T4s from their data sheet; fusion and export as on this machine."""
        from ensemble_assets.planning.cost_fit import StageCost, fit
        from ensemble_assets.planning.model_cost import T4

        choice, records = choose_models(self.settings.models), cost_records(self.settings)
        costs, basis = dict[str, StageCost](), dict[str, Basis]()
        for stage in ("dense", "sparse", "rerank"):
            weights = sum(2 * _shape(spec).parameters for spec in models_of(choice, stage))
            costs[stage] = StageCost(weights / T4.load_bytes, 1 / (_T4S * T4.half_flops * T4.share))
            basis[stage] = "published peak rates, estimated"
        seen = records.recall(stage_key(self.settings, "fusion")) or calibrate_search()
        costs["fusion"], basis["fusion"] = fit(seen), "calibration"
        exports = records.recall(stage_key(self.settings, "export"))
        costs["export"] = fit(exports) if exports else StageCost(0.0, _EXPORT_SECONDS)
        basis["export"] = "earlier runs" if exports else "assumed"
        notes = [
            f"ESTIMATE for {_T4S} x {T4.name}: {T4.source}; encoders are taken to reach {T4.share:.0%} of the peak, "
            f"weights to load at {T4.load_bytes / 1e9:g} GB/s. Nothing was measured on such a device.",
            "The plain script is taken to run in fp32 on one of them, at the same share of its fp32 peak.",
            "Tokens are estimated from the chunks' lengths; fusion and export are as on this machine.",
        ]
        return costs, basis, notes


def read_sample(settings: Settings, collection: Collection) -> Sample:
    """A collection's chunks and queries, as the assets read them.

    Raises:
        InputError: if they cannot be used.
    """
    asked = settings.queries
    chunks, _ = chunks_of(settings, collection)
    found = load_queries(
        collection.folder,
        chunks,
        load_or_create_key(key_file(settings.paths)),
        queries_file=Path(asked.file) if asked.file else None,
        qrels_file=Path(asked.qrels) if asked.qrels else None,
        judged_only=asked.judged_only,
        derived_limit=asked.derived_limit,
        ids_are_public=asked.ids_are_public,
    )
    return Sample(chunks, found.queries)


def token_lengths(texts: pl.Series, spec: ModelSpec, *, exact: bool) -> NDArray[np.int64]:
    """Tokens of every text without special ones: counted, or estimated from words and punctuation marks."""
    if not exact:
        return texts.str.count_matches(r"\w+|[^\w\s]").to_numpy().astype(np.int64)
    from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies

    prefix = spec.document_prefix
    return tokenise_bodies(texts, load_vocabulary(locate(spec)), spec.chunk_tokens, prefix).full_lengths


def _shape(spec: ModelSpec) -> ModelShape:
    from ensemble_assets.planning.model_cost import shape_for

    return shape_for(spec)


def _paper_plain(settings: Settings, work: PlannedWork) -> float:
    """Dense-only seconds of the plain script: fp32 on one T4."""
    from ensemble_assets.planning.model_cost import T4

    weights = sum(4 * _shape(spec).parameters for spec in choose_models(settings.models).dense)
    return weights / T4.load_bytes + work.dense / (T4.single_flops * T4.share)


def _gpus() -> tuple[str, ...]:
    from ensemble_assets.compute.stages.plain_baseline import accelerators

    return accelerators()


def _has_gpu() -> bool:
    return bool(_gpus())
