"""Whatever is killed, the queue drains by itself afterwards."""

from __future__ import annotations

import os
import signal
import time

import dagster as dg
import psutil
import pytest

from ensemble_assets.compute.devices.lease_notes import list_leases
from ensemble_assets.orchestration.sensors.dead_runs import run_process
from ensemble_assets_tests.operations.deployment import Deployment, all_finished, by_collection, step_processes
from ensemble_assets_tests.orchestration.pipeline import write_collection

NAMES = ["a", "b", "c", "d", "e"]
WAIT = 1800.0


@pytest.mark.operations
@pytest.mark.timeout(7200)
def test_the_queue_drains_after_kills_of_steps_runs_the_daemon_and_everything(deployment: Deployment) -> None:
    for name in NAMES:
        write_collection(deployment.corpora / name, count=6)
    deployment.dagster("sensor", "start", "corpora", "-m", deployment.location)
    deployment.start_daemon()

    # A step's process: the step is tried again by its retry policy, in the same run.
    run, step, pid = wait_for_step(deployment, avoid=set())
    os.kill(pid, signal.SIGKILL)
    deployment.wait(lambda now: has_event(now, run, "STEP_UP_FOR_RETRY"), WAIT, f"another try of {step}")

    # A run's process: its step ends with it, the run is marked as failed and started again once.
    other, step, pid = wait_for_step(deployment, avoid={run})
    with deployment.instance() as instance:
        worker = run_process(instance, other)
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
    assert gone_within(pid, 30), "the step ended with its run"
    deployment.wait(lambda now: status(now, other) == dg.DagsterRunStatus.FAILURE, WAIT, "the mark of failure")

    # The daemon: whoever watches it (systemd) starts it again; runs that it had started go on meanwhile.
    deployment.kill_daemon()
    deployment.start_daemon()
    third, step, pid = wait_for_step(deployment, avoid={other})

    # Everything, as when the power fails: runs without a process are found and started again.
    deployment.kill_everything()
    with deployment.instance() as instance:
        assert status(instance, third) == dg.DagsterRunStatus.STARTED, "nobody was left to say otherwise"
    killed_at = time.monotonic()
    deployment.start_daemon()
    deployment.wait(lambda now: status(now, third) == dg.DagsterRunStatus.FAILURE, WAIT, "the mark of a dead run")
    print(f"the dead run was found {time.monotonic() - killed_at:.0f} s after the daemon came back")

    # A failed run and the one that is started in its place are two things: in between nothing is under way.
    deployment.wait(lambda now: all_finished(0)(now) and last_states(now) == ["SUCCESS"], WAIT * 2, "an empty queue")
    with deployment.instance() as instance:
        last = {name: states[0] for name, states in by_collection(instance).items()}
        assert last == dict.fromkeys(NAMES, "SUCCESS"), by_collection(instance)
        deployment.wait(lambda now: deployment.taken_slots(now) == 0, 240, "a free pool")
    assert deployment.complete_bundles() == NAMES
    assert deployment.database_errors() == []
    assert list_leases(deployment.locks) == []


def last_states(instance: dg.DagsterInstance) -> list[str]:
    """The different states in which the collections' latest runs are."""
    return sorted({states[0] for states in by_collection(instance).values()})


def wait_for_step(deployment: Deployment, avoid: set[str]) -> tuple[str, str, int]:
    """A run that is in the middle of a step, the step and its living process."""
    found: list[tuple[str, str, int]] = []

    def check(instance: dg.DagsterInstance) -> bool:
        found[:] = [
            (run, step, pid)
            for run, (step, pid) in step_processes(instance).items()
            if run not in avoid and psutil.pid_exists(pid)
        ]
        return bool(found)

    deployment.wait(check, WAIT, "a step")
    return found[0]


def has_event(instance: dg.DagsterInstance, run: str, kind: str) -> bool:
    return any(e.dagster_event and e.dagster_event.event_type_value == kind for e in instance.all_logs(run))


def status(instance: dg.DagsterInstance, run: str) -> dg.DagsterRunStatus | None:
    found = instance.get_run_by_id(run)
    return found.status if found else None


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False
