"""Make the sparse vector of version 4.0 from the term weights in a chunk's metadata (an echo of them).

Terms are numbered by SHA-1. ``compute.stages.sparse`` makes the learned sparse vectors.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_WEIGHT = 1e15
"""Larger weights count as no number: the sum of many of their squares would be too large for float32 (3e38)."""


@dataclass(frozen=True)
class SparseEcho:
    """A sparse vector of version 4.0; ``tokens`` are the terms. ``as_json`` has the contract's key order.

    ``indices`` has one number per token: equal terms give equal ones, and both stay. ``values`` are float32 values as
    Python floats, unit L2 norm unless all weights are zero. ``stats`` are ``weight_norm``, ``unique_terms``,
    ``total_terms``, ``weighting``, in that order.
    """

    indices: list[int]
    values: list[float]
    tokens: list[str]
    stats: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the object under ``sparse_vector``."""
        return {"indices": self.indices, "values": self.values, "tokens": self.tokens, "stats": self.stats}


def sparse_echo(features: Any) -> SparseEcho | None:
    """Make the echo of a chunk's ``sparse_features``, a value of any type. None if no term is usable."""
    terms = list(usable_terms(features))
    if not terms:
        return None
    tokens = [term for term, _ in terms]
    weights = np.array([weight for _, weight in terms], dtype=np.float32)
    norm = l2_norm(weights)
    return SparseEcho(
        indices=[term_index(term) for term in tokens],
        values=(weights / np.float32(norm) if norm > 0 else weights).tolist(),
        tokens=tokens,
        stats={
            "weight_norm": norm,
            "unique_terms": features.get("unique_terms", len(tokens)),
            "total_terms": features.get("total_terms", 0),
            "weighting": features.get("weighting", "tf-normalized"),
        },
    )


def usable_terms(features: Any) -> Iterator[tuple[str, float]]:
    """Yield the usable (term, weight) pairs of ``sparse_features``, in order.

    The contract leaves out entries that are no object, terms that are no string and weights that are no number. Also
    left out are weights that are not finite or too large for float32, and terms with a lone surrogate: a JSON file
    cannot hold them.
    """
    entries = features.get("term_weights") if isinstance(features, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        term, weight = entry.get("term"), entry.get("weight")
        if not isinstance(term, str) or not isinstance(weight, (int, float)):
            continue
        if abs(weight) <= _LARGEST_WEIGHT and (term.isascii() or not _SURROGATE.search(term)):
            yield term, float(weight)


def l2_norm(weights: NDArray[np.float32]) -> float:
    """Return the L2 norm of ``[n] float32`` as a float32 value, the same on every machine.

    Squares are float32, their sum is exact, sum and root are rounded to float32. Version 4.0 called ``np.linalg.norm``
    instead. With OpenBLAS on x86-64 (measured on four of its kernels) that gives the same bits for up to 31 weights.
    From 32 on its kernels differ from each other in the last digit.
    """
    return float(np.sqrt(np.float32(math.fsum((weights * weights).tolist()))))


@lru_cache(maxsize=1 << 16)
def term_index(term: str) -> int:
    """Return the first 8 hex digits of SHA-1(term, UTF-8) as an integer."""
    return int.from_bytes(hashlib.sha1(term.encode("utf-8"), usedforsecurity=False).digest()[:4], "big")
