"""Weigh the tokens of queries by how rare they are in the collection.

For every token of a query late interaction takes its best match in a chunk. Without weights "the" counts as much as a
name. The weight is the inverse collection frequency (Robertson 2004, "Understanding inverse document frequency"):

    weight(token) = log(1 + tokens of the collection / (occurrences of the token + 1/2))

A frequent word keeps about a fifth of a rare word's weight. That is less steep than BM25's weight, since a token's
state knows its neighbours too (``docs/decisions/0031``).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.stages.encoder_input import EncoderInput
from ensemble_assets.compute.tokens.token_tables import Template, TokenBodies, numbers_of_pieces

COLLECTION_FREQUENCY = "collection_frequency"
"""The name of these weights in a run's record; runs of earlier versions have none, and weighed all tokens alike."""

_TEXTS_AT_ONCE = 16_384
"""Texts counted at a time: about 60 MB of token numbers, whatever the collection's size."""


def token_weights(bodies: TokenBodies, cap: int, size: int) -> NDArray[np.float32]:
    """Weigh every token of a vocabulary, ``[size] float32``, by the texts of a collection.

    ``bodies`` has its chunks, of which at most ``cap`` tokens each count: as many as the encoder reads.
    """
    lengths = np.minimum(bodies.full_lengths, cap)
    counts = np.zeros(size, np.int64)
    for first in range(0, len(bodies), _TEXTS_AT_ONCE):
        some = slice(first, first + _TEXTS_AT_ONCE)
        counts += np.bincount(bodies.ids[numbers_of_pieces(bodies.starts[some], lengths[some])], minlength=size)
    weights: NDArray[np.float32] = np.log1p(counts.sum() / (counts + 0.5)).astype(np.float32)
    return weights


def weights_of_queries(
    weights: NDArray[np.float32], work: EncoderInput, template: Template
) -> list[NDArray[np.float32]]:
    """Look up the weights of every query's tokens, ``[tokens] float32`` each, without special ones."""
    before, after = len(template.single_before), template.single_specials - len(template.single_before)
    ids, offsets = work.table.ids, work.table.offsets[len(work.windows) :].tolist()
    return [weights[ids[first + before : last - after]] for first, last in pairwise(offsets)]
