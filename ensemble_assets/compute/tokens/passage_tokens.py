"""Keep the token ids of passages by row, for questions whose candidates are often the same few passages."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.kept_tokens import Column
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies

_Ids = NDArray[np.int32]


@dataclass
class PassageTokens(TokenCache):
    """Token bodies of one column of passages by row; those of other texts, such as questions, are not kept.

    Texts that are asked for by row must always be the same column, whose digest takes longer than a question may.
    """

    _passages: dict[tuple[str, str, int], dict[int, tuple[_Ids, int]]] = field(default_factory=dict)

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
        """Return the bodies of ``prefix + text`` for every text, or for the passages at ``rows``."""
        if rows is None:
            return tokenise_bodies(texts, vocabulary, max_tokens, prefix)
        passages = self._passages.setdefault((vocabulary.fingerprint, prefix, max_tokens), {})
        wanted = rows.tolist()
        new = [row for row in dict.fromkeys(wanted) if row not in passages]
        if new:
            fresh = tokenise_bodies(texts.gather(new), vocabulary, max_tokens, prefix)
            parts = np.split(fresh.ids, fresh.starts[1:])
            passages.update(zip(new, zip(parts, fresh.full_lengths.tolist(), strict=True), strict=True))
        chosen = [passages[row] for row in wanted]
        lengths = np.array([len(ids) for ids, _ in chosen], np.int64)
        full = np.array([tokens for _, tokens in chosen], np.int64)
        ids = np.concatenate([ids for ids, _ in chosen] or [np.empty(0, np.int32)])
        if sum(len(column) for column in self._passages.values()) * max_tokens > self.most_ids:
            self._passages.clear()
        return TokenBodies(ids, np.cumsum(lengths) - lengths, full, max_tokens)
