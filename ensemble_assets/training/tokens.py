"""Token ids of queries and passages, and padded batches of single texts and of pairs. No models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.tokens.token_tables import TokenTable

CLS, SEP, PAD = "[CLS]", "[SEP]", "[PAD]"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that frame a text in the vocabulary of a BERT."""

    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class Padded:
    """A batch for a BERT: ``[batch, longest]``, attention 1 on real tokens, segment 1 on the second text.

    Attributes:
        ids: token ids, int64.
        attention: int64.
        segments: int64.
    """

    ids: Tensor
    attention: Tensor
    segments: Tensor


def load_tokenizer(folder: Path) -> tuple[Tokenizer, SpecialTokens]:
    """The tokenizer of a model folder, without padding and truncation of its own.

    Raises:
        ModelUnavailableError: if its vocabulary is not a BERT's.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {token: tokenizer.token_to_id(token) for token in (CLS, SEP, PAD)}
    if None in ids.values():
        raise ModelUnavailableError(f"{folder.name}: its tokenizer lacks {CLS}, {SEP} or {PAD}. Choose a BERT model")
    return tokenizer, SpecialTokens(*(int(number) for number in ids.values() if number is not None))


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> TokenTable:
    """The first ``limit`` tokens of every text, without special tokens."""
    encodings = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    lengths = np.array([min(len(ids), limit) for ids in encodings], dtype=np.int64)
    joined = [np.array(ids[:limit], dtype=np.int32) for ids in encodings]
    return TokenTable(
        ids=np.concatenate(joined) if joined else np.empty(0, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        truncated=np.array([len(ids) > limit for ids in encodings], dtype=np.bool_),
    )


def row(table: TokenTable, index: int) -> NDArray[np.int32]:
    """Token ids of one text."""
    return table.ids[table.offsets[index] : table.offsets[index + 1]]


def pad_singles(table: TokenTable, rows: NDArray[np.int64], special: SpecialTokens) -> Padded:
    """``[CLS] text [SEP]`` for the given rows, padded to the longest."""
    return _pad([[row(table, int(index))] for index in rows], special)


def pad_pairs(
    queries: Sequence[NDArray[np.int32]],
    passages: Sequence[NDArray[np.int32]],
    special: SpecialTokens,
    max_tokens: int,
) -> Padded:
    """``[CLS] query [SEP] passage [SEP]``, the passage cut so that the pair has at most ``max_tokens``."""
    pairs = [
        [query, passage[: max(0, max_tokens - len(query) - 3)]]
        for query, passage in zip(queries, passages, strict=True)
    ]
    return _pad(pairs, special)


def _pad(texts: Sequence[Sequence[NDArray[np.int32]]], special: SpecialTokens) -> Padded:
    longest = max(1 + sum(len(part) + 1 for part in parts) for parts in texts)
    ids = np.full((len(texts), longest), special.pad, dtype=np.int64)
    attention = np.zeros_like(ids)
    segments = np.zeros_like(ids)
    for index, parts in enumerate(texts):
        ids[index, 0] = special.cls
        position = 1
        for segment, part in enumerate(parts):
            end = position + len(part)
            ids[index, position:end] = part
            ids[index, end] = special.sep
            segments[index, position : end + 1] = segment
            position = end + 1
        attention[index, :position] = 1
    return Padded(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(segments))
