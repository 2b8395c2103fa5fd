"""Rows of a token table as one padded batch of tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable


@dataclass(frozen=True)
class Inputs:
    """One padded batch on its device.

    Attributes:
        ids: ``[batch, longest] int64``, padded on the right.
        mask: ``[batch, longest] bool``, True on tokens.
        lengths: ``[batch] int64``.
        types: ``[batch, longest] int64`` token types, or None for single texts.
        padded: whether any position is padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    types: torch.Tensor | None
    padded: bool

    def keywords(self, takes_types: bool) -> dict[str, torch.Tensor]:
        """What a transformers model is called with; no mask where nothing is padded, which is faster."""
        words = {"input_ids": self.ids}
        if self.padded:
            words["attention_mask"] = self.mask.long()
        if takes_types and self.types is not None:
            words["token_type_ids"] = self.types
        return words


def padded_inputs(table: TokenTable, batch: Batch, pad_id: int, device: str) -> Inputs:
    """The batch's rows as tensors on ``device``."""
    arrays = padded_arrays(table, batch, pad_id)
    return Inputs(
        torch.from_numpy(arrays.ids).to(device),
        torch.from_numpy(arrays.mask).to(device),
        torch.from_numpy(arrays.lengths).to(device),
        None if arrays.types is None else torch.from_numpy(arrays.types).to(device),
        padded=arrays.padded,
    )
