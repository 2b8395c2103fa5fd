"""What a small change costs: ``python -m ensemble_assets_tests.benchmarks.incremental [--documents N] [--share 0.01]``.

Runs the default pipeline on a collection, changes a share of its documents (spread over the whole collection), runs it
again, and prints the seconds of every stage of both runs and the ratio of dense plus sparse: the changed run over the
full one, which is what somebody pays who encodes everything again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ensemble_assets_tests.benchmarks.subset import SAMPLE, SCIFACT, write_subset

SENTENCE = " This sentence was added in a later revision, number {number}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval-dir", type=Path, default=SCIFACT, help="a collection in BEIR layout")
    parser.add_argument("--documents", type=int, default=0, help="0: all")
    parser.add_argument("--share", type=float, default=0.01, help="of the documents that change (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpora = Path(scratch) / "corpora"
        write_subset(options.eval_dir if options.eval_dir.is_dir() else SAMPLE, corpora / "subset", options.documents)
        full = run(Path(scratch))
        documents, changed = change(corpora / "subset", options.share)
        again, unchanged = run(Path(scratch)), run(Path(scratch))
    cost = {name: found["dense"] + found["sparse"] for name, found in (("full", full), ("changed", again))}
    cost["unchanged"] = unchanged["dense"] + unchanged["sparse"]
    ratios = {name: round(seconds / cost["full"], 4) for name, seconds in cost.items() if name != "full"}
    figures = {"documents": documents, "changed_documents": changed, "dense_plus_sparse_over_full": ratios}
    print(json.dumps({**figures, "full": full, "changed": again, "unchanged": unchanged}, indent=2))


def change(collection: Path, share: float) -> tuple[int, int]:
    """Add a sentence to a share of the documents, evenly spread; how many there are and how many were changed."""
    [path] = [*collection.glob("corpus.jsonl"), *collection.glob("*_chunks.json")][:1]
    text = path.read_text(encoding="utf-8")
    records: list[dict[str, Any]] = (
        [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    )
    count = max(1, round(share * len(records)))
    for number in range(count):
        records[number * len(records) // count]["text"] += SENTENCE.format(number=number)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records), encoding="utf-8")
    return len(records), count


def run(folder: Path) -> dict[str, float]:
    """Wall seconds by stage, and of the whole command."""
    command = [sys.executable, "-m", "ensemble_assets.cli", "run", "--chunked-dir", str(folder / "corpora")]
    command += ["--output-dir", str(folder / "output"), "--collections", "subset", "--json"]
    for option in ("rerank.budget=off", f"paths.key_file={folder / 'key'}", f"paths.cache_dir={folder / 'cache'}"):
        command += ["--set", option]
    started = time.perf_counter()
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    stages = json.loads(finished.stdout)["collections"][0]["stages"]
    return {**{one["stage"]: round(float(one["wall_seconds"]), 3) for one in stages}, "command": round(seconds, 3)}


if __name__ == "__main__":
    main()
