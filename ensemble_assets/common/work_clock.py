"""Count the seconds of a stage's work, without its waits for a device that another run has."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class WorkClock:
    """A clock that stands still while a stage waits for a device, ``waited`` seconds until now.

    ``waited_for`` is the holder of the device, and since when; "" if nobody.
    """

    waited: float = 0.0
    waited_for: str = ""

    def __call__(self) -> float:
        """Give the clock's seconds; only differences mean something."""
        return time.perf_counter() - self.waited
