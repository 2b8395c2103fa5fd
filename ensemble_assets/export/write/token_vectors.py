"""Vectors of single tokens, which a bundle has if they were asked for (``export.token_vectors``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKEN_FILES = ("token_vectors.npy", "token_offsets.npy")
"""The two files, as ``BundleNames.file`` names them."""


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of the chunks' tokens, special ones left out; divided by its length, a row is a unit vector.

    ``vectors`` are ``[tokens, width] int8``. Row i of ``offsets``, ``[n_chunks + 1] int64``, is where the tokens of
    chunk i begin.
    """

    vectors: NDArray[Any]
    offsets: NDArray[Any]


def token_problems(tokens: TokenVectors, count: int) -> Iterator[str]:
    """Word the faults of the arrays, which are to be those of ``count`` chunks."""
    vectors, offsets = tokens.vectors, tokens.offsets
    if vectors.ndim != 2 or vectors.dtype != np.int8:
        yield f"token vectors: expected rows of int8, found {list(vectors.shape)} {vectors.dtype}"
    if offsets.shape != (count + 1,) or offsets.dtype != np.int64:
        yield f"token offsets: expected {count + 1} numbers of int64, found {list(offsets.shape)} {offsets.dtype}"
    elif offsets[0] != 0 or offsets[-1] != len(vectors) or bool((np.diff(offsets) < 0).any()):
        yield f"token offsets: expected numbers from 0 to {len(vectors)} without a decrease"
