"""The sections with real models but one: facts of the card, the ceiling, agreement, kernels.

Without a card, memory and time are simulated, and the models are small ones on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets_tests.gpu.acceptance.bench import GB, Bench, Log, answer, random_table
from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.simulated.model import MemoryNeeds, SimulatedModel, Speed
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate

LIMITS = {"fp32": (1e-4, 0.999_99), "fp16": (1.5e-3, 0.9995), "bf16": (1e-2, 0.9995)}
"""Largest difference of a component of a unit vector from fp32 on the CPU, and smallest cosine."""


def facts(bench: Bench) -> dict[str, Any]:
    """What the card and its libraries are, and what loading them takes outside of the allocator."""
    if isinstance(bench.device, SimulatedDevice):
        session = bench.device.open()
        opened = session.memory().used - bench.used_before
        SimulatedModel().place(session)
        late = session.memory().used - session.held - bench.used_before - opened
        return {"passed": late < Ceiling().margin_bytes, "context_bytes": opened, "after_loading_bytes": late}
    import pynvml

    told: dict[str, Any] = answer(bench.program("facts"))
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(bench.device.uuid)
    first, second = (
        pynvml.nvmlDeviceGetMemoryInfo(handle),
        pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2),
    )
    outside = [count for count in told["outside_bytes"].values() if count > 0]
    told["growth_after_the_first_product"] = max(outside) - outside[0]
    return {
        "passed": told["growth_after_the_first_product"] < Ceiling().margin_bytes,
        **told,
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "idle_used_first_version": int(first.used),
        "idle_reserved": int(second.reserved),
    }


def ceiling(bench: Bench) -> dict[str, Any]:
    """12 GB hold with real architectures and lengths from 5 to 8,192, also from remembered sizes."""
    random = np.random.default_rng(3)
    spread = np.clip(random.lognormal(5.3, 0.9, 30_000), 5, 8192).astype(np.int64)
    lengths = {"minilm": np.minimum(np.tile(spread, 4), 500), "qwen3-0.6b": spread}
    hard, results = bench.used_before + 12 * GB, {}
    for name, rows in lengths.items():
        run = _ceiling_simulated if bench.simulated else _ceiling_on_card
        results[name] = run(bench, name, rows, hard)
    passed = all(
        result["most_used"] <= hard and result["share_of_soft"] >= 0.8 and result["redone"] <= 0.03 and result["done"]
        for result in results.values()
    )
    return {"passed": passed, "hard": hard, **results}


def _ceiling_simulated(bench: Bench, name: str, lengths: NDArray[np.int64], hard: int) -> dict[str, Any]:
    assert isinstance(bench.device, SimulatedDevice)
    needs = {
        "minilm": MemoryNeeds(45_000_000, 45_000.0, 0.0, 0.0, 0.02, 4.0),
        "qwen3-0.6b": MemoryNeeds(1_200_000_000, 90_000.0, 0.0, 0.0, 0.02, 4.0),
    }[name]
    model = SimulatedModel(needs, Speed(200_000.0, 0.01, shape=0.002))
    settings = WorkerSettings(PlannerSettings(SizeSettings(share=1 / 8)), Ceiling(hard))
    first = simulate(lengths, model, [bench.device], settings)
    second = simulate(lengths, model, [bench.device], settings, first.sizes)
    soft = Ceiling(hard).soft_bytes
    return _summary(first, soft) | {"from_remembered_sizes": _summary(second, soft)}


def _summary(report: SimulationReport, soft: int) -> dict[str, Any]:
    finished = [batch for batch in report.trace if batch.outcome == "finished"]
    steady = finished[len(finished) // 3 : 2 * len(finished) // 3]
    return {
        "done": report.error is None and bool((report.times_done == 1).all()),
        "most_used": report.peak_used,
        "share_of_soft": round(float(np.mean([batch.peak_used for batch in steady])) / soft, 3),
        "redone": round(report.tally.redone_tokens / max(1, report.tally.tokens), 4),
        "batches": len(finished),
    }


def _ceiling_on_card(bench: Bench, name: str, lengths: NDArray[np.int64], hard: int) -> dict[str, Any]:
    from ensemble_assets_tests.gpu.acceptance.models import factory, model

    made = factory(*model(name, bench.folder, small=False), "fp16")
    sizes = PlannerSettings(SizeSettings(share=1 / 8))
    results: list[dict[str, Any]] = []
    for _ in range(2):  # the second time with remembered sizes
        log, table = Log(), random_table(lengths)
        with bench.watched() as read:
            result = bench.run(table, made, hard, log, batches=sizes, size_history=bench.folder / "sizes.json")
            most = int(read()[:, 1].max())
        done = log.named("batch.done")
        steady = [float(str(event.facts["used_bytes"])) for event in done[len(done) // 3 : 2 * len(done) // 3]]
        lost = sum(int(str(event.facts["tokens"])) for event in log.named("mitigation.oom"))
        results.append(
            {
                "done": not result.failed_rows and result.precision_redone == 0,
                "most_used": most,
                "share_of_soft": round(float(np.mean(steady)) / Ceiling(hard).soft_bytes, 3),
                "redone": round(lost / int(lengths.sum()), 4),
                "batches": len(done),
                "tokens_per_second": round(int(lengths.sum()) / log.after("worker.ready")),
            }
        )
    return results[0] | {"from_remembered_sizes": results[1]}


def agreement(bench: Bench) -> dict[str, Any]:
    """Half precisions against fp32 on the CPU, and equal rows padded, unpadded and in other batches."""
    if bench.simulated:
        return agree("cpu", bench.folder, small=True)
    told: dict[str, Any] = answer(bench.program("agreement"))
    return told


def agree(device: str, folder: Path, *, small: bool) -> dict[str, Any]:
    """Compare every kind of model in every precision of the device with fp32 on the CPU, and packed with padded rows.

    Rows that the device does not pack are not compared; ``packing`` says why.
    """
    from ensemble_assets.compute.backends.forward import packing_of
    from ensemble_assets_tests.gpu.acceptance.models import GROUPED, SHAPES, factory, model

    precisions = ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16", "bf16")
    table = random_table(np.array([5, 9, 9, 33, 64, 64, 17, 128]), seed=4)
    results: dict[str, Any] = {}
    packing: dict[str, str] = {}
    for name in SHAPES:
        spec, files = model(name, folder, small=small, device=device)
        with _loaded(factory(spec, files, "fp32"), "cpu") as forward:
            exact = _computed(forward, table, [range(len(table))])
        for precision in precisions:
            with _loaded(factory(spec, files, precision), device) as forward:
                together = _computed(forward, table, [range(len(table))])
                alone = _computed(forward, table, [[row] for row in range(len(table))])
                pairs = _computed(forward, table, [[3, 1], [7, 0], [2, 4], [5, 6]])
            results[f"{name} {precision}"] = {
                "to_fp32": _distance(together, exact),
                "alone": _distance(alone, together),
                "in_pairs": _distance(pairs, together),
            }
            if name in GROUPED:
                continue
            with _loaded(factory(spec, files, precision, packed=True), device) as forward:
                packing[f"{name} {precision}"] = packing_of(forward)
                if packing_of(forward) == "packed":
                    packed = _computed(forward, table, [range(len(table))])
                    results[f"{name} {precision}"]["packed"] = _distance(packed, together)
    passed = all(_within(key.split()[1], distances) for key, distances in results.items())
    return {"passed": passed, **results, "packing": packing}


@contextmanager
def _loaded(made: Any, device: str) -> Iterator[Any]:
    forward = made.load(device)
    yield forward
    forward.release()


def _computed(forward: Any, table: TokenTable, batches: list[Any]) -> dict[str, NDArray[Any]]:
    parts, rows = [], []
    for batch in batches:
        chosen = np.array(sorted(batch, key=lambda row: -table.lengths[row]))
        parts.append(forward(table, Batch(chosen, int(table.lengths[chosen].max()))))
        rows += chosen.tolist()
    places = np.argsort(rows)
    return {name: np.concatenate([part[name] for part in parts])[places] for name in parts[0]}


def _distance(got: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Largest difference and smallest cosine of vectors; difference relative to the spread of logits; shared terms."""
    if "vector" in got:
        cosines = (got["vector"] * expected["vector"]).sum(axis=1)
        return {"difference": float(np.abs(got["vector"] - expected["vector"]).max()), "cosine": float(cosines.min())}
    if "index" in got:
        shared = [
            len(set(a[a >= 0]) & set(b[b >= 0])) / max(1, (b >= 0).sum())
            for a, b in zip(got["index"], expected["index"], strict=True)
        ]
        return {"shared_terms": round(float(min(shared)), 4)}
    spread = float(np.ptp(expected["logit"])) or 1.0
    return {"difference": float(np.abs(got["logit"] - expected["logit"]).max()) / spread}


def _within(precision: str, distances: dict[str, dict[str, float]]) -> bool:
    difference, cosine = LIMITS[precision]
    for distance in distances.values():
        if "cosine" in distance and (distance["difference"] > difference or distance["cosine"] < cosine):
            return False
        if distance.get("shared_terms", 1.0) < (0.99 if precision == "fp32" else 0.9):
            return False
        if "cosine" not in distance and distance.get("difference", 0.0) > 10 * difference:
            return False
    return True


def kernels(bench: Bench) -> dict[str, Any]:
    """No input of ours needs the plainest attention kernel, also where a card has no flash attention."""
    if bench.simulated:
        return _asked_on_cpu(bench.folder)
    told: dict[str, Any] = answer(bench.program("kernels"))
    return told


def kernels_on_card(folder: Path) -> dict[str, Any]:
    """Run padded and unpadded batches without the plain kernel, then long rows as on a T4: memory grows linearly."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ensemble_assets.compute.backends.library import attention
    from ensemble_assets_tests.gpu.acceptance.models import GROUPED, SHAPES, factory, model

    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    refused, growth = [], {}
    for name in SHAPES:
        spec, files = model(name, folder, small=False, device="cuda:0")
        forward = factory(spec, files, "fp16").load("cuda:0")
        for shape, lengths in {"padded": [64, 40], "unpadded": [64, 64]}.items():
            try:
                with sdpa_kernel(fast):
                    forward(random_table(np.array(lengths)), Batch(np.arange(2), 64))
            except Exception as error:  # noqa: BLE001  # which inputs are refused is the result
                refused.append(f"{name} {shape}: {type(error).__name__}")
        forward.release()
    attention.repeat_keys((7, 5))
    for name in GROUPED:
        spec, files = model(name, folder, small=False, device="cuda:0")
        forward = factory(spec, files, "fp16").load("cuda:0")
        peaks = []
        for length in (4096, 8192, 16384):
            base = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
                forward(random_table(np.array([length])), Batch(np.arange(1), length))
            peaks.append(torch.cuda.max_memory_allocated() - base)
        forward.release()
        growth[name] = peaks
    linear = all(peaks[2] < 2.4 * peaks[1] < 2.4 * 2.4 * peaks[0] for peaks in growth.values())
    return {"passed": not refused and linear, "refused": refused, "bytes_of_4k_8k_16k_rows": growth}


def _asked_on_cpu(folder: Path) -> dict[str, Any]:
    """What a small model of each grouped shape asks of torch's attention, made as for a T4."""
    from ensemble_assets.compute.backends.library import attention
    from ensemble_assets_tests.gpu.acceptance.models import GROUPED, factory, model

    calls: dict[str, Any] = {}
    for name in GROUPED:
        spec, files = model(name, folder, small=True)
        with _spied() as asked, _restored():
            forward: Any = factory(spec, files, "fp32").load("cpu")
            attention.fit_to_gpu(forward._model, (7, 5))
            forward(random_table(np.array([30, 20])), Batch(np.arange(2), 30))
        calls[name] = {
            "masks": sum(call["attn_mask"] is not None for call in asked),
            "grouped": sum(bool(call.get("enable_gqa")) for call in asked),
            "calls": len(asked),
        }
    passed = all(call["calls"] and not call["masks"] and not call["grouped"] for call in calls.values())
    return {"passed": passed, **calls}


@contextmanager
def _spied() -> Iterator[list[dict[str, Any]]]:
    import torch

    plain, calls = torch.nn.functional.scaled_dot_product_attention, []

    def spy(*arguments: Any, **words: Any) -> Any:
        calls.append(words)
        return plain(*arguments, **words)

    torch.nn.functional.scaled_dot_product_attention = spy
    try:
        yield calls
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


@contextmanager
def _restored() -> Iterator[None]:
    from transformers.integrations import sdpa_attention

    before = sdpa_attention.use_gqa_in_sdpa
    try:
        yield
    finally:
        sdpa_attention.use_gqa_in_sdpa = before
