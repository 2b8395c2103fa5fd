"""Run the acceptance sections one after another and write one JSON file.

``python -m ensemble_assets_tests.gpu.acceptance --output FILE [--device simulated|cuda] [--sections a,b]``

The sections run in one child process. It is ended, and started anew for the rest, when a section passes its deadline or
takes the process down. So one section costs no other, and the file has every section that was asked for. Nothing is
downloaded, and neither polars, dagster nor platformdirs is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ensemble_assets_tests.gpu.acceptance.bench import make_bench
from ensemble_assets_tests.gpu.acceptance.sections import SECTIONS

_MOST_SECONDS = 480.0
"""A machine is lent for minutes: what has not begun by then is not run."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="ensemble_assets_tests.gpu.acceptance")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("simulated", "cuda"), default="cuda")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.sections.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"unknown sections {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if given.child:
        _run_here(given.device, names, given.output)
        return 0
    report = {"device": given.device, "passed": False, "seconds": 0.0, "sections": {}}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while left := [name for name in names if name not in report["sections"]]:
            if time.monotonic() - started > _MOST_SECONDS:
                report["sections"] |= {name: {"passed": False, "error": "no time was left"} for name in left}
            else:
                _run_child(given.device, left, Path(folder), report["sections"])
            report["passed"] = all(section["passed"] for section in report["sections"].values())
            report["seconds"] = round(time.monotonic() - started, 1)
            given.output.write_text(json.dumps(report, indent=1) + "\n")
    for name, section in report["sections"].items():
        print(f"{'passed' if section['passed'] else 'FAILED':7}{name}: {section.get('error', '')}")
    return 0 if report["passed"] else 1


def _run_child(device: str, names: list[str], folder: Path, results: dict[str, Any]) -> None:
    """Run sections in a child until one of them ends it."""
    command = [sys.executable, "-m", "ensemble_assets_tests.gpu.acceptance", "--child", "--device", device]
    command += ["--sections", ",".join(names), "--output", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    try:
        for name in names:
            ready, _, _ = select.select([child.stdout], [], [], SECTIONS[name].seconds)
            line = child.stdout.readline() if ready else b""
            if not line:
                why = f"ended with status {child.wait()}" if ready else f"took over {SECTIONS[name].seconds:.0f} s"
                results[name] = {"passed": False, "error": why}
                return
            results[name] = json.loads(line)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # programs and workers are of its group
        child.wait()


def _run_here(device: str, names: list[str], folder: Path) -> None:
    """Run sections in this process and print a line of JSON for each."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not a result
    bench = make_bench(device, folder)
    for name in names:
        started = time.monotonic()
        try:
            result = SECTIONS[name].run(bench)
        except Exception as error:  # noqa: BLE001  # a section's failure is its result
            result = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - started, 2)
        print(json.dumps(result), file=lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
