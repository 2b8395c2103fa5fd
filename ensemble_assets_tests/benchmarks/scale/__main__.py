"""What the default run costs as a collection grows: ``python -m ensemble_assets_tests.benchmarks.scale --chunks N``.

Makes N distinct chunks of about 120 tokens with metadata, and queries, runs the default pipeline in a process of its
own, and prints one JSON object: per stage, seconds by the clock and of the processor, milliseconds of the processor per
chunk, and the peak resident memory. With ``--changes`` it then runs again with nothing new, with 1 % of the chunks
changed, and with 1,000 chunks added, and gives the processor's seconds of each as a share of the full run.

``--picture FILE RESULT...`` draws results that were saved, in logarithmic scales. ``--tables RESULT...`` writes them as
Markdown. A file of results has one, or a list of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets_tests.benchmarks.scale import measured_run
from ensemble_assets_tests.benchmarks.scale.picture import draw
from ensemble_assets_tests.benchmarks.scale.table import tables
from ensemble_assets_tests.benchmarks.scale.texts import add_chunks, change_collection, write_collection

_CHANGED = 0.01
_ADDED = 1000


def main() -> None:
    """Measure one size, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--changes", action="store_true", help="run again after small changes too")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder. It stays if named")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the run")
    parser.add_argument("--picture", nargs="+", type=Path, metavar="FILE", help="an SVG to write, and saved results")
    parser.add_argument("--tables", nargs="+", type=Path, metavar="FILE", help="saved results")
    options = parser.parse_args()
    if options.tables:
        print(tables(saved(options.tables)), end="")
        return
    if options.picture:
        page, *results = options.picture
        page.write_text(draw(saved(results)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options.folder or Path(scratch), options), indent=1))


def saved(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read results, each file with one or with a list of them."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return [result for content in read for result in (content if isinstance(content, list) else [content])]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the collection, run it, and give the figures."""
    collection = folder / "corpora" / measured_run.COLLECTION
    if not collection.is_dir():
        write_collection(collection, options.chunks, options.queries)
    load = os.getloadavg()[0]
    full = run(folder, options.set)
    for figure in full["stages"].values():
        figure["processor_ms_per_chunk"] = round(1000 * figure["processor_seconds"] / options.chunks, 4)
    host = this_host()
    facts = {
        "chunks": options.chunks,
        "queries": options.queries,
        "processor": host.cpu,
        "cores": host.cores,
        "libraries": library_versions(),
        "load_before": round(load, 1),
        **full,
    }
    changes: dict[str, Callable[[], int]] = {
        "nothing": lambda: 0,
        "changed": lambda: change_collection(collection, _CHANGED),
        "added": lambda: add_chunks(collection, _ADDED),
    }
    for name, change in changes.items() if options.changes else ():
        count, again = change(), run(folder, options.set)
        share = round(again["processor_seconds"] / full["processor_seconds"], 4)
        facts[name] = {"chunks": count, "share_of_the_full_run": share, **again}
    return facts


def run(folder: Path, assignments: list[str]) -> dict[str, Any]:
    """Run in a process of its own, whose imports count in no stage."""
    command = [sys.executable, "-m", measured_run.__name__, "--folder", str(folder)]
    command += [part for assignment in assignments for part in ("--set", assignment)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
