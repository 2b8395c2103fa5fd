"""The host as a device: control groups, what a cap on memory really does, and a peak that no sampler took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from ensemble_assets.common import machine
from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices import cpu
from ensemble_assets.compute.devices import host_memory as host_memory_module
from ensemble_assets.compute.devices.cpu import UNWATCHED, CpuDevice
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.host_memory import host_memory

MB = 1_000_000
ROOT = Path(__file__).resolve().parents[3]


def control_group(root: Path, version: int, membership: str, mount_root: str = "/") -> Path:
    """A fake root with ``/proc/self`` and one mounted hierarchy; the mount's folder."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    if version == 2:
        (proc / "cgroup").write_text(f"0::{membership}\n")
        (proc / "mountinfo").write_text(f"30 20 0:26 {mount_root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        mount = root / "sys/fs/cgroup"
    else:
        (proc / "cgroup").write_text(f"5:cpu,cpuacct:/elsewhere\n4:memory:{membership}\n0::/\n")
        (proc / "mountinfo").write_text(
            "29 20 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            f"30 20 0:26 {mount_root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        )
        mount = root / "sys/fs/cgroup/memory"
    mount.mkdir(parents=True)
    return mount


def limit(folder: Path, version: int, most: str, used: int = 0, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_groups_limit_is_the_hosts_memory(tmp_path: Path, version: int) -> None:
    mount = control_group(tmp_path, version, "/job")
    limit(mount / "job", version, str(900 * MB), used=500 * MB, cache=100 * MB)
    found = host_memory(tmp_path)
    assert (found.total, found.available) == (900 * MB, 500 * MB)  # file cache comes back when it is needed
    assert "control group" in found.limited_by


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_above_counts(tmp_path: Path, version: int) -> None:
    mount = control_group(tmp_path, version, "/user/job")
    limit(mount / "user/job", version, str(900 * MB))
    limit(mount / "user", version, str(700 * MB), used=600 * MB)
    found = host_memory(tmp_path)
    assert (found.total, found.available) == (700 * MB, 100 * MB)


@pytest.mark.parametrize("membership", ["/docker/abc", "/../outside"])
def test_inside_a_container_the_mount_is_the_groups_own(tmp_path: Path, membership: str) -> None:
    mount = control_group(tmp_path, 2, membership, mount_root="/docker/abc")
    limit(mount, 2, str(800 * MB))
    assert host_memory(tmp_path).total == 800 * MB


@pytest.mark.parametrize(("version", "most"), [(2, "max"), (1, "9223372036854771712"), (2, "")])
def test_without_a_limit_physical_memory_counts(tmp_path: Path, version: int, most: str) -> None:
    mount = control_group(tmp_path, version, "/job")
    limit(mount / "job", version, most)
    found = host_memory(tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert found.limited_by == "physical memory"


def test_a_host_without_proc_still_has_physical_memory(tmp_path: Path) -> None:
    assert host_memory(tmp_path).total == psutil.virtual_memory().total


CAPPED = """
import json
import numpy as np
from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices import cpu
from ensemble_assets.compute.devices.cpu import CpuDevice
session = CpuDevice().open()
found = {}
def takes(megabytes):
    try:
        np.ones(megabytes * 125_000)
    except MemoryError:
        return False
    return True
session.limit_allocations(session.reserved_bytes() + 300_000_000)
found["small"], found["large"] = takes(100), takes(600)
session.limit_allocations(None)
found["after"] = takes(600)
session.begin_peak()
before = session.peak_bytes()
block = np.ones(200 * 125_000)
del block
session.release_cache()
found["peak"], found["now"] = session.peak_bytes() - before, session.reserved_bytes() - before
print(json.dumps(found))
"""


def test_the_kernel_refuses_what_is_over_the_cap_and_remembers_the_peak() -> None:
    """In a process of its own: the cap is the process's."""
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout)
    assert (found["small"], found["large"], found["after"]) == (True, False, True)
    assert found["peak"] > 190 * MB
    assert found["now"] < 50 * MB


def test_a_host_is_known_by_a_name_that_does_not_give_its_machine_id_away() -> None:
    device = CpuDevice()
    assert device.uuid == CpuDevice().uuid
    assert device.uuid.startswith("cpu-")
    identity = Path("/etc/machine-id")
    if identity.exists() and identity.read_text().strip():
        assert identity.read_text().strip()[:16] not in device.uuid


def test_threads_reach_workers_by_the_libraries_own_variables() -> None:
    assert CpuDevice(3).environment() == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert CpuDevice().environment() == {}


def test_a_system_without_affinity_and_proc_is_used_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert CpuDevice().name.endswith(f"CPU, {os.cpu_count()} cores")
    assert UNWATCHED not in discover_devices(list_gpus=tuple).sentences[0]
    monkeypatch.setattr(cpu, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(host_memory_module, "_PHYSICAL", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    physical = host_memory(tmp_path)
    assert (physical.available, CpuDevice().memory().used) == (physical.total, 0)
    assert physical.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert discover_devices(list_gpus=tuple).sentences[0].endswith(UNWATCHED)
    session = CpuDevice().open()
    session.begin_peak()
    held = np.ones(40_000_000)
    used = session.memory().used
    assert used > held.nbytes
    del held
    session.limit_allocations(1)
    session.release_cache()
    assert session.peak_bytes() >= used, "what was seen counts, also when it is gone"
    assert np.ones(1_000_000).nbytes == 8_000_000, "nothing is limited"
    (tmp_path / "status").write_text("Name: x\n")
    with pytest.raises(DeviceError, match=r"host memory cannot be watched\. Linux"):
        CpuDevice().open().memory()
