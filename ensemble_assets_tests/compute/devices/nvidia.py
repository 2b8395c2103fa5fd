"""A stand-in for NVML and torch.cuda on a host without a GPU: answers from a table, and writes down every call.

It proves what is asked of the driver, in which order and with which values; not that a GPU answers so. Every name it
has is checked against the real libraries (``test_cuda``), and ``make test-gpu`` is for real devices.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

T4_BYTES = 15_360 << 20


@dataclass
class Nvidia:
    """The GPUs, their used bytes, and what was called.

    Attributes:
        gpus: (UUID, name, total bytes), in PCI bus order.
        used: by UUID.
        calls: names and arguments, in order.
        users: initialisations of NVML less shutdowns.
        fails: what ``nvmlInit`` raises, if anything.
        broken: what making a CUDA context raises, if anything.
        reserved: bytes that the driver keeps of each GPU.
        first_version_only: whether the driver is too old to tell reserved memory apart.
        bad_readings: readings of the memory that fail before one works.
        divided: instances (UUID, name, total bytes) of GPUs in MIG mode, by UUID.
        capability: compute capability of every GPU.
        silent: UUID of a GPU that was listed and does not answer any more.
        allocator: the one that torch uses.
    """

    gpus: list[tuple[str, str, int]]
    used: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    users: int = 0
    fails: Exception | None = None
    broken: Exception | None = None
    reserved: int = 0
    first_version_only: bool = False
    bad_readings: int = 0
    divided: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    capability: tuple[int, int] = (7, 5)
    silent: str = ""
    allocator: str = "native"

    class NVMLError(Exception):
        """As pynvml has it."""

    def nvml(self) -> SimpleNamespace:
        """The module ``pynvml``, as far as it is used."""
        return SimpleNamespace(
            NVMLError=self.NVMLError,
            nvmlInit=self._init,
            nvmlShutdown=self._shutdown,
            nvmlMemory_v2=2,
            NVML_DEVICE_MIG_ENABLE=1,
            nvmlDeviceGetCount=lambda: len(self.gpus),
            nvmlDeviceGetHandleByIndex=lambda index: self.gpus[index],
            nvmlDeviceGetHandleByUUID=self._by_uuid,
            nvmlDeviceGetUUID=lambda handle: handle[0],
            nvmlDeviceGetName=lambda handle: handle[1].encode(),  # bytes, as older versions answered
            nvmlDeviceGetMemoryInfo=self._memory,
            nvmlDeviceGetCudaComputeCapability=lambda handle: self.capability,
            nvmlSystemGetDriverVersion=lambda: "560.35.03",
            nvmlDeviceGetMigMode=self._mig_mode,
            nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
            nvmlDeviceGetMigDeviceHandleByIndex=self._instance,
            nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=11), SimpleNamespace(pid=22)],
        )

    def cuda(self) -> SimpleNamespace:
        """The module ``torch.cuda``, as far as it is used."""
        names = ("synchronize", "empty_cache", "set_per_process_memory_fraction", "reset_peak_memory_stats")
        return SimpleNamespace(
            **{name: self._recorder(name) for name in names},
            set_device=self._set_device,
            get_device_properties=lambda index: SimpleNamespace(total_memory=self.gpus[index][2]),
            get_allocator_backend=lambda: self.allocator,
            memory_reserved=lambda: 700,
            max_memory_allocated=lambda: 600,
        )

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def _recorder(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))

    def _init(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.users += 1

    def _shutdown(self) -> None:
        self.users -= 1

    def _by_uuid(self, uuid: str) -> tuple[str, str, int]:
        assert self.users > 0, "NVML is asked before it was initialised"
        every = [*self.gpus, *(instance for instances in self.divided.values() for instance in instances)]
        if uuid == self.silent:
            raise self.NVMLError("GPU is lost")
        return next(handle for handle in every if handle[0] == uuid)

    def _memory(self, handle: tuple[str, str, int], version: int | None = None) -> SimpleNamespace:
        if self.bad_readings:
            self.bad_readings -= 1
            raise self.NVMLError("Unknown Error")
        uuid, _, total = handle
        used = self.used.get(uuid, 0)
        free = total - used - self.reserved
        if version is None:
            return SimpleNamespace(total=total, used=used + self.reserved, free=free)
        if self.first_version_only:
            raise self.NVMLError("Function Not Found")
        return SimpleNamespace(total=total, reserved=self.reserved, used=used, free=free)

    def _mig_mode(self, handle: tuple[str, str, int]) -> tuple[int, int]:
        if handle[0] not in self.divided:
            raise self.NVMLError("Not Supported")
        return (1, 1) if self.divided[handle[0]] else (0, 0)

    def _instance(self, handle: tuple[str, str, int], index: int) -> tuple[str, str, int]:
        try:
            return self.divided[handle[0]][index]
        except IndexError:
            raise self.NVMLError("Not Found") from None

    def _set_device(self, name: str) -> None:
        if self.broken is not None:
            raise self.broken
        self.calls.append(("set_device", name))


def two_t4s() -> Nvidia:
    """What a Kaggle notebook with "GPU T4 x2" has."""
    return Nvidia([("GPU-aaaa1111", "Tesla T4", T4_BYTES), ("GPU-bbbb2222", "Tesla T4", T4_BYTES)])


def install(monkeypatch: pytest.MonkeyPatch, nvidia: Nvidia, cuda_version: str | None = "12.8") -> Nvidia:
    """Put the stand-in where the device code finds it."""
    import torch

    monkeypatch.setitem(sys.modules, "pynvml", nvidia.nvml())
    monkeypatch.setattr(torch, "cuda", nvidia.cuda())
    monkeypatch.setattr(torch.version, "cuda", cuda_version)
    return nvidia
