"""Make padded torch batches of single texts and of pairs, with the package's tokenizer and token tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout, padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenBodies, TokenTable
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import ModelFiles

PAD = "[PAD]"


@dataclass(frozen=True)
class Padded:
    """A batch for a BERT: ``[batch, longest] int64`` each.

    Attributes:
        ids: token ids.
        attention: 1 on tokens, 0 on padding.
        segments: 1 on the second text of a pair.
    """

    ids: Tensor
    attention: Tensor
    segments: Tensor


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer of a model folder.

    Raises:
        ModelUnavailableError: if it has no padding token, as a BERT has.
    """
    vocabulary = load_vocabulary(ModelFiles(folder, "local", str(folder)))
    _pad_id(vocabulary, folder.name)
    return vocabulary


def _pad_id(vocabulary: Vocabulary, name: str = "the model") -> int:
    pad_id = vocabulary.tokenizer.token_to_id(PAD)
    if pad_id is None:
        raise ModelUnavailableError(f"{name}: its tokenizer lacks {PAD}. Choose a BERT model")
    return pad_id


def tokenise(vocabulary: Vocabulary, texts: Sequence[str], cap: int, limit: int | None = None) -> TokenBodies:
    """Tokenise texts without special tokens, at most ``cap`` ids each; tables use at most ``limit`` of them."""
    bodies = tokenise_bodies(pl.Series(texts, dtype=pl.String), vocabulary, cap)
    return bodies if limit is None else replace(bodies, full_lengths=np.minimum(bodies.full_lengths, limit))


def pad(table: TokenTable, rows: NDArray[np.int64], vocabulary: Vocabulary) -> Padded:
    """Pad the given rows of a token table to the longest of them."""
    layout = FeatureLayout({"input_ids": _pad_id(vocabulary), "attention_mask": 0, "token_type_ids": 0}, {})
    arrays = padded_arrays(table, Batch(rows, int(table.lengths[rows].max())), layout)
    return Padded(*(torch.from_numpy(arrays[name]) for name in layout.arrays))
