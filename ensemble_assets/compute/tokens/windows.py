"""Chunks longer than a model takes, read in several windows, and how the windows' results become one per chunk.

With one window a chunk is cut at the model's limit. What a window is run through is the stages' part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import TokenBodies

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Windows:
    """Windows of some texts, text after text.

    Attributes:
        bodies: one row a window; a view, no ids are copied.
        first: ``[n_texts] int64``, the first window of every text.
        dropped: ``[n_texts] int64``, tokens of a text that no window has.
    """

    bodies: TokenBodies
    first: NDArray[np.int64]
    dropped: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Windows of every text, ``[n_texts] int64``, at least 1."""
        return np.diff(self.first, append=len(self.bodies))

    @property
    def texts(self) -> NDArray[np.int64]:
        """Which text every window is of, ``[n_windows] int64``."""
        return np.repeat(np.arange(len(self.first)), self.counts)


def windows_of(bodies: TokenBodies, room: int | NDArray[np.int64], most: int) -> Windows:
    """Cut texts into consecutive windows that do not overlap and are as long as each other, give or take one token.

    Args:
        bodies: ``n`` texts, of which ``most * room`` tokens are kept at least.
        room: tokens in a window at most; one number, or one per text.
        most: windows per text at most, 1 or more.
    """
    kept = np.minimum(bodies.full_lengths, most * room)
    counts = np.maximum(1, -(-kept // room))
    first = np.cumsum(counts) - counts
    place = np.arange(int(counts.sum())) - np.repeat(first, counts)
    kept_each, counts_each = np.repeat(kept, counts), np.repeat(counts, counts)
    begin, end = place * kept_each // counts_each, (place + 1) * kept_each // counts_each
    view = TokenBodies(bodies.ids, np.repeat(bodies.starts, counts) + begin, end - begin, bodies.cap)
    return Windows(view, first, bodies.full_lengths - kept)


def take_bodies(bodies: TokenBodies, rows: NDArray[np.int64]) -> TokenBodies:
    """Some texts, in the given order, also repeatedly; a view."""
    return TokenBodies(bodies.ids, bodies.starts[rows], bodies.full_lengths[rows], bodies.cap)


def mean_vectors(vectors: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    """One unit vector per text: the mean of its windows' by their tokens, ``[n_texts, dimension] float32``.

    A text of one window keeps its vector's bits. A maximum by component, as for weights and logits, would not do here:
    signs of a dense vector's components have no meaning by themselves.
    """
    if len(windows) == len(windows.first):
        return vectors
    pooled = np.empty((len(windows.first), vectors.shape[1]), np.float32)
    weights = np.maximum(windows.bodies.full_lengths, 1).astype(np.float64)
    for start in range(0, len(pooled), _ROWS_AT_ONCE):
        texts = slice(start, min(start + _ROWS_AT_ONCE, len(pooled)))
        first, counts = windows.first[texts], windows.counts[texts]
        rows = slice(int(first[0]), int(first[-1] + counts[-1]))
        sums = np.add.reduceat(vectors[rows] * weights[rows, None], first - first[0], axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        single = counts == 1
        pooled[texts] = sums / np.where(norms > 0, norms, 1.0)
        pooled[start + np.flatnonzero(single)] = vectors[first[single]]
    return pooled


def largest_weights(
    index: NDArray[Any], weight: NDArray[Any], windows: Windows
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """One pruned sparse vector per text: every term's largest weight in any window, the ``k`` largest of those kept.

    This is SPLADE's pooling over all tokens of the text, since the maximum over windows of the maxima over tokens is
    that over all. Nothing is lost by each window's own pruning: a term that is among the ``k`` largest of the text is
    among those of the window that has its maximum.

    Args:
        index: ``[n_windows, k] int32``, unused places -1.
        weight: ``[n_windows, k] float32``.
        windows: which are of which text.

    Returns:
        The same for texts, by falling weight and then by term.
    """
    if len(windows) == len(windows.first):
        return index, weight
    kept = index.shape[1]
    out_index, out_weight = index[windows.first].copy(), weight[windows.first].copy()
    counts = windows.counts
    for text in np.flatnonzero(counts > 1).tolist():
        rows = slice(int(windows.first[text]), int(windows.first[text] + counts[text]))
        used = index[rows] >= 0
        terms, place = np.unique(index[rows][used], return_inverse=True)
        largest = np.zeros(len(terms), np.float32)
        np.maximum.at(largest, place, weight[rows][used])
        order = np.lexsort((terms, -largest))[:kept]
        out_index[text], out_weight[text] = -1, 0.0
        out_index[text, : len(order)], out_weight[text, : len(order)] = terms[order], largest[order]
    return out_index, out_weight


def largest_logits(logits: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    """The best window's logit for every text; NaN where a window has none.

    MaxP of Dai and Callan, "Deeper Text Understanding for IR with Contextual Neural Language Modeling" (SIGIR 2019).
    """
    if not len(windows.first):
        return logits[:0]
    best: NDArray[np.float32] = np.maximum.reduceat(logits, windows.first)
    return best


def failed_texts(failed: dict[int, str], windows: Windows) -> dict[int, str]:
    """Text -> why, of texts of which any window failed; the reason is that of the first such window."""
    texts = windows.texts
    reasons: dict[int, str] = {}
    for row in sorted(failed):
        reasons.setdefault(int(texts[row]), failed[row])
    return reasons
