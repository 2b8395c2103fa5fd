"""Which compute devices this machine has, which will be used, and why, in words that ``doctor`` can print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.cuda import CudaDevice, list_cuda_devices
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.host_memory import host_memory


@dataclass(frozen=True)
class Discovery:
    """What was found.

    Attributes:
        chosen: the devices that stages lease unless they are told otherwise: all usable GPUs, else the CPU.
        sentences: what was found and why the choice is what it is, one sentence each.
    """

    chosen: tuple[Device, ...]
    sentences: tuple[str, ...]


def discover_devices(
    visible: str | None = None,
    *,
    threads: int = 0,
    list_gpus: Callable[[], Sequence[CudaDevice]] = list_cuda_devices,
    torch_cuda: Callable[[], str | None] | None = None,
) -> Discovery:
    """Look for GPUs and decide what to compute on. Makes no CUDA context.

    Args:
        visible: a ``CUDA_VISIBLE_DEVICES`` value that narrows the choice: indices in PCI bus order, or UUIDs or their
            beginnings; None for all.
        threads: CPU threads per worker where the CPU is used; 0 leaves it to the libraries.
        list_gpus: finds GPUs; NVML unless given.
        torch_cuda: the CUDA version that torch was built for, None for a CPU build; asks torch unless given.
    """
    host = CpuDevice(threads)
    memory = host_memory()
    about_host = f"Host: {host.name}, {_gb(memory.total)} of memory ({memory.limited_by})."
    try:
        found = tuple(list_gpus())
    except DeviceError as error:
        return Discovery((host,), (about_host, f"No GPU is used: {error}.", _using_cpu()))
    if not found:
        return Discovery((host,), (about_host, "The NVIDIA driver answers, but it has no GPU.", _using_cpu()))
    about_gpus = tuple(
        f"GPU {index}: {gpu.name}, {_gb(gpu.total_bytes)}, {gpu.uuid}." for index, gpu in enumerate(found)
    )
    chosen = found if visible is None else select_visible(found, visible)
    if not chosen:
        hidden = f"CUDA_VISIBLE_DEVICES={visible!r} leaves none of them."
        return Discovery((host,), (about_host, *about_gpus, hidden, _using_cpu()))
    if (torch_cuda or _torch_cuda)() is None:
        useless = "The installed torch is a CPU build and cannot use them; install a CUDA build."
        return Discovery((host,), (about_host, *about_gpus, useless, _using_cpu()))
    using = f"Stages compute on {len(chosen)} of {len(found)} GPUs, one worker process each."
    return Discovery(chosen, (about_host, *about_gpus, using))


def describe_devices(visible: str | None = None) -> list[str]:
    """What was found, in words, and what will be used and why."""
    return list(discover_devices(visible).sentences)


def select_visible(found: Sequence[CudaDevice], visible: str) -> tuple[CudaDevice, ...]:
    """The GPUs that a ``CUDA_VISIBLE_DEVICES`` value leaves, in its order; like CUDA, stops at the first bad entry."""
    chosen: list[CudaDevice] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matches = list(found[int(entry) : int(entry) + 1])
        else:
            matches = [gpu for gpu in found if entry and gpu.uuid.startswith(entry)]
        if len(matches) != 1:
            break
        chosen += matches
    return tuple(chosen)


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _using_cpu() -> str:
    return "Stages compute on the CPU."


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
