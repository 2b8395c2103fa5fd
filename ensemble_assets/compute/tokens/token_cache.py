"""Token ids that were made already, for every model that shares a vocabulary and every column that shares texts.

Making them is ``tokenise``. What is kept lives in memory only: token ids are the text in another form.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies

_DIGEST = 16
"""Bytes of BLAKE2b a text; two texts share them only if they are equal."""


@dataclass(frozen=True)
class _Column:
    """Digests of a column's texts, one after another, and their token ids."""

    digests: bytes
    bodies: TokenBodies


@dataclass
class TokenCache:
    """Token bodies by vocabulary and texts: models that share a vocabulary tokenise a text once.

    Attributes:
        most_ids: token ids held at most, 4 bytes each; the oldest columns go first, the newest always stays.
    """

    most_ids: int = 64_000_000
    _held: dict[tuple[str, str, str], _Column] = field(default_factory=dict)

    def bodies(self, texts: pl.Series, known: Vocabulary, max_tokens: int, prefix: str = "") -> TokenBodies:
        """The bodies of ``prefix + text`` for every text, with at least ``max_tokens`` kept per text.

        Of a column that is not here, only those texts are tokenised that no other column with this vocabulary has.

        Raises:
            StageError: if the tokenizer fails on a text.
        """
        digests = _digests(texts)
        key = (known.fingerprint, prefix, _of_column(digests))
        found = self._held.get(key)
        if found is None or found.bodies.cap < max_tokens:
            like = self._like(digests, known, max_tokens, prefix)
            found = _Column(digests, _made(texts, digests, like, known, max_tokens, prefix))
            self._held.pop(key, None)
            self._held[key] = found
            while len(self._held) > 1 and sum(len(one.bodies.ids) for one in self._held.values()) > self.most_ids:
                del self._held[next(iter(self._held))]
        return found.bodies

    def held(self, texts: pl.Series, known: Vocabulary, max_tokens: int, prefix: str = "") -> TokenBodies | None:
        """The same if it is here already, else None."""
        found = self._held.get((known.fingerprint, prefix, _of_column(_digests(texts))))
        return found.bodies if found is not None and found.bodies.cap >= max_tokens else None

    def _like(self, digests: bytes, known: Vocabulary, max_tokens: int, prefix: str) -> _Column | None:
        """The newest column of as many texts with this vocabulary and prefix whose bodies are long enough."""
        for (fingerprint, own, _), column in reversed(self._held.items()):
            alike = (fingerprint, own, len(column.digests)) == (known.fingerprint, prefix, len(digests))
            if alike and column.bodies.cap >= max_tokens:
                return column
        return None


def _made(
    texts: pl.Series, digests: bytes, like: _Column | None, known: Vocabulary, max_tokens: int, prefix: str
) -> TokenBodies:
    """Bodies of a column; rows that are the same in another column of as many texts are taken from there."""
    same = _same_rows(digests, like.digests) if like else np.zeros(len(texts), np.bool_)
    if like is None or not same.any():
        return tokenise_bodies(texts, known, max_tokens, prefix)
    new = np.flatnonzero(~same)
    try:
        fresh = tokenise_bodies(texts.gather(new), known, max_tokens, prefix)
    except StageError:
        return tokenise_bodies(texts, known, max_tokens, prefix)  # which fails too, and names the row in this column
    starts, lengths = like.bodies.starts.copy(), like.bodies.full_lengths.copy()
    starts[new], lengths[new] = len(like.bodies.ids) + fresh.starts, fresh.full_lengths
    return TokenBodies(np.concatenate([like.bodies.ids, fresh.ids]), starts, lengths, max_tokens)


def _same_rows(left: bytes, right: bytes) -> NDArray[np.bool_]:
    one, other = (np.frombuffer(digests, np.uint64).reshape(-1, _DIGEST // 8) for digests in (left, right))
    same: NDArray[np.bool_] = (one == other).all(axis=1)
    return same


def _digests(texts: pl.Series) -> bytes:
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    return b"".join(hashlib.blake2b(text, digest_size=_DIGEST).digest() for text in encoded)


def _of_column(digests: bytes) -> str:
    return hashlib.blake2b(digests, digest_size=_DIGEST).hexdigest()
