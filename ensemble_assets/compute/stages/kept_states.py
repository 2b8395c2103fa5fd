"""Read the token states that a run of an encoder made: compare them, or give them away as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.backends.model_traits import MAXSIM
from ensemble_assets.compute.backends.token_states import SCALE, STATE, restored
from ensemble_assets.compute.batching.table_result import TokenOutputs
from ensemble_assets.compute.tokens.token_tables import Template, numbers_of_pieces
from ensemble_assets.compute.tokens.windows import Windows


@dataclass(frozen=True)
class KeptStates:
    """The states of one encoder's input: a row per window of every chunk, then a row per query (``EncoderInput``).

    For every query there is one product with all its chunks' tokens. For every token of the query, the largest cosine
    with a token of the chunk is taken, a negative one as 0, and squared. The score is the average over the query's
    tokens, with weights if there are any: ColBERT's (Khattab and Zaharia, SIGIR 2020, arXiv 2004.12832) with the mean
    of squares in place of the sum. ``docs/decisions/0013`` has the reason for squares. Special tokens do not count. A
    chunk that was encoded in windows has the tokens of all of them.

    A ColBERT model says itself how its vectors are compared: ``similarity`` is one of ``MAXSIM``, without squares and
    weights, and all tokens count but those that are ``LEFT_OUT``.
    """

    states: TokenOutputs
    windows: Windows
    template: Template
    similarity: str = "cosine"

    def scores(
        self,
        queries: NDArray[np.int64],
        chunks: NDArray[np.int64],
        weights: Sequence[NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Compute the scores of pairs, ``[n_pairs] float32``; NaN where a text has no states, or some are not finite.

        ``queries`` and ``chunks`` are numbers in the encoder's input, ``[n_pairs]`` each. ``weights`` has those of each
        query's tokens, ``[tokens]``, above 0; without it all count alike.
        """
        scores = np.full(len(queries), np.nan, np.float32)
        order = np.argsort(queries, kind="stable")
        starts = np.flatnonzero(np.diff(queries[order], prepend=-1))
        for pairs in np.split(order, starts[1:]) if len(order) else ():
            query = int(queries[pairs[0]])
            scores[pairs] = self._of_query(query, chunks[pairs], None if weights is None else weights[query])
        return scores

    def _of_query(
        self, query: int, chunks: NDArray[np.int64], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Compare one query with some chunks, ``[n_chunks] float32``."""
        counts = self.windows.counts[chunks]
        rows = numbers_of_pieces(self.windows.first[chunks], counts)
        lengths = self.states.lengths[rows]
        query_rows = np.array([len(self.windows) + query])
        whole = np.minimum.reduceat(lengths, np.cumsum(counts) - counts) > 0
        if not whole.any() or not self.states.lengths[query_rows[0]]:
            return np.full(len(chunks), np.nan, np.float32)
        codes, scales = self._inner(query_rows)
        asked = restored(codes, scales)[~(scales < 0)]
        codes, scales = self._inner(rows[np.repeat(whole, counts)])
        # tokens of every chunk, without special ones
        inner = np.maximum(lengths - self.template.single_specials, 0)
        sizes = np.add.reduceat(inner, np.cumsum(counts) - counts)[whole]
        scores = np.zeros(len(sizes), np.float32)
        filled = sizes > 0
        if filled.any() and len(asked):
            starts = (np.cumsum(sizes) - sizes)[filled]
            # scaling the products takes one pass less than scaling the states
            cosines = (asked @ codes.astype(np.float32).T) * scales
            cosines[:, scales < 0] = -np.inf
            best = np.maximum.reduceat(cosines, starts, axis=1)
            if self.similarity not in MAXSIM:
                best = np.square(np.maximum(best, 0.0))
            made = np.average(best, axis=0, weights=weights) * (len(asked) if self.similarity == "maxsim" else 1)
            scores[filled] = np.where(np.isneginf(made), 0.0, made)
        result = np.full(len(chunks), np.nan, np.float32)
        result[whole] = scores
        return result

    @property
    def width(self) -> int:
        """Components of a token's state; 0 where there is no row."""
        return int(self.states.read(STATE, np.zeros(1, np.int64)).shape[1]) if len(self.states.lengths) else 0

    def sizes(self) -> NDArray[np.int64]:
        """Count the tokens of every chunk, without special ones: ``[n_chunks] int64``."""
        inner = np.maximum(self.states.lengths[: len(self.windows)] - self.template.single_specials, 0)
        return np.bincount(self.windows.texts, inner, len(self.windows.first)).astype(np.int64)

    def of_chunks(self, first: int, last: int) -> NDArray[np.int8]:
        """Read the bytes of the tokens of chunks ``first`` to ``last`` - 1, at least one: ``[tokens, width]``."""
        chunks = slice(first, last)
        return self._inner(numbers_of_pieces(self.windows.first[chunks], self.windows.counts[chunks]))[0]

    def of_query(self, query: int) -> NDArray[np.float32]:
        """Give the states of a query's tokens as vectors of length 1, ``[tokens, width]``."""
        return restored(*self._inner(np.array([len(self.windows) + query])))

    def _inner(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Read bytes and scales of some rows' tokens, without special ones: ``[tokens, width]`` and ``[tokens]``."""
        lengths = self.states.lengths[rows]
        before, specials = len(self.template.single_before), self.template.single_specials
        starts = np.cumsum(lengths) - lengths + before
        inner = numbers_of_pieces(starts, np.maximum(lengths - specials, 0))
        return self.states.read(STATE, rows)[inner], self.states.read(SCALE, rows)[inner]
