"""Make a padded batch of arrays on the host from rows of a token table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable


@dataclass(frozen=True)
class PaddedArrays:
    """One padded batch.

    Attributes:
        ids: ``[batch, longest] int64``, padded on the right.
        mask: ``[batch, longest] bool``, True on tokens.
        lengths: ``[batch] int64``.
        types: ``[batch, longest] int64`` token types, or None for single texts.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    types: NDArray[np.int64] | None

    @property
    def padded(self) -> bool:
        """True if any position is padding."""
        return not self.mask.all()


def padded_arrays(table: TokenTable, batch: Batch, pad_id: int) -> PaddedArrays:
    """Pad the batch's rows on the right with ``pad_id``, to the longest of them."""
    starts, lengths = table.offsets[batch.rows], table.lengths[batch.rows]
    columns = np.arange(batch.longest)
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = table.ids[(starts[:, None] + columns)[mask]]
    types: NDArray[np.int64] | None = None
    if "token_type_ids" in table.arrays:
        types = np.zeros_like(ids)
        types[mask] = table.arrays["token_type_ids"][(starts[:, None] + columns)[mask]]
    elif table.second_from is not None:
        types = table.segments(batch.rows, columns) * mask
    return PaddedArrays(ids, mask, lengths, types)
