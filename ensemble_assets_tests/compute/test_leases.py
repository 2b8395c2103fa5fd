"""Leases: never two holders, freed by the kernel at death, time-outs that name the holder. Real processes and locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.lease_records import list_leases
from ensemble_assets.compute.leases import lease_gpus, prepare_folder
from ensemble_assets.core.errors import DeviceError, LeaseTimeoutError, SettingsError
from ensemble_assets.core.events import EventLog

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.leases import lease_gpus
from ensemble_assets.core.events import EventLog
with lease_gpus("m", "dense", lock_folder=Path(sys.argv[1]), events=EventLog(), devices=[CpuDevice()], run="run-1"):
    print("held", flush=True)
    time.sleep(120)
"""

CONTENDER = """
import os, sys, time
from pathlib import Path
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.leases import lease_gpus
from ensemble_assets.core.events import EventLog
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(15):
    with lease_gpus("m", "dense", lock_folder=Path(sys.argv[1]), events=EventLog(), devices=[CpuDevice()]):
        os.write(log, f"begin {os.getpid()}\\n".encode())
        time.sleep(0.005)
        os.write(log, f"end {os.getpid()}\\n".encode())
"""


def lease(folder: Path, timeout: float = 30.0, events: EventLog | None = None):
    log = events if events is not None else EventLog()
    return lease_gpus("m", "dense", lock_folder=folder, events=log, devices=[CpuDevice()], timeout=timeout)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "held"
        yield process
    finally:
        process.kill()
        process.wait()


def no_overlap(log: Path) -> bool:
    inside: str | None = None
    for line in log.read_text().splitlines():
        what, who = line.split()
        if what == "begin" and inside is None:
            inside = who
        elif what == "end" and inside == who:
            inside = None
        else:
            return False
    return inside is None


def test_three_contending_processes_never_overlap(tmp_path: Path) -> None:
    log = tmp_path / "overlap.log"
    command = [sys.executable, "-c", CONTENDER, str(tmp_path / "locks"), str(log)]
    contenders = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=240) for process in contenders] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 3 * 15 * 2
    assert no_overlap(log)


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with lease(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (20, 1)


def test_killing_the_holder_frees_the_device(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        with lease(tmp_path, timeout=10.0):
            waited = time.monotonic() - started
    assert waited < 1.0


def test_a_stuck_holder_gives_a_time_out_that_names_it(tmp_path: Path) -> None:
    with (
        holder(tmp_path) as process,
        pytest.raises(LeaseTimeoutError) as caught,
        lease(tmp_path, timeout=0.3),
    ):
        pytest.fail("the lease is taken")
    for part in ("run-1", "dense", str(process.pid)):
        assert part in str(caught.value)


def test_held_leases_are_listed_and_gone_when_released(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        (record,) = list_leases(tmp_path)
        assert f"{process.pid}" in record.describe()
    assert list_leases(tmp_path) == []


def test_a_failing_stage_gives_the_device_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(tmp_path):
        _ = 1 / 0
    with lease(tmp_path, timeout=1.0):
        pass


def test_waiting_acquiring_and_releasing_are_events(tmp_path: Path) -> None:
    log = EventLog()
    with lease(tmp_path, events=log):
        assert [event.name for event in log.events] == ["lease.acquired"]
    assert [event.name for event in log.events] == ["lease.acquired", "lease.released"]
    assert log.events[1].facts["held_seconds"] >= 0


def test_no_devices_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DeviceError, match="no device"),
        lease_gpus("m", "dense", lock_folder=tmp_path, events=EventLog(), devices=[]),
    ):
        pytest.fail("there was nothing to lease")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "lustre"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SettingsError, match=kind):
        prepare_folder(tmp_path / "locks", filesystem_of=lambda path: kind)


def test_the_lock_folder_is_shared_by_all_users_and_protected(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "locks")
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
