"""Mark a run as failed when its process is gone, so that its pool slot and queue place are free.

The code server does this for runs that it started, unless it was killed too: Dagster's default launcher has no health
check. Runs of other machines and containers are left alone.
"""

import json
import os
import time
from dataclasses import dataclass
from typing import Any

import dagster as dg

from ensemble_assets.common.machine import process_began

_STARTED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_CLOCK_SECONDS = 5.0
"""Tolerance between Dagster's event time and the kernel's time of process creation."""
_GRACE_SECONDS = 15.0
"""A process that began so recently may still be starting."""


@dataclass(frozen=True)
class RunProcess:
    """The process that executes a run, and the time at which the run reported it, in seconds since the epoch."""

    pid: int
    seen_at: float

    @property
    def alive(self) -> bool:
        """Whether the process still runs; a process that began later only has the same number."""
        began = process_began(self.pid)
        return began is not None and began <= self.seen_at + _CLOCK_SECONDS


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process on this machine is gone; return their ids.

    ``run_retries`` of the instance starts them again.
    """
    ended = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_STARTED)):
        run = record.dagster_run
        process = run_process(instance, run.run_id) if started_here(run) else None
        dead = process is not None and not process.alive and time.time() - process.seen_at >= _GRACE_SECONDS
        latest = instance.get_run_by_id(run.run_id) if dead else None  # it may have ended since the list was made
        if latest is not None and latest.status in _STARTED:
            instance.report_run_failed(latest, "The process of the run is gone.")
            ended.append(run.run_id)
    return ended


def started_here(run: dg.DagsterRun) -> bool:
    """Return whether a code server on this machine started the run: it listens on a socket file instead of a port."""
    try:
        info = json.loads(run.tags.get(".dagster/grpc_info", "{}"))
    except ValueError:
        return False
    return isinstance(info, dict) and bool(info.get("socket"))


def run_process(instance: dg.DagsterInstance, run_id: str) -> RunProcess | None:
    """Find the process that executes the run in the run's events."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        data: Any = event.event_specific_data if event is not None and event.step_key is None else None
        value = getattr(getattr(data, "metadata", {}).get("pid"), "value", None)
        if value is not None and str(value).isdigit() and int(value) != os.getpid():
            return RunProcess(int(value), entry.timestamp)
    return None
