"""Score candidates by late interaction over a dense model's token states, beside a reranker.

The dense stage has kept the states in the row store, or the texts of the distinct candidates are encoded here. Either
way the row store is asked for the same rows, so the scores are the same: a row that is there is not computed.

Keeping costs a share of encoding every text. Encoding again costs the texts of all distinct candidates. Whichever is
cheaper is taken, unless it is too much: states that do not fit onto the disk as planned, or so many candidates that
late interaction would not be worth its time. Nothing here depends on how fast the machine was today, so a run's order
does not either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.backends.model_factory import with_states
from ensemble_assets.compute.backends.token_states import SCALE, SCALE_BYTES, STATE, restored
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TokenOutputs
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, record_of
from ensemble_assets.compute.stages.encoder_input import encoder_input
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.tokens.token_tables import Template, numbers_of_pieces
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import Windows
from ensemble_assets.models.spec import ModelSpec

KEEPING_SHARE = 0.04
"""Time to turn a token's states into bytes and store them, as a share of encoding it (``docs/decisions/0025``)."""

MOST_AGAIN = 0.05
"""Largest share of the dense stage's tokens that is encoded again: what late interaction may cost by default."""

States = Literal["kept", "again", "off"]
Reason = Literal["cheaper", "few_candidates", "over_states_gb", "no_reuse", "no_token_states"]


@dataclass(frozen=True)
class StatesPlan:
    """The decision, its reason, and what it was made from.

    Attributes:
        states: ``kept`` by the dense stage, made ``again`` for the candidates, or ``off``: no late interaction.
        tokens: of all chunks and queries.
        tokens_again: tokens that encoding the candidates again is expected to take.
        bytes: of the states of all tokens.
    """

    states: States
    reason: Reason
    tokens: int = 0
    tokens_again: int = 0
    bytes: int = 0


NO_TOKEN_STATES = StatesPlan("off", "no_token_states")


@dataclass(frozen=True)
class StatesWanted:
    """Late interaction that is to come.

    Attributes:
        slug: of the dense model whose states are compared.
        depth: candidates per query.
        most_bytes: of states on disk.
        stored: whether rows are stored at all.
    """

    slug: str
    depth: int
    most_bytes: int
    stored: bool = True

    def plan(self, chunk_tokens: int, query_tokens: int, chunks: int, queries: int, width: int) -> StatesPlan:
        """Decide for so many texts and tokens, with states of ``width`` components."""
        share = expected_candidates(chunks, queries, self.depth) / max(1, chunks)
        again, tokens = int(share * chunk_tokens) + query_tokens, chunk_tokens + query_tokens
        size = tokens * (width + SCALE_BYTES)

        def planned(states: States, reason: Reason) -> StatesPlan:
            return StatesPlan(states, reason, tokens, again, size)

        affordable: States = "again" if again <= MOST_AGAIN * tokens else "off"
        if again <= KEEPING_SHARE * tokens:
            return planned("again", "few_candidates")
        if not self.stored:
            return planned(affordable, "no_reuse")
        if size > self.most_bytes:
            return planned(affordable, "over_states_gb")
        return planned("kept", "cheaper")


def expected_candidates(chunks: int, queries: int, depth: int) -> float:
    """Expect so many distinct chunks among the candidates, if every chunk were as likely as any other.

    Real queries share more of their candidates: SciFact's 300 queries have 3,119 where 3,580 are expected.
    """
    missed = 1 - min(depth, chunks) / max(1, chunks)
    return chunks * (1 - missed**queries)


@dataclass(frozen=True)
class LateInteraction:
    """Late interaction as a part of the rerank stage.

    Attributes:
        spec: the dense model whose token states are compared.
        chunks: every chunk's text, as the dense stage reads it.
        share: of its scores in the final score.
        states: what was planned about them, ``kept``, ``again`` or ``off``; empty where nothing was.
        off: why it was planned away, a fixed word; empty where it was not.
    """

    spec: ModelSpec
    chunks: pl.Series
    share: float
    states: str = ""
    off: str = ""
    make_factory: FactoryMaker = dense_factory


@dataclass(frozen=True)
class LateScores:
    """Scores of pairs: ``[n_pairs] float32``, NaN for every pair of a query in ``failed``, which says why."""

    scores: NDArray[np.float32]
    failed: dict[str, str]
    record: StageRecord


def late_scores(
    head: pl.DataFrame, queries: pl.DataFrame, late: LateInteraction, context: ComputeContext
) -> LateScores:
    """Score every pair of ``head``: ``public_id`` of a query and ``row`` of a chunk.

    Raises:
        ModelUnavailableError: if the model has no token states that can be compared.
    """
    files = context.locate(late.spec)
    factory = with_states(late.make_factory(late.spec, files, context.runtime), "alone")
    if factory is None:
        raise ModelUnavailableError(
            f"{late.spec.slug}: late interaction needs an encoder that is one transformer. Choose another model"
        )
    chunk_rows, chunk_of = np.unique(head["row"].to_numpy().astype(np.int64), return_inverse=True)
    asked = queries.join(head.select("public_id").unique(), on="public_id", how="semi", maintain_order="left")
    numbers = pl.DataFrame({"public_id": asked["public_id"], "_query": np.arange(asked.height)})
    query_of = head.join(numbers, on="public_id", how="left", maintain_order="left")["_query"].to_numpy()
    work = encoder_input(late.chunks, asked["text"], factory, files, context.tokens, rows=chunk_rows)
    with hold(context, "rerank", factory.spec, factory) as model:
        result = model.run(work.table)
    assert result.by_token is not None
    states = KeptStates(result.by_token, work.windows, load_vocabulary(files).template)
    scores = states.scores(query_of.astype(np.int64), chunk_of.astype(np.int64))
    failed: dict[str, str] = {}
    for pair in np.flatnonzero(~np.isfinite(scores)).tolist():
        rows = [*range(*work.rows_of(int(chunk_of[pair]))), len(work.windows) + int(query_of[pair])]
        reason = next((result.failed_rows[row] for row in rows if row in result.failed_rows), NOT_FINITE)
        failed.setdefault(head["public_id"][pair], reason)
    scores[head["public_id"].is_in(list(failed)).to_numpy()] = np.nan
    record = work.add_counts(record_of("rerank", "completed", factory.spec, files, factory, result))
    return LateScores(scores, failed, replace(record, items=int(np.isfinite(scores).sum())))


@dataclass(frozen=True)
class KeptStates:
    """The states of one encoder's input: a row per window of every chunk, then a row per query (``EncoderInput``).

    For every query there is one product with all its chunks' tokens. The score is that of
    ``backends.late_interaction``: for every token of the query the largest cosine with a token of the chunk, negative
    ones as 0, squared, and averaged. Special tokens do not count. A chunk that was encoded in windows has the tokens of
    all of them.
    """

    states: TokenOutputs
    windows: Windows
    template: Template

    def scores(self, queries: NDArray[np.int64], chunks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the scores of pairs, ``[n_pairs] float32``; NaN where a text has no states, or some are not finite.

        ``queries`` and ``chunks`` are numbers in the encoder's input, ``[n_pairs]`` each.
        """
        scores = np.full(len(queries), np.nan, np.float32)
        order = np.argsort(queries, kind="stable")
        starts = np.flatnonzero(np.diff(queries[order], prepend=-1))
        for pairs in np.split(order, starts[1:]) if len(order) else ():
            scores[pairs] = self._of_query(int(queries[pairs[0]]), chunks[pairs])
        return scores

    def _of_query(self, query: int, chunks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compare one query with some chunks, ``[n_chunks] float32``."""
        counts = self.windows.counts[chunks]
        rows = numbers_of_pieces(self.windows.first[chunks], counts)
        lengths = self.states.lengths[rows]
        query_rows = np.array([len(self.windows) + query])
        whole = np.minimum.reduceat(lengths, np.cumsum(counts) - counts) > 0
        if not whole.any() or not self.states.lengths[query_rows[0]]:
            return np.full(len(chunks), np.nan, np.float32)
        asked = restored(*self._inner(query_rows))
        codes, scales = self._inner(rows[np.repeat(whole, counts)])
        # tokens of every chunk, without special ones
        inner = np.maximum(lengths - self.template.single_specials, 0)
        sizes = np.add.reduceat(inner, np.cumsum(counts) - counts)[whole]
        scores = np.zeros(len(sizes), np.float32)
        filled = sizes > 0
        if filled.any() and len(asked):
            starts = (np.cumsum(sizes) - sizes)[filled]
            cosines = (
                asked @ codes.astype(np.float32).T
            ) * scales  # scaling products is a pass less than scaling states
            best = np.maximum(np.maximum.reduceat(cosines, starts, axis=1), 0.0)
            scores[filled] = np.mean(best * best, axis=0, dtype=np.float32)
        result = np.full(len(chunks), np.nan, np.float32)
        result[whole] = scores
        return result

    def _inner(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Read bytes and scales of some rows' tokens, without special ones: ``[tokens, width]`` and ``[tokens]``."""
        lengths = self.states.lengths[rows]
        before, specials = len(self.template.single_before), self.template.single_specials
        starts = np.cumsum(lengths) - lengths + before
        inner = numbers_of_pieces(starts, np.maximum(lengths - specials, 0))
        return self.states.read(STATE, rows)[inner], self.states.read(SCALE, rows)[inner]
