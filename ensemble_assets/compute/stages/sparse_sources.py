"""A sparse forward's outputs and what stands in for missing rows, put together, with where every vector comes from.

What the stand-ins are is ``fallback_terms``; running the model is ``sparse``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.backends.sparse_output import SparseMatrix, SparseRow, matrix_of

NO_SOURCE, LIVE, STAND_IN = 0, 1, 2
EMPTY_OUTPUT = "empty_output"

_NOTHING = SparseRow(np.empty(0, np.int32), np.empty(0, np.float32))

StandIns = Callable[[Sequence[int], SparseMatrix], Sequence[SparseRow]]
"""From row numbers and the rows that are live to one vector for each of those numbers; empty where there is none."""


@dataclass(frozen=True)
class PrunedOutputs:
    """A sparse forward's outputs for chunks, or for queries.

    Attributes:
        index: ``[n, k] int32``, unused places -1.
        weight: ``[n, k] float32``.
        failed: row -> why it has no output.
        in_full: row -> its vector, where pruning was undone.
    """

    index: NDArray[np.int32]
    weight: NDArray[np.float32]
    failed: Mapping[int, str]
    in_full: Mapping[int, SparseRow]

    @classmethod
    def none(cls, rows: int, reason: str) -> PrunedOutputs:
        """Outputs of a model that did not run."""
        index = np.full((rows, 1), -1, np.int32)
        return cls(index, np.zeros((rows, 1), np.float32), dict.fromkeys(range(rows), reason), {})


@dataclass(frozen=True)
class SourcedVectors:
    """Vectors of chunks, or of queries.

    Attributes:
        matrix: one row each.
        source: ``[n] uint8``: 0 no vector, 1 live inference, 2 something that stands in.
        reasons: why rows are not live -> how many, rows without any vector included.
        without: the same, of the rows without any vector only.
    """

    matrix: SparseMatrix
    source: NDArray[np.uint8]
    reasons: dict[str, int]
    without: dict[str, int]


def with_sources(outputs: PrunedOutputs, stand_ins: StandIns) -> SourcedVectors:
    """Live vectors where there are any; where a row failed or came out empty, what stands in for it."""
    why = dict(outputs.failed)
    live = matrix_of(outputs.index, outputs.weight, {**outputs.in_full, **dict.fromkeys(why, _NOTHING)})
    for row in np.flatnonzero(live.counts == 0).tolist():
        why.setdefault(row, EMPTY_OUTPUT)
    matrix = live
    if why:
        rows = sorted(why)
        instead = dict(zip(rows, stand_ins(rows, live), strict=True))
        matrix = matrix_of(outputs.index, outputs.weight, {**outputs.in_full, **instead})
    source = np.full(len(matrix), LIVE, np.uint8)
    source[list(why)] = STAND_IN
    source[matrix.counts == 0] = NO_SOURCE
    without = Counter(reason for row, reason in why.items() if source[row] == NO_SOURCE)
    return SourcedVectors(matrix, source, dict(Counter(why.values())), dict(without))
