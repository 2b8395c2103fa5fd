"""Find out how much memory this process may use: physical memory, and the limit of every control group above it.

Reads ``/proc`` and the cgroup file systems, versions 1 and 2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PHYSICAL = Path("/proc/meminfo")
_UNLIMITED = 1 << 60
"""Limits above this are none: cgroup v1 writes a number near 2^63 for no limit."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes that this process may use in total, bytes that are still available, and the source of the limit."""

    total: int
    available: int
    limited_by: str


@dataclass(frozen=True)
class _Files:
    """File names of one cgroup version."""

    limit: str
    usage: str
    reclaimable: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Return the tightest of physical memory and all control groups; ``root`` holds ``proc`` and their mounts.

    File cache that the kernel can take back counts as available, as in ``MemAvailable`` of the whole host.
    """
    physical = {line.partition(":")[0]: line.split()[1] for line in _lines(_PHYSICAL)}
    if physical:
        total, available = (int(physical[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    else:  # no /proc, as on macOS
        total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited_by = "physical memory"
    for group, files in _groups(root):
        limit = _number(group / files.limit)
        if limit is None or limit >= _UNLIMITED:
            continue
        left = max(0, limit - (_number(group / files.usage) or 0) + _reclaimable(group, files))
        available = min(available, left)
        if limit < total:
            total, limited_by = limit, "a control group (container limit)"
    return HostMemory(total, available, limited_by)


@lru_cache(maxsize=1)
def _groups(root: Path) -> tuple[tuple[Path, _Files], ...]:
    """Return the folders of this process's memory control group and of all groups above it, up to the mount.

    They are looked up once: a process stays in its group, and the memory is read twenty times a second.
    """
    return tuple(_groups_of_mounts(root))


def _groups_of_mounts(root: Path) -> Iterator[tuple[Path, _Files]]:
    for mount, mount_root, files in _mounts(root):
        path = _membership(root, files)
        if path is None:
            continue
        below = Path(path).is_relative_to(mount_root) and ".." not in Path(path).parts
        relative = Path(path).relative_to(mount_root) if below else Path()
        inside = mount / relative
        for folder in (inside, *inside.parents):
            yield folder, files
            if folder == mount:
                break


def _mounts(root: Path) -> Iterator[tuple[Path, str, _Files]]:
    """Yield mount point, the mounted path of the hierarchy, and the version's file names."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, *_, options = rest.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(" ")[-1].split(",")):
            columns = fields.split(" ")
            yield root / columns[4].lstrip("/"), columns[3], _V2 if kind == "cgroup2" else _V1


def _membership(root: Path, files: _Files) -> str | None:
    """Return this process's path in the memory hierarchy."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if (files is _V2 and number == "0") or (files is _V1 and "memory" in controllers.split(",")):
            return path
    return None


def _reclaimable(group: Path, files: _Files) -> int:
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == files.reclaimable:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "max").strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
