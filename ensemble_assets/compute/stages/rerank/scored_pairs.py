"""Score pairs with one model: a CrossEncoder, or an encoder whose token states are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.compute.backends.token_states import STATE
from ensemble_assets.compute.batching.table_result import merge_results
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, record_of
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.stages.rerank.depth import SliceResults, TimeLimit, score_slices
from ensemble_assets.compute.stages.rerank.pairs import PairRows, Pairs, late_rows, own_rows, tokenised_rows
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import failed_texts, largest_logits
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class Scored:
    """Scores of pairs: ``logits`` ``[n_pairs] float32``, NaN where there is none, down to rank ``reached``.

    ``failed`` says why a query is not reranked; ``largest_batch`` is in tokens.
    """

    logits: NDArray[np.float32]
    failed: dict[str, str]
    reached: int
    record: StageRecord
    largest_batch: int


def score_pairs(
    pairs: Pairs, spec: ModelSpec, context: ComputeContext, make_factory: FactoryMaker, limit: TimeLimit
) -> Scored:
    """Score pairs with the model of ``spec``, best ranks first, as deep as ``limit`` allows."""
    files = context.locate(spec)
    factory = make_factory(spec, files, context.runtime)
    spec = factory.spec
    context.start_workers(factory)
    if STATE in factory.outputs:
        work = late_rows(pairs, factory, files, context)
    elif factory.traits.tokens == "library":
        work = own_rows(pairs, spec, files)
    else:
        work = tokenised_rows(pairs, load_vocabulary(files), spec, context)
    with hold(context, "rerank", spec, factory) as held:
        slices = score_slices(work, held, limit)
    result = merge_results(slices.results)
    record = record_of("rerank", "completed", spec, files, factory, result)
    return _by_pair(pairs.head, work, slices, record, result.largest_batch)


def _by_pair(
    head: pl.DataFrame, work: PairRows, slices: SliceResults, record: StageRecord, largest_batch: int
) -> Scored:
    """Turn results of windows into results of pairs, and failed pairs into failed queries."""
    failed: dict[str, str] = {}  # of a query, the reason of its best-ranked failed pair
    for pair, reason in sorted(failed_texts(slices.failed, work.windows).items()):
        failed.setdefault(head["public_id"][pair], reason)
    without = head["public_id"].is_in(list(failed)).to_numpy()
    logits = np.where(without, np.float32(np.nan), largest_logits(slices.logits, work.windows))
    scored = head["rank"].to_numpy() <= slices.reached
    lost = work.windows.dropped[scored]
    record = replace(
        record,
        items=int(scored.sum()),
        truncated=slices.truncated + int((lost > 0).sum()),
        tokens_dropped=slices.tokens_dropped + int(lost.sum()),
    )
    return Scored(logits, failed, slices.reached, record, largest_batch)
