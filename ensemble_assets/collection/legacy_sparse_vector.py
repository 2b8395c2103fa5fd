"""The v4.0 sparse vector of a chunk: an echo of the term weights in its metadata, in a SHA-1 index space.

Live sparse inference is ``compute``; what an exported ``sparse_vector`` is when that stage is on is ``export``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_WEIGHT = 1e15


@dataclass(frozen=True)
class SparseEcho:
    """A sparse vector as bundles carry it; ``as_json`` has the contract's key order.

    Attributes:
        indices: one per token; equal terms give equal indices and both stay.
        values: float32 values as Python floats, unit L2 norm unless all weights are zero.
        tokens: the terms.
        stats: ``weight_norm``, ``unique_terms``, ``total_terms``, ``weighting``, in that order.
    """

    indices: list[int]
    values: list[float]
    tokens: list[str]
    stats: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The object under ``sparse_vector``."""
        return {"indices": self.indices, "values": self.values, "tokens": self.tokens, "stats": self.stats}


def sparse_echo(features: Any) -> SparseEcho | None:
    """The echo of a chunk's ``sparse_features``, or None without a usable term.

    Args:
        features: the value of the metadata key ``sparse_features``, whatever it is.
    """
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
    """The (term, weight) pairs of ``sparse_features`` that can be used, in order.

    Left out, as the contract says: entries that are no object, terms that are no string, weights that are no number.
    A weight that is not finite, or whose square float32 could not hold, counts as no number, and a term with a lone
    surrogate as no string: what they lead to cannot stand in a JSON file.
    """
    entries = features.get("term_weights") if isinstance(features, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        term, weight = entry.get("term"), entry.get("weight")
        if _is_text(term) and _is_weight(weight):
            yield term, float(weight)


def l2_norm(weights: NDArray[np.float32]) -> float:
    """L2 norm of ``[n] float32`` as a float32 value, the same on every machine.

    Squares are float32, their sum is exact, sum and root are rounded to float32. For up to 31 weights that is bit for
    bit what ``np.linalg.norm`` gives with OpenBLAS on x86-64 (measured on four of its kernels), which the old program
    called; from 32 on its kernels disagree among themselves in the last digit.
    """
    return float(np.sqrt(np.float32(math.fsum((weights * weights).tolist()))))


@lru_cache(maxsize=1 << 16)
def term_index(term: str) -> int:
    """First 8 hex digits of SHA-1(term, UTF-8) as an integer."""
    return int.from_bytes(hashlib.sha1(term.encode("utf-8"), usedforsecurity=False).digest()[:4], "big")


def _is_text(term: Any) -> TypeGuard[str]:
    return isinstance(term, str) and (term.isascii() or not _SURROGATE.search(term))


def _is_weight(weight: Any) -> TypeGuard[float]:
    return isinstance(weight, (int, float)) and abs(weight) <= _LARGEST_WEIGHT
