"""Turn an encoder's token states into bytes: one signed byte for each component, and one scale for each token.

A state is divided by its length, since only directions are compared, and its largest component becomes 127. Multiplied
by its scale, a token's bytes are a vector of length 1 again. Components are rounded to within 1/254 of the largest
one, which moves a cosine by 0.001 on average (``docs/decisions/0025``).

The vectors of ColBERT models are narrow, and made to be compared: they are kept in half precision, with the largest
component as the scale (``docs/decisions/0032``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STATE, SCALE = "state", "state_scale"

SCALE_BYTES = 4

LEFT_OUT = -1.0
"""The scale of a token that is not compared, such as the punctuation of a document in ColBERT models."""

_TOKENS_AT_ONCE = 256
"""Tokens turned at once: their intermediate arrays stay in a core's cache, which halves the time."""


def quantise(states: NDArray[np.float32], used: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
    """Turn the states of a batch, ``[batch, longest, width]``, into ``state_outputs`` of its ``used`` tokens.

    The scale of a state that is not finite is NaN, and of one that is zero 0.
    """
    tokens = np.flatnonzero(used)
    flat = states.reshape(-1, states.shape[-1])
    codes, scales = np.empty((len(tokens), flat.shape[1]), np.int8), np.empty(len(tokens), np.float32)
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        part = slice(start, start + _TOKENS_AT_ONCE)
        some = flat[tokens[part]]
        largest = np.maximum(some.max(axis=1), -some.min(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            some *= (np.float32(127) / largest)[:, None]
            np.rint(some, out=some)
            length = np.sqrt(np.einsum("ij,ij->i", some, some))
            usual = np.isfinite(largest).all() and largest.all()  # NaN shows in the largest component
            codes[part] = some if usual else np.nan_to_num(some)
            scales[part] = np.where(largest == 0, np.float32(0), np.float32(1) / length)
    return {STATE: codes, SCALE: scales}


def restored(codes: NDArray[np.int8 | np.float16], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors that these stand for, ``[tokens, width] float32``; those of bytes have length 1."""
    vectors: NDArray[np.float32] = codes.astype(np.float32) * scales[:, None]
    return vectors
