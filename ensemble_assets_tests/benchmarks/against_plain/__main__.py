"""This pipeline beside what a user would write: ``python -m ensemble_assets_tests.benchmarks.against_plain``.

The plain side is ``SentenceTransformer.encode``, ``SparseEncoder.encode_document`` and ``CrossEncoder.predict`` at
their default settings on the same texts and pairs. Every piece runs in a process of its own, so that its peak memory is
its own, and leaves a JSON result in the work folder: pieces can be run one at a time on a quiet machine (``--pieces``),
and the table is made from what is there. Loading models counts on both sides, importing libraries on neither.

    --documents 500    a part of the collection, with as many of its queries
    --repeats 3        medians
    --work DIR         keep and reuse results
    --write            put the table into docs/performance.md, in the place of this kind of processor
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ensemble_assets_tests.benchmarks.against_plain.pieces import PIECES, run_piece
from ensemble_assets_tests.benchmarks.against_plain.table import kind_of_processor, markdown, write_between_markers
from ensemble_assets_tests.benchmarks.subset import SAMPLE, SCIFACT, write_subset

PAGE = Path(__file__).resolve().parents[3] / "docs" / "performance.md"


def main() -> None:
    arguments = parsed()
    if arguments.piece:
        print(json.dumps(run_piece(arguments.piece, arguments.work)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).resolve()
        prepare(work, arguments.eval_dir, arguments.documents)
        for piece in arguments.pieces.split(",") if arguments.pieces else list(PIECES):
            measure(piece, work, arguments.repeats)
        found = results(work)
        table = markdown(found)
        print(json.dumps(found, indent=2), file=sys.stderr)
        print(table)
        if arguments.write:
            write_between_markers(PAGE, f"against_plain:{kind_of_processor()}", table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval-dir", type=Path, default=SCIFACT, help="a collection in BEIR layout")
    parser.add_argument("--documents", type=int, default=0, help="0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pieces", default="", help=f"of {', '.join(PIECES)}; all if not given")
    parser.add_argument("--work", type=Path, help="folder of the results; a temporary one if not given")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.pieces.split(","))) - set(PIECES)
    if unknown:
        parser.error(f"unknown pieces {', '.join(sorted(unknown))}; known are {', '.join(PIECES)}")
    return arguments


def prepare(work: Path, eval_dir: Path, documents: int) -> None:
    """The collection that both sides read; kept, so that pieces of several calls are about the same."""
    target = work / "corpora" / "subset"
    if target.exists():
        return
    if not eval_dir.is_dir():
        print(f"{eval_dir.name} is not here; using the sample collection", file=sys.stderr)
        eval_dir = SAMPLE
    write_subset(eval_dir, target, documents)


def measure(piece: str, work: Path, repeats: int) -> None:
    """Run a piece as often as asked, each time in a fresh process; results that are there already are kept."""
    for number in range(repeats):
        path = work / "results" / f"{piece}.{number}.json"
        if path.exists():
            continue
        print(f"{piece}, {number + 1} of {repeats} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "ensemble_assets_tests.benchmarks.against_plain"]
        command += ["--piece", piece, "--work", str(work)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(finished.stdout.splitlines()[-1])


def results(work: Path) -> dict[str, dict[str, Any]]:
    """By piece: medians of every number over its repetitions, how many there were, and what else it said."""
    found: dict[str, dict[str, Any]] = {}
    for piece in PIECES:
        runs = [json.loads(path.read_text()) for path in sorted((work / "results").glob(f"{piece}.*.json"))]
        if runs:
            found[piece] = {name: _middle([run[name] for run in runs]) for name in runs[0]} | {"repeats": len(runs)}
    return found


def _middle(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _middle([value[name] for value in values]) for name in values[0]}
    numbers = all(isinstance(value, (int, float)) for value in values)
    return statistics.median(values) if numbers else values[-1]


if __name__ == "__main__":
    main()
