"""Make a padded batch of arrays on the host from rows of a token table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable


@dataclass(frozen=True)
class FeatureLayout:
    """How the features of one task are put together from rows.

    Attributes:
        arrays: names of the token-aligned tensors, with the value that pads each.
        constants: features that are the same for every batch, such as ``prompt_length`` and ``modality``.
        left: whether rows are padded on the left.
        bag: whether rows are laid end to end, with their starts in ``offsets`` (static embeddings).
    """

    arrays: Mapping[str, int]
    constants: Mapping[str, Any]
    left: bool = False
    bag: bool = False


def padded_arrays(
    table: TokenTable, batch: Batch, layout: FeatureLayout, least: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Pad the batch's rows to the longest, or to ``least``: ``[batch, width]`` by name; a bag is ``[tokens]``."""
    starts, lengths = table.offsets[batch.rows], table.lengths[batch.rows]
    if layout.bag:
        return _laid_end_to_end(table, starts, lengths)
    longest = int(lengths.max(initial=least))
    columns = np.arange(longest)
    place = columns - (longest - lengths)[:, None] if layout.left else np.broadcast_to(columns, (len(starts), longest))
    mask = (place >= 0) & (place < lengths[:, None])
    source = (starts[:, None] + place)[mask]
    made: dict[str, NDArray[np.int64]] = {}
    for name, pad in layout.arrays.items():
        if name == "sentence_lengths":
            made[name] = lengths
        elif name == "attention_mask" and name not in table.arrays:
            made[name] = mask.astype(np.int64)
        else:
            made[name] = np.full(mask.shape, pad, np.int64)
            if name == "token_type_ids" and name not in table.arrays:
                made[name][mask] = table.segments(batch.rows, place)[mask]
            elif name == "input_ids" or name in table.arrays:
                made[name][mask] = table.arrays.get(name, table.ids)[source]
    return made


def _laid_end_to_end(
    table: TokenTable, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    pieces = [table.ids[start : start + count] for start, count in zip(starts, lengths, strict=True)]
    ids = np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)
    return {"input_ids": ids, "offsets": np.cumsum(lengths) - lengths}
