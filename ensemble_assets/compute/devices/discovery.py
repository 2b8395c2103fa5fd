"""Find the compute devices of this machine, choose among them, and explain the choice in words for ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices.cpu import UNWATCHED, CpuDevice, watches_memory
from ensemble_assets.compute.devices.cuda import CudaDevice, list_cuda_devices
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.host_memory import host_memory

_ABOUT_ORDER = (
    "CUDA_VISIBLE_DEVICES counts these different GPUs in PCI bus order here, and by speed in CUDA unless "
    "CUDA_DEVICE_ORDER=PCI_BUS_ID; name UUIDs to be sure."
)
_USING_CPU = "Stages compute on the CPU."


@dataclass(frozen=True)
class Discovery:
    """The devices that stages lease by default: all usable GPUs, else the CPU; and the reasons, one sentence each."""

    chosen: tuple[Device, ...]
    sentences: tuple[str, ...]


def discover_devices(
    visible: str | None = None,
    *,
    threads: int = 0,
    list_gpus: Callable[[], Sequence[CudaDevice]] = list_cuda_devices,
    torch_cuda: Callable[[], str | None] | None = None,
) -> Discovery:
    """Look for GPUs and choose the devices. Makes no CUDA context.

    ``visible`` is a ``CUDA_VISIBLE_DEVICES`` value that narrows the choice: indices in PCI bus order, or UUIDs or their
    beginnings. ``threads`` are for a worker on the CPU; 0 leaves the libraries' own choice.
    """
    host = CpuDevice(threads)
    memory = host_memory()
    about_host = f"Host: {host.name}, {_gb(memory.total)} of memory ({memory.limited_by})."
    about_host += "" if watches_memory() else f" {UNWATCHED}"
    try:
        gpus = tuple(list_gpus())
    except DeviceError as error:
        return Discovery((host,), (about_host, f"No GPU is used: {error}.", _USING_CPU))
    if not gpus:
        return Discovery((host,), (about_host, "The NVIDIA driver answers, but it has no GPU.", _USING_CPU))
    about_gpus = tuple(
        f"GPU {index}: {gpu.name}, {_gb(gpu.total_bytes)}, {gpu.uuid}." for index, gpu in enumerate(gpus)
    )
    chosen = gpus if visible is None else select_visible(gpus, visible)
    if not chosen:
        hidden = f"CUDA_VISIBLE_DEVICES={visible!r} leaves none of them."
        return Discovery((host,), (about_host, *about_gpus, hidden, _USING_CPU))
    by_number = visible is not None and any(entry.strip().isdigit() for entry in visible.split(","))
    if by_number and len({gpu.name for gpu in gpus}) > 1:  # CUDA orders different ones by speed
        about_gpus += (_ABOUT_ORDER,)
    if (torch_cuda or _torch_cuda)() is None:
        useless = "The installed torch is a CPU build and cannot use them; install a CUDA build."
        return Discovery((host,), (about_host, *about_gpus, useless, _USING_CPU))
    using = f"Stages compute on {len(chosen)} of {len(gpus)} GPUs, one worker process each."
    return Discovery(chosen, (about_host, *about_gpus, using))


def select_visible(gpus: Sequence[CudaDevice], visible: str) -> tuple[CudaDevice, ...]:
    """Select GPUs by a ``CUDA_VISIBLE_DEVICES`` value, in its order, each once.

    Stops at the first bad entry, as CUDA does.
    """
    chosen: list[CudaDevice] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matches = list(gpus[int(entry) : int(entry) + 1])
        else:
            matches = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(matches) != 1:
            break
        chosen += matches
    return tuple(dict.fromkeys(chosen))


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
