"""Cut chunks that are longer than a model takes into windows, and merge the windows' results to one per chunk.

With one window a chunk is cut at the model's limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import TokenBodies, TokenTable

_ROWS_AT_ONCE = 4096
"""Texts pooled at once: it bounds the memory of products and sums."""


@dataclass(frozen=True)
class Windows:
    """Windows of some texts, text after text.

    Attributes:
        bodies: one row per window; a view, no ids are copied.
        first: ``[n_texts] int64``, the first window of every text.
        dropped: ``[n_texts] int64``, tokens of a text that are in no window.
    """

    bodies: TokenBodies
    first: NDArray[np.int64]
    dropped: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of windows of every text, ``[n_texts] int64``, at least 1."""
        return np.diff(self.first, append=len(self.bodies))

    @property
    def texts(self) -> NDArray[np.int64]:
        """Text that every window belongs to, ``[n_windows] int64``."""
        return np.repeat(np.arange(len(self.first)), self.counts)


def cut_windows(bodies: TokenBodies, room: int | NDArray[np.int64], most: int) -> Windows:
    """Cut texts into consecutive windows that do not overlap and whose lengths differ by at most one token.

    Args:
        bodies: ``n`` texts with a cap of at least ``most * room``.
        room: most tokens in a window; one number, or one per text.
        most: most windows per text, 1 or more.
    """
    used = np.minimum(bodies.full_lengths, most * room)
    counts = np.maximum(1, -(-used // room))
    first = np.cumsum(counts) - counts
    # per window: its number within its text, and the text's used tokens and number of windows
    place = np.arange(int(counts.sum())) - np.repeat(first, counts)
    used_of_text, windows_of_text = np.repeat(used, counts), np.repeat(counts, counts)
    begin, end = place * used_of_text // windows_of_text, (place + 1) * used_of_text // windows_of_text
    view = TokenBodies(bodies.ids, np.repeat(bodies.starts, counts) + begin, end - begin, bodies.cap)
    return Windows(view, first, bodies.full_lengths - used)


def whole_texts(table: TokenTable) -> Windows:
    """Return one window for each row of a table."""
    bodies = TokenBodies(table.ids, table.offsets[:-1], table.lengths, int(table.lengths.max(initial=1)))
    return Windows(bodies, np.arange(len(table)), table.tokens_lost)


def select_bodies(bodies: TokenBodies, rows: NDArray[np.int64]) -> TokenBodies:
    """Select texts, in the given order and also repeatedly; a view."""
    return TokenBodies(bodies.ids, bodies.starts[rows], bodies.full_lengths[rows], bodies.cap)


def mean_vectors(
    vectors: NDArray[np.float32], windows: Windows, norms: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Average the windows' vectors, weighted by their tokens.

    A text of one window keeps its vector's bits. A maximum by component, as for weights and logits, would be wrong
    here: the sign of a dense vector's component has no meaning by itself.

    Args:
        vectors: ``[n_windows, dimension] float32``, unit rows.
        windows: of the texts.
        norms: ``[n_windows] float32``, the lengths that the vectors had; None where only directions are compared.

    Returns:
        Unit vectors ``[n_texts, dimension] float32``, and the length of each text's mean where there are ``norms``.
    """
    if len(windows) == len(windows.first):
        return vectors, norms
    pooled = np.empty((len(windows.first), vectors.shape[1]), np.float32)
    lengths = None if norms is None else norms[windows.first]
    tokens = np.maximum(windows.bodies.full_lengths, 1).astype(np.float64)
    weights = tokens if norms is None else tokens * norms
    for start in range(0, len(pooled), _ROWS_AT_ONCE):
        texts = slice(start, min(start + _ROWS_AT_ONCE, len(pooled)))
        first, counts = windows.first[texts], windows.counts[texts]
        rows = slice(int(first[0]), int(first[-1] + counts[-1]))
        sums = np.add.reduceat(vectors[rows] * weights[rows, None], first - first[0], axis=0)
        sizes = np.linalg.norm(sums, axis=1)
        single = counts == 1
        pooled[texts] = sums / np.where(sizes > 0, sizes, 1.0)[:, None]
        pooled[start + np.flatnonzero(single)] = vectors[first[single]]
        if lengths is not None:
            means = sizes / np.add.reduceat(tokens[rows], first - first[0])
            lengths[texts] = np.where(single, lengths[texts], means)
    return pooled, lengths


def largest_weights(
    index: NDArray[Any], weight: NDArray[Any], windows: Windows
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Take every term's largest weight in any window of a text, and keep the ``k`` largest of them.

    This is SPLADE's pooling over all tokens of the text: the maximum of the windows' maxima is the maximum over all
    tokens. Pruning each window loses nothing. A term among the ``k`` largest of the text is among the ``k`` largest of
    the window that has its maximum.

    Args:
        index: ``[n_windows, k] int32``, unused places -1.
        weight: ``[n_windows, k] float32``.
        windows: of the texts.

    Returns:
        Index and weight of the texts, ``[n_texts, k]`` each, by falling weight and then by term.
    """
    if len(windows) == len(windows.first):
        return index, weight
    top_k = index.shape[1]
    out_index, out_weight = index[windows.first].copy(), weight[windows.first].copy()
    counts = windows.counts
    for text in np.flatnonzero(counts > 1).tolist():
        rows = slice(int(windows.first[text]), int(windows.first[text] + counts[text]))
        used = index[rows] >= 0
        terms, place = np.unique(index[rows][used], return_inverse=True)
        largest = np.zeros(len(terms), np.float32)
        np.maximum.at(largest, place, weight[rows][used])
        order = np.lexsort((terms, -largest))[:top_k]
        out_index[text], out_weight[text] = -1, 0.0
        out_index[text, : len(order)], out_weight[text, : len(order)] = terms[order], largest[order]
    return out_index, out_weight


def largest_logits(logits: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    """Take the best window's logit of every text; NaN where a window has none.

    This is MaxP of Dai and Callan, "Deeper Text Understanding for IR with Contextual Neural Language Modeling"
    (SIGIR 2019).
    """
    if not len(windows.first):
        return logits[:0]
    best: NDArray[np.float32] = np.maximum.reduceat(logits, windows.first)
    return best


def failed_texts(failed: dict[int, str], windows: Windows) -> dict[int, str]:
    """Map every text with a failed window to the reason of its first such window."""
    texts = windows.texts
    reasons: dict[int, str] = {}
    for row in sorted(failed):
        reasons.setdefault(int(texts[row]), failed[row])
    return reasons
