"""Describe what the batch planner hands out and counts: assignments, parts of earlier batches, and their tally."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import Batch


@dataclass(frozen=True)
class Assignment:
    """One batch to run; ``number`` counts them in the order of planning.

    ``alone`` says that no other batch may be with the device: a device was lost with these rows.
    """

    number: int
    batch: Batch
    predicted_bytes: int | None
    alone: bool = False


class Hold(Enum):
    """A reason why there is no batch for a device now."""

    MEMORY = "other processes hold the memory that the next batch needs"
    DRAINED = "all remaining batches are with other devices, or only those can hold them"
    DONE = "all rows are done"


@dataclass(frozen=True)
class Part:
    """Rows, longest first, of a batch that was split or whose device was lost.

    A single row that did not fit (``attempts`` times) is tried again when the allocator can hold ``needs`` bytes.
    ``losses`` counts lost devices, up to 2: then one of the rows may be to blame.
    """

    rows: NDArray[np.int64]
    attempts: int = 0
    needs: int = 0
    losses: int = 0

    @property
    def suspected(self) -> bool:
        """Whether one of the rows may be the reason for lost devices."""
        return self.losses > 1

    def cut(self, at: int) -> tuple[Part, Part]:
        """Divide the rows into the first ``at`` and the rest."""
        return Part(self.rows[:at], losses=self.losses), Part(self.rows[at:], losses=self.losses)


@dataclass
class Tally:
    """Counts of batches and of padded tokens.

    ``redone_tokens`` are of batches that did not fit or on which the model raised, ``lost_tokens`` of those whose
    device was lost. ``out_of_step`` counts batches planned without an outcome that was due; if 0, the devices' order
    changed nothing.
    """

    batches: int = 0
    tokens: int = 0
    redone_tokens: int = 0
    lost_tokens: int = 0
    out_of_memory: int = 0
    out_of_step: int = 0
