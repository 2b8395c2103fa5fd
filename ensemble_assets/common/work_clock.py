"""Count the seconds of a stage's work. Waiting for a device that another run has is no work."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class WorkClock:
    """A clock that does not go while a stage waits for a device.

    Attributes:
        waited: seconds that the stage waited until now.
        waited_for: who had the device, and since when; "" if nobody.
    """

    waited: float = 0.0
    waited_for: str = ""

    def __call__(self) -> float:
        """Give the seconds now; only differences mean something."""
        return time.perf_counter() - self.waited
