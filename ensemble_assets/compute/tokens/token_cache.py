"""Keep token ids for all models that share a vocabulary, and for all columns that share texts.

They are kept in memory only: token ids are the text in another form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies
from ensemble_assets.compute.tokens.windows import select_bodies

_DIGEST = 16
"""Bytes of BLAKE2b per text: enough that two texts with equal digests are equal texts."""


@dataclass
class TokenCache:
    """Token bodies by vocabulary and texts. Models that share a vocabulary tokenise a text once.

    Attributes:
        most_ids: most token ids that are kept, 4 bytes each. The oldest columns go first, the newest always stays.
    """

    most_ids: int = 64_000_000
    _columns: dict[tuple[str, str, str], _Column] = field(default_factory=dict)

    def bodies(
        self,
        texts: pl.Series,
        vocabulary: Vocabulary,
        max_tokens: int,
        prefix: str = "",
        *,
        rows: NDArray[np.int64] | None = None,
    ) -> TokenBodies:
        """Return the bodies of ``prefix + text`` for every text, with a cap of at least ``max_tokens``.

        A new column is compared with a similar cached one, and only the rows that differ are tokenised. Where only the
        texts at ``rows`` are wanted and the column is not here, only they are tokenised, and not kept.

        Raises:
            StageError: if the tokenizer fails on a text.
        """
        if rows is not None:
            cached = self.cached_bodies(texts, vocabulary, max_tokens, prefix)
            if cached is not None:
                return select_bodies(cached, rows)
            distinct, places = np.unique(rows, return_inverse=True)
            bodies = tokenise_bodies(texts.gather(distinct), vocabulary, max_tokens, prefix)
            return select_bodies(bodies, places.astype(np.int64))
        digests = _digests(texts)
        key = (vocabulary.fingerprint, prefix, _digest_of_column(digests))
        column = self._columns.get(key)
        if column is None or column.bodies.cap < max_tokens:
            similar = self._similar_column(digests, vocabulary, max_tokens, prefix)
            column = _Column(digests, _new_bodies(texts, digests, similar, vocabulary, max_tokens, prefix))
            self._keep(key, column)
        return column.bodies

    def slices(
        self,
        texts: pl.Series,
        vocabulary: Vocabulary,
        max_tokens: int,
        prefix: str,
        slices: Sequence[NDArray[np.int64]],
    ) -> Iterator[TokenBodies]:
        """Yield the bodies of some rows after another, as soon as these are tokenised; together all of the texts.

        The column is kept, as by ``bodies``, once the last slice is made.
        """
        digests = _digests(texts)
        key = vocabulary.fingerprint, prefix, _digest_of_column(digests)
        if key in self._columns or self._similar_column(digests, vocabulary, max_tokens, prefix) is not None:
            bodies = self.bodies(texts, vocabulary, max_tokens, prefix)
            yield from (select_bodies(bodies, rows) for rows in slices)
            return
        starts, lengths = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
        ids: list[NDArray[np.int32]] = []
        for at, rows in enumerate(slices):
            try:
                part = tokenise_bodies(texts.gather(rows), vocabulary, max_tokens, prefix)
            except StageError:
                tokenise_bodies(texts, vocabulary, max_tokens, prefix)  # fails too, and names the row of the column
                raise
            starts[rows], lengths[rows] = part.starts + sum(map(len, ids)), part.full_lengths
            ids.append(part.ids)
            if at == len(slices) - 1:
                self._keep(key, _Column(digests, TokenBodies(np.concatenate(ids), starts, lengths, max_tokens)))
            yield part

    def _keep(self, key: tuple[str, str, str], column: _Column) -> None:
        self._columns.pop(key, None)  # so that the column becomes the newest
        self._columns[key] = column
        self._drop_oldest()

    def cached_bodies(
        self, texts: pl.Series, vocabulary: Vocabulary, max_tokens: int, prefix: str = ""
    ) -> TokenBodies | None:
        """Return the bodies if they are here, else None; see ``bodies``."""
        column = self._columns.get((vocabulary.fingerprint, prefix, _digest_of_column(_digests(texts))))
        return column.bodies if column is not None and column.bodies.cap >= max_tokens else None

    def _similar_column(self, digests: bytes, vocabulary: Vocabulary, max_tokens: int, prefix: str) -> _Column | None:
        """Return the newest column of as many texts, with this vocabulary, prefix and at least this cap."""
        wanted = (vocabulary.fingerprint, prefix, len(digests))
        for (fingerprint, own_prefix, _), column in reversed(self._columns.items()):
            if (fingerprint, own_prefix, len(column.digests)) == wanted and column.bodies.cap >= max_tokens:
                return column
        return None

    def _drop_oldest(self) -> None:
        while (
            len(self._columns) > 1 and sum(len(column.bodies.ids) for column in self._columns.values()) > self.most_ids
        ):
            del self._columns[next(iter(self._columns))]


@dataclass(frozen=True)
class _Column:
    """Digests of a column's texts, one after another, and their token ids."""

    digests: bytes
    bodies: TokenBodies


def _new_bodies(
    texts: pl.Series,
    digests: bytes,
    similar: _Column | None,
    vocabulary: Vocabulary,
    max_tokens: int,
    prefix: str,
) -> TokenBodies:
    """Tokenise a column, apart from the rows whose text is the same in ``similar``."""
    same = _same_rows(digests, similar.digests) if similar else np.zeros(len(texts), np.bool_)
    if similar is None or not same.any():
        return tokenise_bodies(texts, vocabulary, max_tokens, prefix)
    new = np.flatnonzero(~same)
    try:
        fresh = tokenise_bodies(texts.gather(new), vocabulary, max_tokens, prefix)
    except StageError:
        # the error names a row of the new texts; this fails too, and names the row of the column
        return tokenise_bodies(texts, vocabulary, max_tokens, prefix)
    starts, lengths = similar.bodies.starts.copy(), similar.bodies.full_lengths.copy()
    starts[new], lengths[new] = len(similar.bodies.ids) + fresh.starts, fresh.full_lengths
    return TokenBodies(np.concatenate([similar.bodies.ids, fresh.ids]), starts, lengths, max_tokens)


def _same_rows(left: bytes, right: bytes) -> NDArray[np.bool_]:
    first, second = (np.frombuffer(digests, np.uint64).reshape(-1, _DIGEST // 8) for digests in (left, right))
    same: NDArray[np.bool_] = (first == second).all(axis=1)
    return same


def _digests(texts: pl.Series) -> bytes:
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    return b"".join(hashlib.blake2b(text, digest_size=_DIGEST).digest() for text in encoded)


def _digest_of_column(digests: bytes) -> str:
    return hashlib.blake2b(digests, digest_size=_DIGEST).hexdigest()
