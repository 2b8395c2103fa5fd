"""Decide which failed steps are tried again, from one table of errors.

A stage itself (``compute``) handles batches that do not fit, rows that are not finite and workers that die. The sensor
``dead_runs`` finds runs whose process is gone, and the instance starts them again (``run_retries``).
"""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from ensemble_assets.common.errors import (
    ArtefactError,
    ContractError,
    DeviceError,
    EnsembleError,
    InputError,
    LeaseTimeoutError,
    MemoryBudgetError,
    ModelUnavailableError,
    SettingsError,
    StageError,
)

STEP_RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries of every asset, after about 10 and 20 seconds. They apply to a killed step process too."""


@dataclass(frozen=True)
class Rule:
    """The treatment of one class of exceptions: whether the step is tried again, and why."""

    error: type[BaseException]
    again: bool
    why: str


RULES = (
    Rule(InputError, False, "the file is the same next time; the message names it"),
    Rule(SettingsError, False, "the setting is the same next time"),
    Rule(ContractError, False, "what breaks the export contract must not be exported, however often it is made"),
    Rule(ArtefactError, False, "a stored artefact is missing or damaged: materialise it again"),
    Rule(MemoryBudgetError, False, "it will not fit next time either; the message names the setting"),
    Rule(StageError, False, "the stage has tried everything that it can do about single rows"),
    Rule(LeaseTimeoutError, True, "the device may be free later"),
    Rule(DeviceError, True, "the device may be back, or another one is used"),
    Rule(ModelUnavailableError, False, "missing files stay missing; the hub's client repeats downloads by itself"),
    Rule(EnsembleError, False, "raised on purpose: the message says what to do"),
    Rule(OSError, True, "discs fill up and networks drop for a moment; connections and time-outs are among these"),
    Rule(MemoryError, True, "another process may have had the memory"),
    Rule(Exception, False, "a fault of the program is the same next time"),
)
"""The rules in order; the first one whose class fits applies."""


def tried_again(error: BaseException) -> bool:
    """Return whether a step that ended with ``error`` is tried again."""
    return next((rule.again for rule in RULES if isinstance(error, rule.error)), False)
