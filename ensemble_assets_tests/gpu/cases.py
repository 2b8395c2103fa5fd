"""Models and programs for the GPU tests: importable, since they run in processes of their own.

The process of the tests itself never touches CUDA: it would hold a context, which counts against the ceiling.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.devices.ceiling import Ceiling, MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.cuda import CudaDevice, list_cuda_devices
from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.simulated.model import expected_vector

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclass(frozen=True)
class HungryModel(PlainFactory):
    """Takes and writes so many bytes of the GPU per padded token; its answer is arithmetic on the ids.

    Attributes:
        poison_rows: rows on which a kernel's assertion fails, as it does for a token beyond the vocabulary.
    """

    bytes_per_token: int
    weights: int = 64 * MIB
    seconds: float = 0.0
    poison_rows: frozenset[int] = frozenset()
    outputs: Mapping[str, OutputSpec] = field(default_factory=lambda: {"vector": OutputSpec((4,), "float32")})
    identity: str = "hungry"

    def load(self, device: str) -> HungryForward:
        return HungryForward(self, device)


class HungryForward:
    """The model on a device."""

    def __init__(self, model: HungryModel, device: str) -> None:
        import torch

        self.precision = model.precision
        self._model = model
        self._device = device
        self._weights = torch.zeros(model.weights, dtype=torch.uint8, device=device)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        import torch

        from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory

        fits = True
        try:
            taken = torch.ones(batch.tokens * self._model.bytes_per_token, dtype=torch.uint8, device=self._device)
            total = int(taken[:: max(1, len(taken) // 1000)].sum())  # the device has really written it
            assert total > 0
            del taken
            if self._model.poison_rows.intersection(batch.rows.tolist()):
                beyond = torch.tensor([10**6], device=self._device)
                torch.nn.functional.embedding(beyond, torch.zeros(8, 8, device=self._device)).sum().item()
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
                raise DeviceError("an assertion in a kernel") from None
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            raise DeviceOutOfMemoryError(f"{batch.tokens} tokens do not fit")
        time.sleep(self._model.seconds)
        return {"vector": np.stack([expected_vector(table, int(row)) for row in batch.rows])}


def in_a_process(program: str, device: CudaDevice, *arguments: object, wait: bool = True) -> Any:
    """Run a program of this module on one GPU; its JSON answer, or the process where it is not waited for."""
    command = [sys.executable, "-m", "ensemble_assets_tests.gpu.cases", program, device.uuid, *map(str, arguments)]
    environment = {**os.environ, **device.environment()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if not wait:
        return process
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def cap(device: CudaDevice, ceiling_bytes: str) -> dict[str, Any]:
    """Ask for more and more under the guard's cap until it is refused; what was held and used at most."""
    import torch

    from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory

    before = device.memory().used
    session = device.open()
    guard = MemoryGuard(session, Ceiling(before + int(ceiling_bytes)))
    reserve = guard.settle() - before
    headroom = guard.measure()
    held, refused, used = [], "", 0
    try:
        while len(held) < 10_000:
            held.append(torch.zeros(16 * MIB, dtype=torch.uint8, device="cuda:0"))
            torch.cuda.synchronize()
            used = max(used, session.memory().used)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        refused = type(error).__name__
    most = session.reserved_bytes()
    held.clear()
    session.release_cache()
    half = torch.zeros(headroom.cap // 2, dtype=torch.uint8, device="cuda:0")  # it recovers
    return {
        "refused": refused, "cap": headroom.cap, "reserved": most, "used": used, "reserve": reserve,
        "hard": before + int(ceiling_bytes), "recovered": len(half), "before": before,
    }  # fmt: skip


def sampler(device: CudaDevice, size: str) -> dict[str, Any]:
    """Take and give back a block: NVML's figures and the allocator's, and what the sampler saw meanwhile."""
    import torch

    session = device.open()
    guard = MemoryGuard(session, Ceiling(min(device.total_bytes, session.memory().used + 4 * int(size))))
    readings = [(session.memory().used, session.reserved_bytes())]
    with PeakSampler(guard, 0.05) as watching:
        block = torch.ones(int(size), dtype=torch.uint8, device="cuda:0")
        torch.cuda.synchronize()
        readings.append((session.memory().used, session.reserved_bytes()))
        session.begin_peak()
        peak = session.peak_bytes()
        time.sleep(0.5)  # ten periods
        del block
        session.release_cache()
        torch.cuda.synchronize()
        readings.append((session.memory().used, session.reserved_bytes()))
    return {"readings": readings, "peak": peak, "timeline": watching.timeline.points, "guard_peak": guard.peak_used}


def contend(device: CudaDevice, folder: str, times: str) -> dict[str, Any]:
    """Lease, open the device in a worker-like process, use it, leave; all in the log that the tests read."""
    log = os.open(Path(folder) / "overlap.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    used = []
    for _ in range(int(times)):
        gate = MemoryGate(ceiling_bytes=device.total_bytes, needed_bytes=MIB)
        locks = Path(folder) / "locks"
        with lease_devices("m", "s", lock_folder=locks, events=EventLog(), devices=[device], timeout=240.0, gate=gate):
            os.write(log, f"begin {os.getpid()}\n".encode())
            used.append(device.memory().used)
            in_a_process("use", device, 512 * MIB)
            os.write(log, f"end {os.getpid()}\n".encode())
    return {"used_at_begin": used}


def use(device: CudaDevice, size: str) -> dict[str, Any]:
    """Hold so many bytes for a moment."""
    import torch

    device.open()
    block = torch.ones(int(size), dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    return {"used": device.memory().used, "size": len(block)}


if __name__ == "__main__":
    (chosen,) = [device for device in list_cuda_devices() if device.uuid == sys.argv[2]]
    programs = {"cap": cap, "sampler": sampler, "contend": contend, "use": use}
    print(json.dumps(programs[sys.argv[1]](chosen, *sys.argv[3:])))
