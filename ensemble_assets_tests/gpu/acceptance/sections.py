"""The eleven sections, and those of them that need no real model: memory, other programs, leases, recovery, the end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ensemble_assets.common.machine import process_began, process_family
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets_tests.gpu.acceptance import numerics
from ensemble_assets_tests.gpu.acceptance.bench import (
    GB,
    UNREADABLE,
    Bench,
    Log,
    Section,
    answer,
    random_table,
    wrong_rows,
)
from ensemble_assets_tests.gpu.acceptance.throughput import throughput
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice
from ensemble_assets_tests.simulated.model import MemoryNeeds, SimulatedModel, Speed
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate


def never_fits(bench: Bench) -> dict[str, Any]:
    """One row among 300 needs more than the ceiling: it fails alone and soon."""
    lengths = np.append(np.random.default_rng(1).integers(5, 100, 300), 4_000)
    table, log = random_table(lengths), Log()
    result = bench.run(table, bench.hungry(1_000_000), bench.used_before + 2 * GB, log)
    seconds = log.after("worker.ready")
    alone = result.failed_rows == {300: "out_of_memory"} and not wrong_rows(result, table)
    return {
        "passed": alone and result.peak_bytes > 0 and (bench.simulated or (result.device.on_gpu and seconds < 10)),
        "failed_rows": result.failed_rows,
        "seconds_after_loading": round(seconds, 2),
        "out_of_memory_events": len(log.named("mitigation.oom")),
        "peak_bytes": result.peak_bytes,
        "device": result.device.as_json(),
    }


def intruder(bench: Bench) -> dict[str, Any]:
    """Another program takes 4 GB, gives it back after 5 s, and then takes it for good."""
    hard = bench.used_before + 8 * GB
    if isinstance(bench.device, SimulatedDevice):
        others = OtherProcesses(((2.0, 4 * GB), (7.0, 0), (12.0, 4 * GB)))
        report = _virtual(replace(bench.device, others=others), 1_000_000, 6_000, hard)
        sizes = _rows_over_time([(batch.begin, len(batch.rows)) for batch in report.trace], (2.0, 7.0, 12.0))
        return {
            "passed": _all_done(report) and sizes[1] < sizes[0] and sizes[2] > sizes[1],
            "mean_rows_before_during_between_after": sizes,
            "over_the_ceiling_unseen": len(report.blind),
            "over_the_ceiling_by_us": len(report.crossings),
        }
    programs: list[tuple[Any, dict[str, Any]]] = []

    def act(log: Log, name: str, facts: Mapping[str, Any]) -> None:
        done = len(log.named("batch.done"))
        if name == "batch.done" and done in (60, 160):
            program = bench.program("hold", 4 * GB, 5 if done == 60 else 600)
            programs.append((program, json.loads(program.stdout.readline())))  # type: ignore[union-attr]

    table, log = random_table(np.full(6_000, 100)), Log(act=act)
    with bench.watched() as read:
        result = bench.run(table, bench.hungry(1_000_000, seconds=0.1), hard, log)
        samples = read()
    for program, _ in programs:
        program.kill()
        program.wait()
    arrivals = [held["since"] for _, held in programs]
    told = np.logical_or.reduce([(samples[:, 0] > at) & (samples[:, 0] < at + 1.0) for at in arrivals])
    most = int(samples[~told, 1].max())
    batches = [(event.at, int(event.facts["rows"])) for event in log.named("batch.done")]
    return {
        "passed": not result.failed_rows and not wrong_rows(result, table) and most <= hard and len(programs) == 2,
        "mean_rows_before_during_between_after": _rows_over_time(batches, (arrivals[0], arrivals[0] + 5, arrivals[1])),
        "most_used_but_for_a_second_after_each_arrival": most,
        "hard": hard,
    }


def full_device(bench: Bench) -> dict[str, Any]:
    """The card itself is full long before the ceiling: that is out of memory, and it is waited for."""
    if isinstance(bench.device, SimulatedDevice):
        free = bench.device.total_bytes - bench.device.reserved_bytes
        others = OtherProcesses(((0.0, free - 3 * GB), (1.0, free - 700_000_000), (8.0, 0)))
        report = _virtual(replace(bench.device, others=others), 1_000_000, 3_000, bench.device.total_bytes)
        waited = len(report.events.named("mitigation.back_off"))
        return {
            "passed": _all_done(report) and waited > 0 and not report.events.named("worker.lost"),
            "waited": waited,
            "out_of_memory_events": len(report.events.named("mitigation.oom")),
        }
    ballast = [bench.program("hold", 0, 600, 3 * GB)]
    ballast[0].stdout.readline()  # type: ignore[union-attr]

    def act(log: Log, name: str, facts: Mapping[str, Any]) -> None:
        if name == "batch.done" and len(log.named(name)) == 10:
            ballast.append(bench.program("hold", 0, 5, 100_000_000))
            ballast[1].stdout.readline()  # type: ignore[union-attr]

    table, log = random_table(np.full(3_000, 100)), Log(act=act)
    try:
        result = bench.run(table, bench.hungry(1_000_000, seconds=0.05), bench.device.total_bytes, log)
    finally:
        for program in ballast:
            program.kill()
            program.wait()
    return {
        "passed": not result.failed_rows and not wrong_rows(result, table) and not log.named("worker.lost"),
        "waited": len(log.named("mitigation.back_off")),
        "out_of_memory_events": len(log.named("mitigation.oom")),
    }


def leases(bench: Bench) -> dict[str, Any]:
    """Three contenders never overlap; a lease whose holder is killed in a batch is free soon, and nothing lives on."""
    contenders = [bench.program("contend", 3) for _ in range(3)]
    used = [most for contender in contenders for most in answer(contender)["used_at_begin"]]
    lines = [line.split() for line in (bench.folder / "overlap.log").read_text().splitlines()]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    apart = all(begin[0] == "begin" and end == ["end", begin[1]] for begin, end in pairs)
    holder = bench.program("work")
    assert holder.stdout is not None
    worker = json.loads(holder.stdout.readline())["worker"]
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    killed = time.monotonic()
    with bench.lease(Log(), timeout=60.0):
        seconds = time.monotonic() - killed
        left = bench.device.memory().used - bench.used_before
    until = time.monotonic() + 10.0
    while process_began(worker) is not None and time.monotonic() < until:
        time.sleep(0.02)
    return {
        "passed": apart and len(pairs) == 9 and process_began(worker) is None and left <= 256 << 20 and seconds < 30,
        "leases": len(pairs),
        "most_used_when_granted": max(used) - bench.used_before,
        "seconds_until_granted_after_kill": round(seconds, 2),
        "bytes_left_after_kill": left,
    }


def recovery(bench: Bench) -> dict[str, Any]:
    """A worker is killed, a row makes an assertion in a kernel fail, readings of memory fail: that row alone fails."""

    def act(log: Log, name: str, facts: Mapping[str, Any]) -> None:
        if name == "batch.done" and len(log.named(name)) == 3:
            os.kill(int(str(log.named("worker.started")[-1].facts["pid"])), signal.SIGKILL)

    table, log = random_table(np.arange(120, 0, -1)), Log(act=act)
    batches = PlannerSettings(SizeSettings(initial_tokens=400, max_tokens=400))
    model = bench.hungry(10_000, poison=frozenset({60}))
    result = bench.run(table, model, bench.used_before + 4 * GB, log, batches=batches)
    readings, unread = _with_bad_readings(bench.unreadable())
    return {
        "passed": result.failed_rows == {60: "device_failed"} and not wrong_rows(result, table) and unread,
        "failed_rows": result.failed_rows,
        "readings_after_some_that_failed": readings,
        "worker_starts": len(log.named("worker.started")),
        "losses": [event.facts["reason"] for event in log.named("worker.lost")],
    }


def _with_bad_readings(bench: Bench) -> tuple[int, bool]:
    """Run a table while readings of the sampler fail; returns those that came after, and whether all went well."""
    table, log = random_table(np.full(200, 20)), Log()
    batches = PlannerSettings(SizeSettings(initial_tokens=100, max_tokens=100))
    result = bench.run(table, bench.hungry(10_000, seconds=0.03), bench.used_before + 4 * GB, log, batches=batches)
    readings = len(log.named("device.memory")) - UNREADABLE.start
    lost = bool(log.named("worker.lost"))
    return readings, readings > 5 and not (lost or result.failed_rows or wrong_rows(result, table))


def end(bench: Bench) -> dict[str, Any]:
    """No process, no lock and no memory is left."""
    children = sorted(process_family() - {os.getpid()})
    with bench.lease(Log(), timeout=0.0):
        left = bench.device.memory().used - bench.used_before
    folders = list((bench.folder / "work").iterdir())
    return {
        "passed": not children and not folders and left <= 64 << 20,
        "children": children,
        "work_folders": len(folders),
        "bytes_left": left,
    }


def _virtual(device: SimulatedDevice, per_token: int, rows: int, hard: int) -> SimulationReport:
    model = SimulatedModel(MemoryNeeds(64 << 20, float(per_token)), Speed(60_000.0, 0.02, refusal=0.2))
    batches = PlannerSettings(SizeSettings(initial_tokens=2_000, saturation_tokens=20_000))
    return simulate(np.full(rows, 100), model, [device], WorkerSettings(batches, Ceiling(hard)))


def _all_done(report: SimulationReport) -> bool:
    return report.error is None and report.crossings == [] and bool((report.times_done == 1).all())


def _rows_over_time(batches: list[tuple[float, int]], moments: tuple[float, float, float]) -> list[float]:
    """Mean rows of the batches between the moments; 0 where there was none."""
    edges = (-np.inf, *moments, np.inf)
    means = []
    for begin, until in pairwise(edges):
        rows = [count for at, count in batches if begin <= at < until]
        means.append(round(float(np.mean(rows)), 1) if rows else 0.0)
    return means


SECTIONS: dict[str, Section] = {
    "facts": Section(numerics.facts, 60.0),
    "never_fits": Section(never_fits, 60.0),
    "ceiling": Section(numerics.ceiling, 120.0),
    "intruder": Section(intruder, 90.0),
    "full_device": Section(full_device, 90.0),
    "leases": Section(leases, 90.0),
    "recovery": Section(recovery, 90.0),
    "agreement": Section(numerics.agreement, 120.0),
    "kernels": Section(numerics.kernels, 60.0),
    "throughput": Section(throughput, 150.0),
    "end": Section(end, 30.0),
}
