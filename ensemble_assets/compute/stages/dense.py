"""Encode chunks and queries as unit vectors of one or several encoders, one encoder after another.

Vectors of different models lie in different spaces and are never averaged. The search combines their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.records import DenseRecord
from ensemble_assets.artefacts.stage_record import StageRecord, extend_record, merge_records
from ensemble_assets.common.errors import EnsembleError, MemoryBudgetError, ModelUnavailableError, StageError
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.backends.forward import ForwardFactory, with_states
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.table_result import TableResult, merge_results
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of, record_of
from ensemble_assets.compute.stages.encoder_input import EncoderInput, EncoderTexts
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.stages.kept_states import KeptStates
from ensemble_assets.compute.stages.states_plan import NO_TOKEN_STATES, StatesPlan, StatesWanted
from ensemble_assets.compute.tokens.token_tables import Template
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import mean_vectors
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class DenseVectors:
    """One encoder's output; ``spec`` is completed from the model's files.

    ``chunks`` and ``queries`` are ``[n, dimension] float32``, unit rows in their order. ``truncated`` ``[n_chunks]
    bool`` marks chunks that lost tokens. ``norms`` ``[n_chunks] float32`` are the vectors' lengths before that, for a
    model whose dot products rank. ``states`` is the plan for the states of its tokens, which late interaction compares.
    ``tokens`` are these states where they are to be exported.
    """

    spec: ModelSpec
    files: ModelFiles
    chunks: NDArray[np.float32]
    queries: NDArray[np.float32]
    truncated: NDArray[np.bool_]
    record: StageRecord
    norms: NDArray[np.float32] | None = None
    states: StatesPlan | None = None
    tokens: KeptStates | None = None


@dataclass(frozen=True)
class DenseResult:
    """The outputs of at least one encoder, the primary first, and the reasons of dropped companions by model."""

    models: tuple[DenseVectors, ...]
    record: DenseRecord
    dropped: dict[str, str] = field(default_factory=dict)


def encode_dense(
    chunks: pl.Series,
    queries: pl.Series,
    specs: Sequence[ModelSpec],
    context: ComputeContext,
    *,
    chunk_ids: pl.Series | None = None,
    make_factory: FactoryMaker = dense_factory,
    states: StatesWanted | None = None,
    token_vectors: str = "",
) -> DenseResult:
    """Encode chunks and queries with every model, each alone on the leased devices; the first model is the primary one.

    Without ``chunk_ids``, error messages name row numbers. ``states`` names a model whose token states are to be kept
    beside its vectors, in the row store, if that is planned to be the cheaper way to late interaction. The result of
    model ``token_vectors`` has its token states in any case.

    Raises:
        ModelUnavailableError: if the primary model cannot be loaded, or has no token states and they are asked for.
        StageError: if the primary model fails on a text; names the chunk and its length.
        MemoryBudgetError: if the primary model, or one chunk in it, does not fit into memory.
    """
    models: list[DenseVectors] = []
    dropped: dict[str, str] = {}
    with context.expecting(len(specs)) as expecting:
        for spec in specs:
            try:
                with_tokens = spec.slug == token_vectors
                models.append(
                    _encode_one(
                        chunks, queries, spec, expecting, chunk_ids, make_factory,
                        states=states, with_tokens=with_tokens,
                    )
                )  # fmt: skip
            except EnsembleError as error:
                if not models:
                    raise
                reason = dropped[spec.slug] = reason_of(error)
                context.events.emit("fallback.dense", model=spec.slug, reason=reason, source="none", count=1)
    parts = [model.record for model in models]
    merged = merge_records("dense", "partial" if dropped else "completed", parts)
    reasons = {reason: list(dropped.values()).count(reason) for reason in dict.fromkeys(dropped.values())}
    record = extend_record(
        merged,
        DenseRecord,
        fallback_count=len(dropped),
        fallback_reasons=reasons,
        queries=len(queries),
        dropped=dropped,
    )
    return DenseResult(tuple(models), record, dropped)


def _encode_one(
    chunks: pl.Series,
    queries: pl.Series,
    spec: ModelSpec,
    context: ComputeContext,
    chunk_ids: pl.Series | None,
    make_factory: FactoryMaker,
    *,
    states: StatesWanted | None,
    with_tokens: bool,
) -> DenseVectors:
    started = context.clock()
    files = context.locate(spec)
    factory = make_factory(spec, files, context.runtime)
    spec = factory.spec
    context.start_workers(factory)
    texts = EncoderTexts(chunks, queries, factory, files, context.tokens)
    plan, streamed = None, context.in_workers
    if states is not None and states.slug == spec.slug:
        factory, plan = _with_planned_states(factory, texts.input, states)
        streamed = False  # the plan has counted all tokens
    tokens = None
    if with_tokens:
        factory, streamed = _with_token_states(factory), False
    try:
        with texts.tables(streamed=streamed) as tables, hold(context, "dense", spec, factory) as model:
            result = model.run(tables)
        if with_tokens:
            result, tokens = _complete_tokens(result, texts.input, context, factory, load_vocabulary(files).template)
    except DeviceOutOfMemoryError:
        raise MemoryBudgetError(
            f"dense: the weights of {spec.slug} do not fit into the memory they may use. "
            "Raise the memory ceiling, use half precision, or choose a smaller model"
        ) from None
    work = texts.input
    _refuse_failures(result, work, spec, chunk_ids)
    vectors, norms = result.outputs["vector"], result.outputs.get("norm")
    windows = len(work.windows)
    of_windows = None if norms is None else norms[:windows]
    chunk_vectors, lengths = mean_vectors(vectors[:windows], work.windows, of_windows)
    record = work.add_counts(record_of("dense", "completed", spec, files, factory, result))
    record = replace(record, seconds=context.clock() - started, warnings=_ranked_otherwise(factory))
    cut = work.windows.dropped > 0
    return DenseVectors(spec, files, chunk_vectors, vectors[windows:], cut, record, lengths, plan, tokens)


def _with_planned_states(
    factory: ForwardFactory, work: EncoderInput, wanted: StatesWanted
) -> tuple[ForwardFactory, StatesPlan]:
    """Decide about the states of an encoder's tokens, and have them computed if they are to be kept."""
    beside = with_states(factory, "beside")
    if beside is None:
        return factory, NO_TOKEN_STATES
    windows = len(work.windows)
    chunk_tokens = int(work.table.offsets[windows])
    query_tokens = int(work.table.offsets[-1]) - chunk_tokens
    chunks, queries = len(work.windows.first), len(work.table) - windows
    plan = wanted.plan(chunk_tokens, query_tokens, chunks, queries, factory.width)
    return (beside if plan.states == "kept" else factory), plan


def _with_token_states(factory: ForwardFactory) -> ForwardFactory:
    """Have an encoder give its token states beside its vectors; ``ModelUnavailableError`` if it has none."""
    beside = with_states(factory, "beside")
    if beside is None:
        raise ModelUnavailableError(
            f"{factory.spec.slug}: token vectors need an encoder that is one transformer. "
            "Choose another model, or set export.token_vectors=false"
        )
    return beside


def _complete_tokens(
    result: TableResult, work: EncoderInput, context: ComputeContext, factory: ForwardFactory, template: Template
) -> tuple[TableResult, KeptStates]:
    """Give the states of all tokens; an earlier run may have stored a row's vector without them, which is run again."""
    states, alone = result.by_token, with_states(factory, "alone")
    assert states is not None
    if alone is not None and ((states.lengths == 0) & (work.table.lengths > 0)).any():
        with hold(context, "dense", factory.spec, alone) as model:
            again = model.run(work.table)
        costs = merge_results([again, result])
        failed = {**again.failed_rows, **result.failed_rows}
        result = replace(costs, outputs=result.outputs, failed_rows=failed, reused_rows=result.reused_rows)
        states = again.by_token or states
    return result, KeptStates(states, work.windows, template)


def _ranked_otherwise(factory: ForwardFactory) -> tuple[str, ...]:
    """Warn of a model whose vectors are meant to be compared by a distance, which the search does not compute."""
    meant = factory.traits.similarity
    if meant in ("cosine", "dot"):
        return ()
    slug = factory.spec.slug
    return (f"dense: {slug} is meant for {meant} distances, and is ranked by cosines, which may give another order",)


def _refuse_failures(result: TableResult, work: EncoderInput, spec: ModelSpec, chunk_ids: pl.Series | None) -> None:
    """Raise an error that names the first text without a vector: there is no fallback for a dense vector."""
    if not result.failed_rows:
        return
    row = min(result.failed_rows)
    reason = result.failed_rows[row]
    query = row - len(work.windows)
    if query >= 0:
        name = f"query {query}"
    else:
        chunk = int(work.windows.texts[row])
        name = f"chunk {chunk if chunk_ids is None else chunk_ids[chunk]}"
    message = (
        f"dense: {spec.slug} gave no vector for {len(result.failed_rows)} texts, the first is {name} "
        f"of {int(work.table.lengths[row])} tokens ({reason})"
    )
    if reason == "out_of_memory":
        raise MemoryBudgetError(f"{message}. Raise the memory ceiling or lower the model's max_tokens")
    raise StageError(f"{message}. Remove or repair it, or choose another model")
