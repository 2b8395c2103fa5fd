"""The section about throughput: tokens a second on a card, and a timeline of simulated ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.running.equal_rows import growing_slices, shards
from ensemble_assets.compute.running.worker_settings import IN_FLIGHT, SLICE_BYTES, WorkerSettings
from ensemble_assets_tests.gpu.acceptance.bench import GB, Bench, Log, random_table
from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.simulated.model import MemoryNeeds, SimulatedModel, Speed
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate

_T4 = {"start": 8.0, "load": 12.0, "shape": 0.0, "steady": 5.0, "fallen": 24 / 16, "host": 0.02}
_LARGE = {"start": 7.0, "load": 6.0, "shape": 0.06, "steady": float("inf"), "fallen": 1.0, "host": 0.02}
"""Seconds of interpreter, libraries and context, of loading 1.2 GB, of planning attention for a new shape, and of the
host between two batches (padding, copies, the parent's plan); a T4 falls from 24 to 16 TFLOPS at 70 W. Estimates from
public measurements: nothing was measured on these cards."""

_SHARD_TOKENS = 1 << 24
"""Tokens that a worker on a GPU computes before its rows are stored, at most."""

_TOKENISED = 650_000
"""Tokens that one core makes a second: 620,000 to 670,000 of processor time, with a WordPiece vocabulary."""

_TOKEN_BYTES, _SPREAD = 3.4, 0.2
"""Bytes of text per token, as measured there, and an assumed deviation between texts."""


def throughput(bench: Bench) -> dict[str, Any]:
    """Tokens a second, and seconds split into start and load, busy, and gaps."""
    if bench.simulated:
        return _throughput_simulated()
    from ensemble_assets_tests.gpu.acceptance.models import SHAPES, factory, model

    results: dict[str, Any] = {}
    for name in ("minilm", "xlmr-large", "qwen3-0.6b", "qwen2-1.5b"):
        lengths = np.clip(np.random.default_rng(5).lognormal(5.2, 0.6, 9_000), 5, 500).astype(np.int64)
        log, tokens = Log(), int(lengths.sum())
        made = factory(*model(name, bench.folder, small=False), "auto")
        result = bench.run(random_table(lengths), made, bench.used_before + 12 * GB, log)
        busy = sum(float(str(event.facts["seconds"])) for event in log.named("batch.done"))
        computing = log.named("batch.done")[-1].at - log.named("worker.ready")[0].at
        results[name] = {
            "precision": result.precision,
            "tokens_per_second": round(tokens / computing),
            "teraflops": round(tokens * SHAPES[name].megaflops / computing / 1e6, 1),
            "start_and_load": round(log.named("worker.ready")[0].at - log.named("worker.started")[0].at, 2),
            "busy": round(busy, 2),
            "gaps": round(computing - busy, 2),
            "redone_rows": result.precision_redone,
        }
    return {"passed": all(result["tokens_per_second"] > 0 for result in results.values()), **results}


class _Simulated(NamedTuple):
    """Seconds of every part of a table on loaded workers, and of all their batches."""

    seconds: list[float]
    busy: float
    padding: float


def _throughput_simulated() -> dict[str, Any]:
    """A model of 0.6 B weights on T4s and a large card: slices that stream, or all texts tokenised before."""
    cards = {"1 x T4": (1, 17_000.0, _T4), "2 x T4": (2, 17_000.0, _T4), "1 large card": (1, 430_000.0, _LARGE)}
    results: dict[str, Any] = {}
    for chunks in (3_096, 100_000):
        random = np.random.default_rng(6)
        lengths = np.clip(random.lognormal(5.2, 0.6, chunks), 5, 2_000).astype(np.int64)
        text_bytes = (lengths * _TOKEN_BYTES * random.lognormal(0.0, _SPREAD, chunks)).astype(np.int64)
        for card, (count, speed, seconds) in cards.items():
            slices = [lengths[part] for part in growing_slices(text_bytes, SLICE_BYTES)]
            parts = [lengths[part] for part in shards(lengths, np.arange(chunks), _SHARD_TOKENS)]
            sliced, whole = _run(slices, count, speed, seconds), _run(parts, count, speed, seconds)
            streamed = _streamed(slices, sliced.seconds, seconds)
            alone = _streamed(slices, _run(slices, count, speed, seconds, in_flight=1).seconds, seconds)
            first = _streamed([lengths], [sum(whole.seconds)], seconds)
            apart = first + (len(parts) - 1) * (seconds["start"] + seconds["load"])
            tokenised = int(slices[0].sum()) / _TOKENISED
            results[f"{chunks:,} chunks, {card}"] = {
                "seconds": round(streamed, 1),
                "start": round(max(seconds["start"], tokenised), 1),
                "load": seconds["load"],
                "busy": round(sliced.busy, 1),
                "gaps": round(streamed - sliced.busy - max(seconds["start"], tokenised) - seconds["load"], 1),
                "padding": round(sliced.padding, 3),
                "slices": len(slices),
                "one_batch_in_flight": round(alone, 1),
                "tokenised_first": round(first, 1),
                "one_worker_per_shard": round(apart, 1),
                "ratio": round(streamed / apart, 3),
            }
    one, two = (results[f"100,000 chunks, {card}"]["seconds"] for card in ("1 x T4", "2 x T4"))
    return {"passed": one / two >= 1.9, "gain_of_the_second_t4": round(one / two, 3), **results}


def _streamed(slices: list[NDArray[np.int64]], computing: list[float], seconds: dict[str, float]) -> float:
    """Return the end of the last slice: each begins when its texts are tokenised and the one before it is done.

    Workers import their libraries meanwhile, and load the model when the first slice is there.
    """
    ready = np.cumsum([int(lengths.sum()) for lengths in slices]) / _TOKENISED
    end = max(float(ready[0]), seconds["start"]) + seconds["load"]
    for tokenised, needed in zip(ready.tolist(), computing, strict=True):
        end = max(end, tokenised) + needed
    return end


def _run(
    parts: list[NDArray[np.int64]], count: int, speed: float, seconds: dict[str, float], in_flight: int = IN_FLIGHT
) -> _Simulated:
    """Run parts one after another on workers that are loaded already, with the sizes that the part before found."""
    model = SimulatedModel(
        MemoryNeeds(1_200_000_000, 90_000.0), Speed(speed, 0.015, **{**seconds, "start": 0.0, "load": 0.0})
    )
    devices = [SimulatedDevice(f"SIM-{number}") for number in range(count)]
    reports: list[SimulationReport] = []
    for lengths in parts:
        sizes = reports[-1].sizes if reports else None
        reports.append(simulate(lengths, model, devices, WorkerSettings(), sizes, in_flight))
    finished = [batch for report in reports for batch in report.trace if batch.outcome == "finished"]
    tokens = sum(int(lengths.sum()) for lengths in parts)
    return _Simulated(
        [report.seconds for report in reports],
        sum(batch.end - batch.begin for batch in finished) / count,
        sum(batch.tokens for batch in finished) / tokens - 1,
    )
