"""How long a stopped run takes to end: ``python -m ensemble_assets_tests.benchmarks.stop_moments [--signal SIGTERM]``.

A run of some chunks of the sample collection, models converted anew, is stopped at moments that are spread over its
length. For every moment: the stage, the seconds from the signal to the end of the process, the exit code, and what is
left that should not be. The promise is two seconds, code 130 and nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ensemble_assets.artefacts.artefact import INDEX_NAME
from ensemble_assets.compute.devices.lease_notes import list_leases
from ensemble_assets_tests.benchmarks.fixed_costs.__main__ import environment, write_sample

COMMAND = (sys.executable, "-m", "ensemble_assets.cli", "run", "--chunked-dir", "corpora", "--output-dir", "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=40, help="of the sample collection (default: %(default)s)")
    parser.add_argument("--moments", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--signal", default="SIGINT", help="default: %(default)s")
    parser.add_argument("--converted", action="store_true", help="keep the converted models between the runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_sample(work / "corpora" / "notes", options.chunks)
        if options.converted:  # the first run converts, and is longer than the ones that follow
            stopped_at(work, None, options.signal, converted=True)
        whole = stopped_at(work, None, options.signal, converted=options.converted)[1]
        print(f"a whole run: {whole:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        taken = []
        for number in range(options.moments):
            moment = whole * (number + 0.5) / options.moments
            where, seconds, code, left = stopped_at(work, moment, options.signal, converted=options.converted)
            if code != 0:
                taken.append(seconds)
            print(f"{moment:6.1f} s  {where:40.40}  {seconds:5.2f} s  code {code}  {left}", flush=True)
        print(summary(taken))


def summary(taken: Sequence[float]) -> str:
    """Word the seconds from the signal to the end, of the runs that a signal stopped."""
    if not taken:
        return "no run was stopped: each had ended before its signal"
    return f"most {max(taken):.2f} s, median {statistics.median(taken):.2f} s, of {len(taken)} stopped runs"


def stopped_at(work: Path, moment: float | None, name: str, *, converted: bool) -> tuple[str, float, int, str]:
    """Run and stop after some seconds (None: never); give the stage, the seconds to the end, the code, what is left."""
    shutil.rmtree(work / "out", ignore_errors=True)
    if not converted:
        shutil.rmtree(work / "cache", ignore_errors=True)
    environ = {**environment(work), "EMBEDDER_PATHS_LOCK_DIR": str(work / "locks")}
    begun = time.monotonic()
    with (work / "said").open("w+") as said:
        process = subprocess.Popen(COMMAND, cwd=work, env=environ, stdout=subprocess.DEVNULL, stderr=said)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        where = last_line(work / "said")
        if moment is not None:
            begun = time.monotonic()
            process.send_signal(getattr(signal, name))
        code = process.wait(120)
        seconds = time.monotonic() - begun
    return where, seconds, code, ", ".join(left_over(work)) if code else ""


def last_line(path: Path) -> str:
    lines = path.read_text().splitlines()
    return lines[-1].strip() if lines else "before the first stage"


def left_over(work: Path) -> list[str]:
    """Name what a stopped run must not leave: a lease, a bundle, an unsealed array with a plain name, a traceback."""
    out, said = work / "out", (work / "said").read_text()
    sealed = {path.parent for path in out.rglob(INDEX_NAME)}
    arrays = [path for path in out.rglob("*.npy") if ".working" not in path.parts and path.parent not in sealed]
    signs = {
        "a lease": bool(list_leases(work / "locks")),
        "a bundle": (out / "notes").exists(),
        "unsealed arrays": bool(arrays),
        "a traceback": "Traceback" in said,
        "no word": "Stopped;" not in said,
    }
    return [name for name, present in signs.items() if present]


if __name__ == "__main__":
    main()
