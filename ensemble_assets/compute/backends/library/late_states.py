"""Compare the token states of late interaction on the device that made them; ``late_interaction`` defines the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from ensemble_assets.compute.backends.late_interaction import CACHE_BYTES, LateInteraction
from ensemble_assets.compute.backends.library.forward import LibraryForward
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

_COMPARED_BYTES = 64 << 20
"""Most bytes of padded states and cosines of pairs that are compared at once: little beside a batch's own memory."""


class DeviceLateInteraction(LateInteraction):
    """Scores pairs where the encoder's states are. Cached states stay there too, and count as the model's memory."""

    def __init__(self, encoder: LibraryForward, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(encoder, cache_bytes)
        self._library = encoder

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch; see ``LateInteraction``. One that does not fit empties the cache."""
        try:
            return super().__call__(table, batch)
        except DeviceOutOfMemoryError:
            self._cache.clear()
            raise

    def _states(self, table: TokenTable, batch: Batch) -> list[Any]:
        states = self._library.on_device(table, batch)["states"]
        return [states[row, :length].clone() for row, length in enumerate(table.lengths.tolist())]

    def _scores(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> NDArray[np.float32]:
        longest = [max(len(pair[side]) for pair in pairs) for side in (0, 1)]
        numbers = sum(longest) * pairs[0][0].shape[1] + longest[0] * longest[1]
        step = max(1, _COMPARED_BYTES // (4 * numbers))
        batch = Batch(np.arange(len(pairs)), max(longest))
        parts = [pairs[at : at + step] for at in range(0, len(pairs), step)]
        scores = self._library.computed(batch, lambda: torch.cat([similarities(part) for part in parts]).cpu())
        return np.asarray(scores.numpy(), np.float32)


def similarities(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Compute the scores of pairs of ``[tokens, width]`` states, ``[n] float32``; see ``late_interaction.similarity``.

    Padding is a state of zeros: its cosine of 0 changes no maximum, since negative ones count as 0 too.
    """
    inner = [[pair[side][1:-1] for pair in pairs] for side in (0, 1)]  # without special tokens
    queries, chunks = (pad_sequence(states, batch_first=True).float() for states in inner)
    if not queries.shape[1] or not chunks.shape[1]:
        return torch.zeros(len(pairs), device=queries.device)
    largest = torch.bmm(queries, chunks.transpose(1, 2)).amax(dim=2).clamp(min=0)
    counts = torch.tensor([max(1, len(states)) for states in inner[0]], device=queries.device)
    return largest.square().sum(dim=1) / counts
