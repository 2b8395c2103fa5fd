"""Seconds of the clock and of the processor, and where the processes of a benchmark write theirs."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

MARKS = "FIXED_COSTS_MARKS"
"""Variable with the file into which processes of steps write."""


@dataclass(frozen=True)
class Seconds:
    """Wall seconds, and the processor's in a process and its ended children."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)

    def over(self, count: int) -> Seconds:
        return Seconds(self.wall / count, self.processor / count)


def now() -> Seconds:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Seconds(time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used))


def mean(values: Sequence[Seconds]) -> Seconds:
    return sum(values, Seconds()).over(len(values))
