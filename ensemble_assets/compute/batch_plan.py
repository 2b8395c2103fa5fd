"""Rows into batches by a budget of padded tokens, longest first. Learning what budget fits is ``controller``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.work import Batch

DEFAULT_BATCH_TOKENS = 4096
DEFAULT_BATCH_ROWS = 256
"""Bounds what a forward holds per row (a sparse one: a float per vocabulary entry) when texts are short."""


def plan_batches(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], batch_tokens: int, batch_rows: int = DEFAULT_BATCH_ROWS
) -> list[Batch]:
    """Cut ``rows``, longest first, into batches of at most ``batch_tokens`` padded tokens and ``batch_rows`` rows.

    Rows of equal length keep their order. A row longer than the budget is a batch of its own.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    batches = []
    start = 0
    while start < len(ordered):
        longest = int(lengths[ordered[start]])
        size = min(batch_rows, max(1, batch_tokens // longest))
        batches.append(Batch(ordered[start : start + size], longest))
        start += size
    return batches


def halves(batch: Batch, lengths: NDArray[np.int64]) -> list[Batch]:
    """The two halves of a batch of at least two rows, the longer rows first."""
    middle = batch.size // 2
    return [Batch(rows, int(lengths[rows].max())) for rows in (batch.rows[:middle], batch.rows[middle:])]
