"""Describe the kind of machine, as far as measured times depend on it, and look up processes.

No names of machines, users or networks are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_LIBRARIES = ("numpy", "openvino", "sentence-transformers", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Host:
    """A kind of machine: model name of the processor, cores for this process, GPUs in use (none on a CPU)."""

    cpu: str
    cores: int
    accelerators: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """16 hex digits. Times are comparable if it is equal."""
        return digest(asdict(self))


def this_host(accelerators: tuple[str, ...] = ()) -> Host:
    """Describe the machine of this process."""
    return Host(_cpu_model(), usable_cores(), accelerators)


def instruction_sets() -> str:
    """Name the processor with all its instruction sets; where the system does not list them, as far as Python knows."""
    sets = (line for line in _processor_lines() if line.startswith(("flags", "Features")))
    return (next(sets, "") or platform.processor()) + _cpu_model()


def usable_cores() -> int:
    """Count the cores that this process may use; without affinity, as on macOS, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries on which the speed of models depends."""
    versions: dict[str, str] = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def digest(facts: Any) -> str:
    """Return BLAKE2b-64 of a JSON value, 16 hex digits."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def process_began(pid: int) -> float | None:
    """Return when a process began, in seconds since the epoch; None if it has ended, 0 if another user hides it."""
    try:
        state, *_, started = _stat(pid)[:20]
    except OSError:
        try:
            os.kill(pid, 0)  # no signal: only whether there is such a process
        except PermissionError:
            return 0.0
        except OSError:
            return None
        return 0.0
    booted = re.search(r"^btime (\d+)", (_PROC / "stat").read_text(), re.MULTILINE)
    return None if state in "ZX" or booted is None else int(booted[1]) + int(started) / os.sysconf("SC_CLK_TCK")


def process_family() -> set[int]:
    """Return this process and all its descendants."""
    parents: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(folder.name)] = int(_stat(folder.name)[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    with suppress(OSError):
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _stat(pid: int | str) -> list[str]:
    """Return a process's state, parent and so on (proc(5)): all behind its name, which may hold blanks and brackets."""
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _processor_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _cpu_model() -> str:
    names = (line.partition(":")[2].strip() for line in _processor_lines() if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
