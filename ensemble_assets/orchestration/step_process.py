"""A step's process ends with the run that it belongs to, so that a killed run frees its devices at once."""

from __future__ import annotations

import multiprocessing
import os


def end_with_the_run() -> None:
    """Have the kernel end this process when the one that started it ends.

    Only in a process that Dagster started for a step: the command line and tests run steps in their own process. The
    step's parent is the run's fork server, which ends as soon as the run's process does.
    """
    if multiprocessing.parent_process() is not None:
        from ensemble_assets.compute.running.worker_process import die_with

        die_with(os.getppid())
