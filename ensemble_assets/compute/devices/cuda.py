"""Use NVIDIA GPUs: NVML reads the memory of all processes, torch allocates this process's.

NVML needs no CUDA context, so the parent process watches GPUs without holding their memory. Only ``open``, in a worker,
makes a context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices.device import DeviceSession, MemoryReading

_READINGS = 3
_READ_AGAIN_SECONDS = 0.01
"""Attempts at a reading, and the pause between them: short, since a batch waits for its reading."""


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield the NVML module, initialised for the block. NVML counts its users, so blocks may nest."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def _found(uuid: str) -> Iterator[tuple[Any, Any]]:
    """Yield NVML and its handle of a device; what NVML refuses meanwhile is a ``DeviceError``."""
    import pynvml

    try:
        with _nvml() as nvml:
            yield nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        raise DeviceError(f"the GPU {uuid} does not answer (NVML: {error}). Check nvidia-smi") from error


def _memory(nvml: Any, handle: Any) -> MemoryReading:
    """Read a device's memory, without the part that the driver reserves: that is never free, and no program holds it.

    A reading may fail once and is tried again; if it fails again and again, it is a ``DeviceError``.
    """
    for _ in range(_READINGS - 1):
        with suppress(nvml.NVMLError):
            return _reading(nvml, handle)
        time.sleep(_READ_AGAIN_SECONDS)
    try:
        return _reading(nvml, handle)
    except nvml.NVMLError as error:
        raise DeviceError(f"the memory of a GPU cannot be read (NVML: {error}). Check nvidia-smi") from error


def _reading(nvml: Any, handle: Any) -> MemoryReading:
    try:
        second = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:  # drivers before 510 have the first version only, which counts reserved memory as used
        first = nvml.nvmlDeviceGetMemoryInfo(handle)
        return MemoryReading(used=int(first.used), free=int(first.free))
    # The documentation disagrees whether ``used`` includes ``reserved`` here.
    return MemoryReading(used=int(second.total - second.free - second.reserved), free=int(second.free))


@dataclass(frozen=True)
class GpuFacts:
    """Facts that NVML tells about a GPU: driver, compute capability, bytes in use, free and kept by the driver."""

    driver: str
    capability: tuple[int, int]
    used: int
    free: int
    reserved: int


@dataclass(frozen=True)
class CudaDevice:
    """One GPU, or one instance of a divided GPU (MIG), named by its UUID.

    NVML, CUDA and each process number GPUs differently.
    """

    uuid: str
    name: str
    total_bytes: int

    @property
    def kind(self) -> str:
        """Product name: GPUs of one product behave alike."""
        return self.name

    @property
    def torch_device(self) -> str:
        """Name for torch: a worker sees only its own GPU, which is therefore the first."""
        return "cuda:0"

    @property
    def frees_late(self) -> bool:
        """Always: the driver frees memory after the process is gone."""
        return True

    def memory(self) -> MemoryReading:
        """Read the memory in use by all processes from NVML."""
        with _found(self.uuid) as (nvml, handle):
            return _memory(nvml, handle)

    def facts(self) -> GpuFacts:
        """Ask NVML for the facts that ``doctor`` shows about this GPU."""
        with _found(self.uuid) as (nvml, handle):
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = _memory(nvml, handle)
            held_back = self.total_bytes - memory.used - memory.free
            return GpuFacts(
                _text(nvml.nvmlSystemGetDriverVersion()), (major, minor), memory.used, memory.free, held_back
            )

    def holders(self) -> tuple[int, ...]:
        """List the compute processes that NVML knows on this GPU; in a container, ids may be the host's."""
        with suppress(DeviceError), _found(self.uuid) as (nvml, handle):
            return tuple(int(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return ()

    def environment(self) -> Mapping[str, str]:
        """Show the worker this GPU alone, and set torch's allocator and attention.

        Segments grow, since changing batch shapes fragment fixed ones. Newer versions of torch read the second name of
        that variable first. Attention of cuDNN plans its kernels for every new shape, some 60 ms each, and nearly every
        batch has a shape of its own.
        """
        return {
            "CUDA_VISIBLE_DEVICES": self.uuid,
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
        }

    def open(self) -> DeviceSession:
        """Make the CUDA context and load cuBLAS, so that their memory is measured before the first batch."""
        import torch

        if (allocator := torch.cuda.get_allocator_backend()) != "native":  # in a process that got no ``environment``
            raise DeviceError(
                f"PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF chooses the allocator {allocator}, which keeps memory "
                "beyond the ceiling. Unset it"
            )
        try:
            torch.cuda.set_device(self.torch_device)
            side = torch.ones((256, 256), device=self.torch_device, dtype=torch.float16)
            torch.mm(side, side)
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceError(
                f"{self.name} ({self.uuid}) could not be opened ({type(error).__name__}). Check nvidia-smi, and that "
                "the installed torch is a CUDA build for this driver"
            ) from error
        del side
        torch.cuda.empty_cache()
        return CudaSession(self)


class CudaSession:
    """A GPU opened by its worker: one process, one visible device, torch's caching allocator."""

    def __init__(self, device: CudaDevice) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()  # for as long as the worker lives: it reads the memory many times a second
        self._nvml = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        self._cuda = torch.cuda
        self._visible_bytes = int(torch.cuda.get_device_properties(0).total_memory)

    def memory(self) -> MemoryReading:
        """Read NVML: every process, context and library counts."""
        return _memory(self._nvml, self._handle)

    def reserved_bytes(self) -> int:
        """Return the bytes that torch's caching allocator holds."""
        return int(self._cuda.memory_reserved())

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """Set torch's allocator cap, a fraction of the visible memory.

        An allocation beyond the cap raises ``torch.OutOfMemoryError`` after the allocator's own cache was freed.
        """
        share = 1.0 if cap_bytes is None else cap_bytes / self._visible_bytes
        self._cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)))

    def begin_peak(self) -> None:
        """Reset torch's peak counters."""
        self._cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Return the peak of allocated bytes; cached ones do not count."""
        return int(self._cuda.max_memory_allocated())

    def release_cache(self) -> None:
        """Return cached blocks to the driver."""
        self._cuda.empty_cache()


def list_cuda_devices() -> tuple[CudaDevice, ...]:
    """List every GPU that NVML knows, in PCI bus order; in place of a divided GPU (MIG) its instances.

    If NVML cannot be used, a ``DeviceError`` says why.
    """
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError("the package nvidia-ml-py is not installed, so GPUs cannot be seen") from error
    try:
        with _nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            parts = [part for handle in handles for part in _instances(nvml, handle)]
            try:
                return tuple(_describe(nvml, part) for part in parts)
            except nvml.NVMLError as error:  # as where GPU and host share their memory
                raise DeviceError(
                    f"the memory of a GPU cannot be read (NVML: {error}), so no ceiling could be kept"
                ) from error
    except pynvml.NVMLError as error:
        raise DeviceError(f"no NVIDIA driver answers (NVML: {error})") from error


def torch_gpus() -> tuple[str, ...]:
    """Name the GPUs that a plain torch script would use. A host without any loads no torch, which takes seconds."""
    with suppress(DeviceError):
        if list_cuda_devices():
            import torch

            return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return ()


def _instances(nvml: Any, handle: Any) -> list[Any]:
    """Return the GPU itself, or the instances that it is divided into: a process sees no more than one of them."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # a GPU that cannot be divided
        return [handle]
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    instances = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # fewer were made than could be
            instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return instances


def _describe(nvml: Any, handle: Any) -> CudaDevice:
    return CudaDevice(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
