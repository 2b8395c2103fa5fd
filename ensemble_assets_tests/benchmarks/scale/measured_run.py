"""Run the default pipeline in this process, and measure every stage: by the clock, of the processor, peak memory.

The memory is that of this process, or of it and the processes that it has started together, where those take more.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console

from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.cli.console import ConsoleProgress
from ensemble_assets.cli.run import run_collections
from ensemble_assets.common.machine import process_family, resident_bytes
from ensemble_assets_tests.benchmarks.peak_memory import forget_peak, peak_bytes

_WATCH_SECONDS = 0.2
COLLECTION = "scale"
BETWEEN, CHECKS = "between", "checks"
"""Dagster and the opening of artefacts between stages; everything after the last one: the gates as asset checks."""


def processor_seconds() -> float:
    """Seconds of the processor so far, of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Measuring(ConsoleProgress):
    """Notes what every stage took. ``figures`` are by stage, in the order in which they ended."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True, highlight=False))
        self.figures: dict[str, dict[str, float]] = {}
        self._family = 0
        Thread(target=self._watch_family, daemon=True).start()
        self._begin(time.perf_counter(), processor_seconds())

    def stage_started(self, stage: str, collection: str) -> None:
        self.note(BETWEEN)
        super().stage_started(stage, collection)

    def stage_finished(self, collection: str, record: Record) -> None:
        super().stage_finished(collection, record)
        self.note(record.stage)

    def note(self, name: str) -> None:
        """Add what passed since the last note to ``name``, and begin anew."""
        now, used = time.perf_counter(), processor_seconds()
        before = self.figures.get(name, {"seconds": 0.0, "processor_seconds": 0.0, "peak_mb": 0.0})
        self.figures[name] = {
            "seconds": round(before["seconds"] + now - self._now, 3),
            "processor_seconds": round(before["processor_seconds"] + used - self._used, 3),
            "peak_mb": max(before["peak_mb"], round(max(peak_bytes(), self._family) / 1e6, 1)),
        }
        self._begin(now, used)

    def _begin(self, now: float, used: float) -> None:
        self._now, self._used, self._family = now, used, 0
        forget_peak()

    def _watch_family(self) -> None:
        """Note the most that this process and its children take together, a few times a second."""
        while True:
            self._family = max(self._family, sum(map(resident_bytes, process_family())))
            time.sleep(_WATCH_SECONDS)


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with the folder corpora; output goes beside it")
    parser.add_argument("--set", action="append", default=[], help="an option of the run, name=value")
    parser.add_argument("--assets", nargs="*", default=[], help="only these assets")
    options = parser.parse_args()
    print(json.dumps(measured_run(options.folder, options.set, tuple(options.assets))))


def measured_run(folder: Path, assignments: list[str], assets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the collection below ``folder/corpora`` and give its figures.

    Raises:
        RuntimeError: if the run failed.
    """
    given = dict(assignment.split("=", 1) for assignment in assignments)
    overrides = {
        "paths.chunked_dir": str(folder / "corpora"),
        "paths.output_dir": str(folder / "output"),
        "paths.cache_dir": str(folder / "cache"),
        "paths.key_file": str(folder / "key"),
        "rerank.budget": "off",
        **given,
    }
    began, used, measuring = time.perf_counter(), processor_seconds(), Measuring()
    outcomes = run_collections([COLLECTION], overrides, {}, assets, measuring)
    measuring.note(CHECKS)
    if not all(outcome.succeeded for outcome in outcomes):
        raise RuntimeError([outcome.error for outcome in outcomes] + [outcome.checks for outcome in outcomes])
    records = {record.stage: record for record in outcomes[0].stages}
    for name, record in records.items():
        measuring.figures[name]["items"] = record.items
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(processor_seconds() - used, 2),
        "peak_mb": max(figure["peak_mb"] for figure in measuring.figures.values()),
        "stages": measuring.figures,
    }


if __name__ == "__main__":
    main()
