"""Give token ids by text, for all models that share a vocabulary and for all columns that share texts.

``kept_tokens`` keeps those of a collection between runs. Those of queries stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.tokens.kept_tokens import (
    NO_TEXTS,
    Column,
    Digests,
    TextTokens,
    digests_of,
    keep_column,
    kept_columns,
)
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies
from ensemble_assets.compute.tokens.windows import select_bodies


class _Key(NamedTuple):
    """Texts that are held together: of a whole collection, or others, such as queries."""

    vocabulary: Vocabulary
    prefix: str
    whole: bool


@dataclass
class TokenCache:
    """Token bodies by vocabulary, prefix and text. Models that share a vocabulary tokenise a text once.

    Attributes:
        folder: where the ids of a collection's texts are kept between runs; None keeps none.
        most_ids: most token ids that are held beside those asked for, 4 bytes each.
    """

    folder: Path | None = None
    most_ids: int = 64_000_000
    _held: dict[_Key, TextTokens] = field(default_factory=dict)

    def bodies(
        self,
        texts: pl.Series,
        vocabulary: Vocabulary,
        max_tokens: int,
        prefix: str = "",
        *,
        rows: NDArray[np.int64] | None = None,
        column: Column | None = None,
    ) -> TokenBodies:
        """Return the bodies of ``prefix + text`` for every text, or for the texts at ``rows``, at most ``max_tokens``.

        Texts that are not held yet, or were cut shorter, are tokenised. ``column`` says that the texts are those of
        all chunks of the collection, whose ids the folder keeps.

        Raises:
            StageError: if the tokenizer fails on a text.
        """
        if rows is not None:
            distinct, places = np.unique(rows, return_inverse=True)
            bodies = self.bodies(texts.gather(distinct), vocabulary, max_tokens, prefix)
            return select_bodies(bodies, places.astype(np.int64))
        digests, key = digests_of(texts), _Key(vocabulary, prefix, whole=True)
        if column is None and (self._held_for(key).find(digests, max_tokens) < 0).any():
            key = _Key(vocabulary, prefix, whole=False)
        if sum(len(tokens.ids) for tokens in self._held.values()) > self.most_ids:
            held = self._held_for(key)
            places = held.find(digests, max_tokens)
            self._held = {key: held.take(places[places >= 0])}
        held, places = self._with(key, texts, digests, max_tokens)
        if column is not None and self.folder is not None:
            keep_column(self.folder, vocabulary, prefix, column, held, places)
        return held.bodies(places, max_tokens)

    def slices(
        self,
        texts: pl.Series,
        vocabulary: Vocabulary,
        max_tokens: int,
        prefix: str,
        slices: Sequence[NDArray[np.int64]],
        column: Column,
    ) -> Iterator[TokenBodies]:
        """Yield the bodies of some rows after another, as soon as they are tokenised; together all of a collection."""
        for rows in slices:
            part = texts.gather(rows)
            try:
                held, places = self._with(_Key(vocabulary, prefix, whole=True), part, digests_of(part), max_tokens)
            except StageError:
                tokenise_bodies(texts, vocabulary, max_tokens, prefix)  # fails too, and names the row of the column
                raise
            yield held.bodies(places, max_tokens)
        if self.folder is not None:
            self.bodies(texts, vocabulary, max_tokens, prefix, column=column)

    def _held_for(self, key: _Key) -> TextTokens:
        if key not in self._held:
            folder = self.folder if key.whole else None
            self._held[key] = NO_TEXTS if folder is None else kept_columns(folder, key.vocabulary, key.prefix)
        return self._held[key]

    def _with(
        self, key: _Key, texts: pl.Series, digests: Digests, max_tokens: int
    ) -> tuple[TextTokens, NDArray[np.int64]]:
        """Tokenise the texts that are not held; return the held ones with them, and the places of all ``texts``."""
        held = self._held_for(key)
        places = held.find(digests, max_tokens)
        new = np.flatnonzero(places < 0)
        if len(new):
            try:
                fresh = tokenise_bodies(texts.gather(new), key.vocabulary, max_tokens, key.prefix)
            except StageError:
                # the error names a row of the new texts; this fails too, and names the row of the column
                tokenise_bodies(texts, key.vocabulary, max_tokens, key.prefix)
                raise
            places[new] = len(held) + np.arange(len(new))
            held = self._held[key] = held.joined(TextTokens.of(digests[new], fresh))
        return held, places
