"""What telemetry costs: the same synthetic stages with telemetry on and off, taking turns in one process.

    python -m ensemble_assets_tests.benchmarks.telemetry_overhead [--batches 60] [--batch-ms 50] [--repeats 9]

A batch is a fixed amount of array work; 50 ms is short (8,192 tokens take about 300 ms on two cores, 40 ms for the
smallest model on a T4). With telemetry on, events come as the worker engine sends them: one per batch, the memory
samples of a 75 ms sampler when the stage ends, leases, now and then a split; exports are those of a default run with
metrics: journal and Prometheus text file.

Prints JSON: the ratio on / off per pair of turns (median, quartiles) in wall time and in CPU time, and of the fastest
turns of either kind, which other programs on the host disturb less; the CPU time of
telemetry alone (the same run without the work) as a share of the CPU time of the work, which a busy host disturbs
least; and the cost of one event.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensemble_assets.common.events import EventLog, EventSink, Value
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.run_telemetry import CurrentSpanSink, RunTelemetry

_MODEL = "all-minilm-l6-v2"
_STAGES = ("dense", "sparse", "rerank")
_SAMPLER_SECONDS = 0.075


class NoSink:
    """Telemetry off: events go nowhere."""

    def emit(self, name: str, **facts: Value) -> None:
        """Nothing."""


def _calibrated(seconds: float) -> Callable[[], None]:
    """Work that takes about ``seconds`` on this host, on one core, the same amount every time."""
    values = np.linspace(-3, 3, 200_000)
    room = np.empty_like(values)
    single = min(_timed(lambda: np.tanh(values, out=room))[1] for _ in range(50))
    turns = max(1, round(seconds / single))

    def work() -> None:
        for _ in range(turns):
            np.tanh(values, out=room)

    return work


def _stage(sink: EventSink, batches: int, batch_seconds: float, work: Callable[[], None]) -> None:
    sink.emit("lease.acquired", device="cpu", stage="dense", model=_MODEL, wait_seconds=0.0)
    for number in range(batches):
        work()
        sink.emit("batch.done", device="cpu", number=number, rows=32, longest=128, seconds=0.02, peak_bytes=2**30)
        if number % 25 == 24:
            sink.emit("mitigation.split", device="cpu", rows=32, into=16, reason="out_of_memory")
    for sample in range(round(batches * batch_seconds / _SAMPLER_SECONDS)):
        sink.emit("device.memory", device="cpu", sampled_at=float(sample), used_bytes=2**30)
    sink.emit("device.peak", device="cpu", used_bytes=2**30)
    sink.emit("lease.released", device="cpu", stage="dense", model=_MODEL, held_seconds=1.0)


def _off(batches: int, batch_seconds: float, work: Callable[[], None]) -> None:
    for _ in _STAGES:
        _stage(NoSink(), batches, batch_seconds, work)


def _on(batches: int, batch_seconds: float, work: Callable[[], None], folder: Path) -> None:
    options = TelemetryOptions(journal_folder=folder, textfile_folder=folder)
    run = RunTelemetry(os.urandom(16).hex(), "docling", options)
    for stage in _STAGES:
        with run.stage(stage, items=batches * 32, tokens=batches * 4096):
            _stage(CurrentSpanSink(run, EventLog()), batches, batch_seconds, work)


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def _event_microseconds(folder: Path, events: int = 5000) -> float:
    run = RunTelemetry(os.urandom(16).hex(), "docling", options=TelemetryOptions(journal_folder=folder))
    with run.stage("dense") as span:
        begin = time.perf_counter()
        for number in range(events):
            span.emit("batch.done", device="cpu", number=number, rows=32, longest=128, seconds=0.02, peak_bytes=2**30)
        return (time.perf_counter() - begin) / events * 1e6


def measure(batches: int, batch_seconds: float, repeats: int) -> dict[str, object]:
    """Ratios of ``repeats`` pairs of turns, on after off and off after on alternately."""
    work = _calibrated(batch_seconds)
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    taken: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _on(2, batch_seconds, work, folder)  # imports and first-use costs are paid once per process, not per stage
        for repeat in range(repeats):
            turns = {
                "off": lambda: _off(batches, batch_seconds, work),
                "on": lambda: _on(batches, batch_seconds, work, folder),
            }
            order = ("off", "on") if repeat % 2 else ("on", "off")
            times = {turn: _timed(turns[turn]) for turn in order}
            for turn, seconds in times.items():
                taken[turn].append(seconds)
            for index, clock in enumerate(ratios):
                ratios[clock].append(times["on"][index] / times["off"][index])
        alone = min(_timed(lambda: _on(batches, batch_seconds, lambda: None, folder))[1] for _ in range(repeats))
        worked = min(_timed(lambda: _off(batches, batch_seconds, work))[1] for _ in range(3))
        single = _event_microseconds(folder)
    shown = {
        clock: dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4), strict=True))
        for clock, values in ratios.items()
    }
    events = len(_STAGES) * (batches + batches // 25 + round(batches * batch_seconds / _SAMPLER_SECONDS) + 3)
    return {
        "batches_per_stage": batches,
        "batch_seconds": batch_seconds,
        "repeats": repeats,
        "events_per_run": events,
        "on_over_off": shown,
        "fastest_on_over_fastest_off": {
            clock: min(seconds[index] for seconds in taken["on"]) / min(seconds[index] for seconds in taken["off"])
            for index, clock in enumerate(ratios)
        },
        "telemetry_cpu_seconds_per_run": alone,
        "share_of_work": alone / worked,
        "microseconds_per_event": single,
    }


_LEAST_REPEATS = 2


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60, help="batches per stage")
    parser.add_argument("--batch-ms", type=float, default=50.0, help="milliseconds per batch")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of turns")
    given = parser.parse_args()
    if given.repeats < _LEAST_REPEATS:
        parser.error(f"--repeats: expected at least {_LEAST_REPEATS}, for quartiles")
    print(json.dumps(measure(given.batches, given.batch_ms / 1000, given.repeats), indent=2))


if __name__ == "__main__":
    main()
