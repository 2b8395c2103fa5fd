"""Decide which failed steps are tried again, from one table of errors.

A stage itself (``compute``) handles batches that do not fit, rows that are not finite and workers that die. The sensor
``housekeeping`` finds runs whose process is gone, and the instance starts them again (``run_retries``).
"""

from __future__ import annotations

import dagster as dg

from ensemble_assets.common import errors

STEP_RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries of every asset, after about 10 and 20 seconds. They apply to a killed step process too."""


TRIED_AGAIN: tuple[tuple[type[BaseException], bool], ...] = (
    (errors.InputError, False),  # the file is the same next time; the message names it
    (errors.SettingsError, False),
    (errors.ContractError, False),  # what breaks the export contract must not be exported, however often it is made
    (errors.ArtefactError, False),  # a stored artefact is missing or damaged: materialise it again
    (errors.MemoryBudgetError, False),  # it will not fit next time either; the message names the setting
    (errors.StageError, False),  # the stage has tried everything that it can do about single rows
    (errors.LeaseTimeoutError, True),  # the device may be free later
    (errors.DeviceError, True),  # the device may be back, or another one is used
    (errors.RefusedError, False),  # a wrong key stays wrong
    (errors.ServerError, True),  # the server may be back; an upload goes on where it stopped
    (errors.ModelUnavailableError, False),  # missing files stay missing; the hub's client repeats downloads by itself
    (errors.EnsembleError, False),  # raised on purpose: the message says what to do
    (PermissionError, False),  # rights and a file in a folder's place stay until somebody changes them
    (NotADirectoryError, False),
    (FileExistsError, False),
    (OSError, True),  # discs fill up and networks drop for a moment; connections and time-outs are among these
    (MemoryError, True),  # another process may have had the memory
    (Exception, False),  # a fault of the program is the same next time
)
"""Whether a step that ends with such an error is tried again; the first class that fits decides."""


def tried_again(error: BaseException) -> bool:
    """Return whether a step that ended with ``error`` is tried again."""
    return next((again for kind, again in TRIED_AGAIN if isinstance(error, kind)), False)
