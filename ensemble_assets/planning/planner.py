"""Predict a run before it starts: count its work, and multiply it by the cost of such work on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.latency_baseline import baseline_key, content_fingerprint, find_baseline
from ensemble_assets.collection.folders import Collection
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.machine import this_host
from ensemble_assets.common.stage_times import BUDGET_SHARE, StageSeconds
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.compute.stages.rerank.depth import rerank_allowance
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.from_settings import files_of, require_model
from ensemble_assets.planning.calibration import Sample, calibrate, read_sample
from ensemble_assets.planning.history import Observation, models_of, recall, remember, rounded
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import choose_models, late_model
from ensemble_assets.settings.default_paths import baselines_folder
from ensemble_assets.settings.options import Rerank

Basis = Literal["earlier runs", "calibration", "assumed", "does not run"]
Models = dict[str, tuple[ModelSpec, ...]]
"""The models that a run gets results from, by stage."""

_WITHOUT = {
    "dense": "A run leaves this companion out",
    "sparse": "A run takes the next sparse model, or terms of the metadata where there is none",
    "rerank": "A run keeps the fused order",
}
"""The way in which a run does without a model that nobody named."""

_LATE_ALONE = "A run reranks by late interaction alone"

_NO_LIMIT = 8192
"""Tokens that a plan counts of a text whose limit only the model's files know."""


@dataclass(frozen=True)
class StageCost:
    """The cost of a stage: ``fixed`` seconds (mostly loading the model), and seconds per unit of work."""

    fixed: float
    per_work: float

    def seconds(self, work: float) -> float:
        """Predict wall seconds; no work costs nothing."""
        return self.fixed + self.per_work * work if work > 0 else 0.0


_ASSUMED = {"fusion": StageCost(0.2, 5e-7), "export": StageCost(0.1, 0.0012)}
"""Costs until a run was seen, from two collections on 2 cores of an AMD EPYC (docs/performance.md): 58,000 and
1,555,000 query-chunk pairs took 0.2 and 0.9 s, 1,000 and 5,183 chunks 1.3 and 6.5 s."""
_NOTHING = StageCost(0.0, 0.0)


def fit(observations: Sequence[Observation]) -> StageCost:
    """Draw a line through the first and the newest observation; neither of its two parts is negative.

    The newest is always met exactly. One observation, or two of equal work, are taken as proportional to their work.
    """
    if not observations:
        raise ValueError("nothing was observed")
    first, newest = observations[0], observations[-1]
    per_work = newest.seconds / newest.work
    if first.work != newest.work:
        slope = (newest.seconds - first.seconds) / (newest.work - first.work)
        per_work = min(max(slope, 0.0), per_work)
    return StageCost(newest.seconds - per_work * newest.work, per_work)


def predict(
    work: Mapping[str, float], costs: Mapping[str, StageCost], depth: int, options: Rerank, plain_dense: float | None
) -> tuple[StageSeconds, int]:
    """Predict the seconds of every stage, and the depth that the governor of rerank will reach.

    ``work["rerank"]`` is that of all ranks down to ``depth``, which is 0 without rerank. ``plain_dense`` are seconds
    of the plain script; None if it was not measured.
    """
    before = StageSeconds(**{stage: costs[stage].seconds(work[stage]) for stage in TIMED_STAGES if stage != "rerank"})
    allowance = rerank_allowance(options.budget, BUDGET_SHARE, options.floor, before, plain_dense)
    reached, rerank = depth, costs["rerank"]
    if depth and allowance.seconds is not None and rerank.seconds(work["rerank"]) > allowance.seconds:
        per_rank = rerank.per_work * work["rerank"] / depth
        fitting = int((allowance.seconds - rerank.fixed) / per_rank) if per_rank > 0 else 0
        reached = min(depth, max(options.floor, fitting))
    rerank_seconds = rerank.seconds(work["rerank"] * reached / max(1, depth))
    return replace(before, rerank=rerank_seconds), reached


@dataclass(frozen=True)
class CollectionPlan:
    """A prediction for one collection, whose chunks have the fingerprint ``content``.

    ``work`` has tokens by stage (rerank: to the requested depth), query-chunk pairs (fusion), chunks (export).
    ``seconds`` are wall seconds, with rerank to ``depth``. ``basis`` is the origin of each stage's cost.
    ``dense_only_seconds`` are the plain script's; None if it was not measured. ``without`` are sentences about models
    that cannot run, by slug.
    """

    collection: str
    content: str
    chunks: int
    queries: int
    work: dict[str, float]
    seconds: StageSeconds
    depth: int
    requested_depth: int
    basis: dict[str, Basis]
    dense_only_seconds: float | None
    without: dict[str, str] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float | None]:
        """Both ratios of the latency budget; None if unknown."""
        return {"vs_sla": self.seconds.vs_sla(self.dense_only_seconds), "vs_own_dense": self.seconds.vs_own_dense()}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; seconds and ratios are rounded."""
        ratios = {name: None if ratio is None else round(ratio, 4) for name, ratio in self.ratios.items()}
        return {**asdict(self), "seconds": rounded(self.seconds), **ratios}


def plan_collection(
    settings: Settings,
    collection: Collection,
    computing: Computing,
    *,
    recalibrate: bool = False,
    announce: Callable[[str], None] = lambda message: None,
) -> CollectionPlan:
    """Predict one collection's run.

    Stages are calibrated where no cost is known, or again with ``recalibrate``; ``announce`` then gets a message.
    """
    sample = read_sample(settings, collection)
    content = content_fingerprint(sample.chunks["content_hash"])
    models, without = models_that_run(settings)
    depth = settings.rerank.depth if models["rerank"] else 0
    work = _count_work(settings, models, sample, depth)
    costs, basis = dict[str, StageCost](), dict[str, Basis]()
    for stage in TIMED_STAGES:
        as_asked = models.get(stage, ()) == models_of(settings, stage)
        observations = recall(settings, stage) if as_asked and not (recalibrate and stage in MODEL_STAGES) else []
        if not observations and work[stage] and stage in MODEL_STAGES:
            announce(f"calibrating {stage} …")
            observations = calibrate(stage, sample, settings, computing)
            if as_asked:
                remember(settings, {stage: observations})
        costs[stage] = fit(observations) if observations else _ASSUMED.get(stage, _NOTHING)
        seen = {each.origin for each in observations}
        basis[stage] = "earlier runs" if "run" in seen else "calibration" if seen else "assumed"
        basis[stage] = basis[stage] if work[stage] else "does not run"
    plain = _plain_dense(settings, models["dense"], content)
    seconds, reached = predict(work, costs, depth, settings.rerank, plain)
    sizes = sample.chunks.height, sample.queries.height
    return CollectionPlan(collection.name, content, *sizes, work, seconds, reached, depth, basis, plain, without)


def models_that_run(settings: Settings) -> tuple[Models, dict[str, str]]:
    """Find the models that a run gets results from, and why it does without others, by slug.

    Raises:
        ModelUnavailableError: if the primary model cannot run: a run ends with that error.
    """
    choice, without = choose_models(settings.models), dict[str, str]()
    require_model(choice.primary, settings)

    def runs(spec: ModelSpec) -> bool:
        try:
            require_model(spec, settings)
        except ModelUnavailableError as error:
            alone = spec.kind == "rerank" and late_model(settings)
            without[spec.slug] = f"{error}. {_LATE_ALONE if alone else _WITHOUT[spec.kind]}"
        return spec.slug not in without

    sparse = filter(runs, choice.sparse if settings.enable_sparse else ())
    rerank = filter(runs, (choice.rerank,) if settings.enable_rerank else ())
    models = {"sparse": tuple(sparse)[:1], "rerank": tuple(rerank)}
    return {"dense": (choice.primary, *filter(runs, choice.dense[1:])), **models}, without


def _count_work(settings: Settings, models: Models, sample: Sample, depth: int) -> dict[str, float]:
    """Count tokens as the models will read them. Pairs are taken to be as long as queries and chunks on average."""
    pair = 0.0
    for reranker in models["rerank"]:
        sides = (sample.queries["text"], sample.searched)
        query, chunk = (token_lengths(texts, reranker, settings).mean() for texts in sides)
        specials = 3  # enclose query and chunk
        pair = min(float(query + chunk) + specials, reranker.chunk_tokens or _NO_LIMIT)
    return {
        "dense": sum(_encoder_tokens(sample, sample.chunks["text"], spec, settings) for spec in models["dense"]),
        "sparse": sum(_encoder_tokens(sample, sample.searched, spec, settings) for spec in models["sparse"]),
        "fusion": float(sample.chunks.height * sample.queries.height),
        "rerank": pair * sample.queries.height * min(depth, sample.chunks.height),
        "export": float(sample.chunks.height),
    }


def token_lengths(texts: pl.Series, spec: ModelSpec, settings: Settings) -> NDArray[np.int64]:
    """Count the tokens of every text, without special tokens: ``[n_texts] int64``."""
    from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies

    return tokenise_bodies(
        texts, load_vocabulary(files_of(spec, settings)), spec.chunk_tokens or _NO_LIMIT, spec.document_prefix or ""
    ).full_lengths


def _encoder_tokens(sample: Sample, chunks: pl.Series, spec: ModelSpec, settings: Settings) -> float:
    """Count the tokens that an encoder reads; equal texts are encoded once, and 2 special tokens enclose each."""
    lengths = [token_lengths(texts.unique(), spec, settings) for texts in (chunks, sample.queries["text"])]
    return float(np.minimum(np.concatenate(lengths) + 2, spec.chunk_tokens or _NO_LIMIT).sum())


def _plain_dense(settings: Settings, dense: Sequence[ModelSpec], content: str) -> float | None:
    from ensemble_assets.compute.devices.cuda import torch_gpus

    models = tuple(files_of(spec, settings).fingerprint for spec in dense)
    key = baseline_key(this_host(torch_gpus()), content, models)
    baseline = find_baseline(baselines_folder(settings.paths), key)
    return baseline.seconds if baseline else None
