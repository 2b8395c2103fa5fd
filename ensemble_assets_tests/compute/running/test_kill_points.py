"""Runs killed at random points leave no lock, no orphan and no half-written artefact, and a rerun gives the same bytes.

A handful of points by default, one hundred with ``make test-nightly``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ensemble_assets.artefacts.artefact import open_artefact
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.lease_notes import list_leases
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets_tests.compute.running.worker_cases import is_running, wait_until_dead
from ensemble_assets_tests.compute.stages.three_stages import COLLECTION, DEVICES, STAGES, store_of

ROOT = Path(__file__).resolve().parents[3]
VICTIMS = ("run", "run", "whole group", "one worker")


class Launcher:
    """Starts runs of the three stages, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ensemble_assets_tests.compute.stages.three_stages"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        )

    def begin(self, root: Path) -> int:
        """The process id of a new run, which is also its process group."""
        self.process.stdin.write(f"{root}\n")
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """The exit status of the run that was begun."""
        return int(self.process.stdout.readline())

    def whole_run(self, root: Path) -> float:
        """Seconds of a run that nobody disturbs."""
        started = time.monotonic()
        self.begin(root)
        assert self.end() == 0
        return time.monotonic() - started


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.process.stdin.close()
    made.process.wait()


def of_group(group: int) -> list[psutil.Process]:
    """Processes of a run that are alive, workers whose parent is dead included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and is_running(process):
                found.append(process)
    return found


def kill(group: int, victim: str, chance: random.Random) -> bool:
    """Whether there was something to kill."""
    with suppress(ProcessLookupError):
        if victim == "whole group":
            os.killpg(group, signal.SIGKILL)
            return True
        if victim == "run":
            os.kill(group, signal.SIGKILL)
            return True
        workers = [process.pid for process in of_group(group) if process.pid != group]
        if workers:
            os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
            return True
    return False


def versions(root: Path) -> dict[str, str]:
    """Content hash of every artefact that readers can see; reading verifies every byte."""
    store = store_of(root)
    return {stage: store.load(COLLECTION, stage).version for stage in STAGES if store.exists(COLLECTION, stage)}


def check_nothing_is_left(root: Path, group: int) -> None:
    """The devices can be had, and whoever has them finds nobody of the killed run alive.

    A dying process closes its files, which frees the lease, a moment before it is dead to ``ps``; or a moment after,
    where it has several threads. So both are waited for.
    """
    locks = root / "locks"
    with lease_devices("m", "s", lock_folder=locks, events=EventLog(), devices=DEVICES, timeout=120.0):
        assert wait_until_dead(lambda: of_group(group))
    assert list_leases(locks) == []


def check_only_whole_artefacts(root: Path, reference: dict[str, str]) -> None:
    """After a run that ended: sealed and published versions, no partial file, no work folder."""
    assert versions(root) == reference
    for stage in STAGES:
        for version in (path for path in (root / "store" / COLLECTION / stage).iterdir() if path.is_dir()):
            open_artefact(version).verify()
            assert (version / ".published").exists()
    assert [path.name for path in root.rglob("*.partial")] == []
    assert list((root / "work").iterdir()) == []


def kill_points(launcher: Launcher, tmp_path: Path, points: int, seed: int) -> Counter[str]:
    """Kills that hit a run that was still going, each followed by all checks; how many hit what."""
    seconds = launcher.whole_run(tmp_path / "reference")
    reference = versions(tmp_path / "reference")
    assert set(reference) == set(STAGES)
    chance, hits, root = random.Random(seed), Counter(), tmp_path / "killed"
    while sum(hits.values()) < points:
        victim = chance.choice(VICTIMS)
        group = launcher.begin(root)
        time.sleep(chance.uniform(0.0, seconds))
        hit = kill(group, victim, chance)
        status = launcher.end()
        check_nothing_is_left(root, group)
        assert versions(root).items() <= reference.items()
        if victim == "one worker":
            assert status == 0  # the other worker did the rest
        elif hit and status != 0:
            assert status == -signal.SIGKILL
        else:
            continue  # it had ended
        hits[victim] += hit
        print(dict(hits), flush=True)
        seconds = launcher.whole_run(root)
        check_only_whole_artefacts(root, reference)
        if chance.random() < 0.5:  # half of the runs find nothing, half find an earlier version of everything
            root = tmp_path / f"killed-{sum(hits.values())}"
    return hits


@pytest.mark.slow
def test_a_run_killed_anywhere_leaves_nothing_behind(launcher, tmp_path):
    assert sum(kill_points(launcher, tmp_path, points=6, seed=3).values()) == 6


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_one_hundred_kill_points_leave_nothing_behind(launcher, tmp_path, record_property):
    hits = kill_points(launcher, tmp_path, points=100, seed=100)
    record_property("kills", dict(hits))
    assert sum(hits.values()) == 100
