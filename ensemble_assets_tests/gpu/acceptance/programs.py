"""Programs that sections run beside themselves, in processes of their own: only these make a CUDA context.

``python -m ensemble_assets_tests.gpu.acceptance.programs NAME UUID FOLDER ARGUMENTS``
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cuda import list_cuda_devices
from ensemble_assets_tests.gpu.acceptance import numerics
from ensemble_assets_tests.gpu.acceptance.bench import Bench, Log, random_table, simulated_card


def watch(bench: Bench, path: str) -> None:
    """Write (epoch seconds, bytes in use) every 2 ms until killed."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(bench.device.uuid)
    with Path(path).open("w", buffering=1) as file:
        say(watching=True)
        while True:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            file.write(f"{time.time():.4f} {memory.total - memory.free - memory.reserved}\n")
            time.sleep(0.002)


def hold(bench: Bench, count: str, seconds: str, leave: str = "") -> None:
    """Take memory by plain allocations and keep it: ``count`` bytes, or all but ``leave`` bytes."""
    import torch

    torch.cuda.init()
    wanted = int(count) if not leave else max(0, torch.cuda.mem_get_info()[0] - int(leave))
    blocks = [torch.zeros(wanted // 8, dtype=torch.uint8, device="cuda:0") for _ in range(8)]
    torch.cuda.synchronize()
    say(holds=sum(len(block) for block in blocks), since=time.time())
    time.sleep(float(seconds))


def contend(bench: Bench, times: str) -> None:
    """Lease, say so in the log of all contenders, use the device, leave."""
    log = os.open(bench.folder / "overlap.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    used = []
    for _ in range(int(times)):
        with bench.lease(EventLog(), timeout=120.0):
            os.write(log, f"begin {os.getpid()}\n".encode())
            used.append(bench.device.memory().used)
            if bench.simulated:
                time.sleep(0.05)
            else:
                bench.program("hold", 512 << 20, 0.1).wait()
            os.write(log, f"end {os.getpid()}\n".encode())
    say(used_at_begin=used)


def work(bench: Bench) -> None:
    """Hold a lease and compute for a long time; says its worker's process id when the first batch is done."""

    def act(log: Log, name: str, facts: Any) -> None:
        if name == "batch.done" and len(log.named(name)) == 1:
            say(worker=log.named("worker.started")[0].facts["pid"])

    table = random_table(np.full(2_000, 50))
    bench.run(table, bench.hungry(10_000, seconds=0.5), bench.used_before + 4_000_000_000, Log(act=act))


def facts(bench: Bench) -> None:
    """Open the card step by step; bytes outside the allocator after each, and seconds."""
    started = time.monotonic()
    import torch

    seconds = {"import torch": time.monotonic() - started}
    steps: dict[str, int] = {}

    def step(name: str) -> None:
        torch.cuda.synchronize()
        seconds[name] = time.monotonic() - started
        steps[name] = bench.device.memory().used - torch.cuda.memory_reserved()

    before = bench.device.memory().used
    bench.device.open()
    step("context and one product")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        side = torch.ones(1024, 1024, device="cuda:0", dtype=dtype)
        torch.mm(side, side)
        step(f"product {dtype}")
    backends = torch.nn.attention.SDPBackend
    query = torch.ones(2, 8, 256, 64, device="cuda:0", dtype=torch.float16)
    for backend in (backends.MATH, backends.EFFICIENT_ATTENTION, backends.FLASH_ATTENTION, backends.CUDNN_ATTENTION):
        try:
            with torch.nn.attention.sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(query, query, query)
            step(f"attention {backend.name}")
        except RuntimeError:
            steps[f"attention {backend.name} is not there"] = -1
    torch.topk(torch.rand(64, 30_522, device="cuda:0"), 256)
    step("topk")
    torch.bmm(query[0], query[0].transpose(1, 2))
    step("bmm")
    properties = torch.cuda.get_device_properties(0)
    say(
        name=properties.name, capability=f"{properties.major}.{properties.minor}", torch=torch.__version__,
        cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), before=before,
        visible_bytes=properties.total_memory, outside_bytes=steps,
        step_seconds={name: round(value, 2) for name, value in seconds.items()},
    )  # fmt: skip


def agreement(bench: Bench) -> None:
    """Compare precisions and batches on the card."""
    say(**numerics.agree("cuda:0", bench.folder, small=False))


def kernels(bench: Bench) -> None:
    """Run every input of ours without the plainest attention kernel."""
    say(**numerics.kernels_on_card(bench.folder))


def say(**values: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(values), flush=True)


PROGRAMS = {"watch": watch, "hold": hold, "contend": contend, "work": work, "facts": facts,
            "agreement": agreement, "kernels": kernels}  # fmt: skip


def main() -> None:
    name, uuid, folder, *arguments = sys.argv[1:]
    if uuid.startswith("SIM-"):
        device: Any = simulated_card(uuid)
    else:
        (device,) = [device for device in list_cuda_devices() if device.uuid == uuid]
    PROGRAMS[name](Bench(device, Path(folder), device.memory().used), *arguments)


if __name__ == "__main__":
    main()
