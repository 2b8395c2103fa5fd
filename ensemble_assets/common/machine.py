"""Describe the kind of machine, as far as measured times depend on it: processor, cores, library versions.

No names of machines, users or networks are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

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


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
