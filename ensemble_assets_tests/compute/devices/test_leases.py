"""Leases: never two holders, freed by the kernel at death, time-outs that name the holder. Real processes and locks."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ensemble_assets.common.errors import DeviceError, LeaseTimeoutError, SettingsError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease_notes import list_leases, read_note
from ensemble_assets.compute.devices.leases import MemoryGate, filesystem_type, lease_devices, lock_path, prepare_folder
from ensemble_assets.settings.default_paths import lock_folder
from ensemble_assets.settings.options import Paths
from ensemble_assets_tests.compute.running.worker_cases import is_running, simulated, wait_until_dead
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice

ROOT = Path(__file__).resolve().parents[3]

HOLDER = """
import sys, time
from pathlib import Path
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.common.events import EventLog
with lease_devices("m", "dense", lock_folder=Path(sys.argv[1]), events=EventLog(), devices=[CpuDevice()], run="run-1"):
    print("held", flush=True)
    time.sleep(120)
"""

CONTENDER = """
import os, sys, time
order = int(sys.argv[3])
from pathlib import Path
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.common.events import EventLog
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
Path(f"{sys.argv[2]}.{os.getpid()}.ready").touch()
while len(list(Path(sys.argv[2]).parent.glob("*.ready"))) < 3:
    time.sleep(0.001)
for _ in range(15):
    both = [CpuDevice(uuid="a"), CpuDevice(uuid="b")][::order]
    with lease_devices("m", "dense", lock_folder=Path(sys.argv[1]), events=EventLog(), devices=both):
        os.write(log, f"begin {os.getpid()}\\n".encode())
        time.sleep(0.005)
        os.write(log, f"end {os.getpid()}\\n".encode())
"""


STARTER = """
import subprocess, sys, time
from pathlib import Path
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.common.events import EventLog
with lease_devices("m", "dense", lock_folder=Path(sys.argv[1]), events=EventLog(), devices=[CpuDevice()]) as lease:
    child = subprocess.Popen(["sleep", "120"], pass_fds=lease.descriptors, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(120)
"""

PARENT = """
import sys
from pathlib import Path
from ensemble_assets_tests.simulated.model import Faults, SimulatedModel
from ensemble_assets_tests.compute.running.worker_cases import ActingLog, random_table, run_on, simulated
def say(log, name, facts):
    if name == "worker.ready":
        print(log.pids()[facts["device"]], flush=True)
run_on(simulated(2), random_table(20), SimulatedModel(faults=Faults(hangs_at=0)), Path(sys.argv[1]), ActingLog(act=say))
"""


def lease(folder: Path, timeout: float = 30.0, events: EventLog | None = None):
    log = events if events is not None else EventLog()
    return lease_devices("m", "dense", lock_folder=folder, events=log, devices=[CpuDevice()], timeout=timeout)


@contextmanager
def program(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with program(HOLDER, folder) as process:
        assert process.stdout.readline().strip() == "held"
        yield process


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


def test_three_contending_processes_never_overlap_in_whatever_order_they_name_two_devices(tmp_path: Path) -> None:
    log = tmp_path / "overlap.log"
    command = [sys.executable, "-c", CONTENDER, str(tmp_path / "locks"), str(log)]
    contenders = [subprocess.Popen([*command, order], cwd=ROOT) for order in ("1", "-1", "1")]
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


def test_killing_the_holder_grants_the_device_to_who_waits(tmp_path: Path, record_property) -> None:
    """The wait is recorded (well below a second); what is asserted is the order of what happened."""
    log = EventLog()
    with holder(tmp_path) as process:

        def kill_once_somebody_waits() -> None:
            while not log.named("lease.waiting"):
                time.sleep(0.002)
            log.emit("killed")
            os.kill(process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_once_somebody_waits)
        killer.start()
        with lease(tmp_path, timeout=60.0, events=log):
            killer.join()
        names = [event.name for event in log.events]
    assert names[:3] == ["lease.waiting", "killed", "lease.acquired"]
    record_property("seconds_from_kill_to_lease", log.events[2].at - log.events[1].at)


def test_a_killed_holders_record_is_no_lease(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert read_note(lock_path(tmp_path, CpuDevice().uuid)).pid == process.pid
    assert list_leases(tmp_path) == []


def test_a_stuck_holder_gives_a_time_out_that_names_it(tmp_path: Path) -> None:
    with (
        holder(tmp_path) as process,
        pytest.raises(LeaseTimeoutError) as caught,
        lease(tmp_path, timeout=0.3),
    ):
        pytest.fail("the lease is taken")
    since = read_note(lock_path(tmp_path, CpuDevice().uuid)).since
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    for part in ("run run-1", "stage dense", "model m", f"process {process.pid}", f"since {when}"):
        assert part in str(caught.value)


def test_a_lock_without_a_note_is_respected_all_the_same(tmp_path: Path) -> None:
    path = lock_path(tmp_path, CpuDevice().uuid)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LeaseTimeoutError, match="left no note"), lease(tmp_path, timeout=0.0):
            pytest.fail("the lease is taken")


def test_a_lease_that_gets_only_some_of_its_devices_keeps_none(tmp_path: Path) -> None:
    one, other = CpuDevice(uuid="a"), CpuDevice(uuid="b")

    def take(*devices: CpuDevice):
        return lease_devices("m", "dense", lock_folder=tmp_path, events=EventLog(), devices=devices, timeout=0.0)

    with take(other):
        with pytest.raises(LeaseTimeoutError), take(one, other):
            pytest.fail("one of them is taken")
        with take(one):
            pass


def test_the_lease_of_a_killed_process_stays_with_the_worker_that_inherited_it(tmp_path: Path) -> None:
    with program(STARTER, tmp_path) as process:
        child = psutil.Process(int(process.stdout.readline()))
        try:
            process.kill()
            process.wait()
            with pytest.raises(LeaseTimeoutError, match="a worker it started still holds"), lease(tmp_path, 0.0):
                pytest.fail("the worker has it")
            assert len(list_leases(tmp_path)) == 1
        finally:
            child.kill()
        with lease(tmp_path, timeout=60.0):
            assert wait_until_dead(lambda: [child] if is_running(child) else [])


def test_workers_die_with_their_killed_parent_and_only_then_is_the_device_free(tmp_path: Path) -> None:
    with program(PARENT, tmp_path) as process:
        workers = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
        process.kill()
        process.wait()
        with lease_devices(
            "m", "dense", lock_folder=tmp_path / "locks", events=EventLog(), devices=simulated(2), timeout=60.0
        ):
            assert wait_until_dead(lambda: [worker for worker in workers if is_running(worker)])


class Clock:
    """Seconds that pass whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


def test_a_device_is_granted_only_when_its_memory_is_really_free(tmp_path: Path) -> None:
    """A program that takes no leases holds 11 of 16 GB and gives them back in two steps."""
    changes = ((0.0, 11_000_000_000), (1.0, 9_000_000_000), (2.0, 100_000_000))
    device = SimulatedDevice(others=OtherProcesses(changes), clock=Clock())
    with lease_devices("m", "dense", lock_folder=tmp_path, events=EventLog(), devices=[device], timeout=60.0):
        assert device.clock.now >= 2.0
        assert device.memory().used == 100_000_000


def test_memory_that_never_comes_back_is_a_time_out_with_the_numbers(tmp_path: Path) -> None:
    device = SimulatedDevice(others=OtherProcesses(((0.0, 11_000_000_000),)))
    with (
        pytest.raises(LeaseTimeoutError, match=r"is not leased, but 11000000000 bytes .* ceiling of 12000000000"),
        lease_devices("m", "dense", lock_folder=tmp_path, events=EventLog(), devices=[device], timeout=0.2),
    ):
        pytest.fail("there is no memory")
    assert list_leases(tmp_path) == []


def test_a_program_that_holds_its_memory_for_good_is_lived_with_where_enough_is_left(tmp_path: Path) -> None:
    device = SimulatedDevice(others=OtherProcesses(((0.0, 5_000_000_000),)))
    gate = MemoryGate(settle_seconds=0.1)
    with lease_devices(
        "m", "dense", lock_folder=tmp_path, events=EventLog(), devices=[device], timeout=60.0, gate=gate
    ):
        assert device.memory().used == 5_000_000_000


def test_a_cpu_is_not_waited_for(tmp_path: Path) -> None:
    impossible = MemoryGate(needed_bytes=1 << 60)
    host = [CpuDevice()]
    with lease_devices(
        "m", "dense", lock_folder=tmp_path, events=EventLog(), devices=host, timeout=0.0, gate=impossible
    ):
        pass


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
        lease_devices("m", "dense", lock_folder=tmp_path, events=EventLog(), devices=[]),
    ):
        pytest.fail("there was nothing to lease")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "lustre"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SettingsError, match=kind):
        prepare_folder(tmp_path / "locks", filesystem_of=lambda path: kind)


def test_the_lock_folder_is_shared_by_all_users_and_protected(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "locks")
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777


def test_the_lock_folder_is_the_same_for_users_with_other_temporary_folders(tmp_path: Path, monkeypatch) -> None:
    before = lock_folder(Paths())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert lock_folder(Paths()) == before


def test_a_link_in_place_of_a_lock_file_is_refused(tmp_path: Path) -> None:
    lock_path(tmp_path, CpuDevice().uuid).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot be opened"), lease(tmp_path):
        pytest.fail("that is somebody else's file")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="not a folder"):
        prepare_folder(tmp_path / "file")


def test_the_file_system_of_a_folder_is_known_on_this_machine(tmp_path: Path) -> None:
    assert filesystem_type(Path("/proc")) == "proc"
    assert filesystem_type(tmp_path)
