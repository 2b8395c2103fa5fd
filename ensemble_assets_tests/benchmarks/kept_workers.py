"""What worker processes cost a whole run on a CPU, and what they cost before they were kept for a lease.

    python -m ensemble_assets_tests.benchmarks.kept_workers [--collection FOLDER ...] [--repeats 3] [--before REVISION]

runs the pipeline with one worker per device and in this process, in this tree and, if asked for, in that of another
revision, taken from git. They take turns, each in a process and a folder of its own, after one round that converts and
reads the models. Prints one JSON object: of every collection and tree the seconds of both, of the wall and of the
processor, the ratio of each pair (a worker's run to the one in this process just beside it), and how often a worker
started for each stage and model. Workers are kept since ``bf4bbed``, so ``--before bf4bbed~1`` shows what that changed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SAMPLE = Path("ensemble_assets") / "sample" / "pydoc"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one_run(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, nargs="+", help="folders of chunks (default: the sample)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", help="a revision of this repository (default: this tree alone)")
    parser.add_argument("--shard-tokens", type=int, default=0, help="0: as a run on a CPU")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    options = {"encoding.shard_tokens": arguments.shard_tokens} if arguments.shard_tokens else {}
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "repeats": arguments.repeats, **options}
    with tempfile.TemporaryDirectory() as scratch:
        trees = {"now": here}
        if arguments.before:
            trees = {f"before ({arguments.before})": _tree_of(here, arguments.before, Path(scratch)), **trees}
        for collection in arguments.collection or [here / SAMPLE]:
            figures[collection.name] = measure(trees, collection.resolve(), arguments.repeats, options, Path(scratch))
    figures["load_average"] = os.getloadavg()[0]
    print(json.dumps(figures, indent=1))


def _tree_of(repository: Path, revision: str, folder: Path) -> Path:
    """Unpack a revision into a folder."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=repository, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x"], cwd=tree, input=archive, check=True)
    return tree


def measure(
    trees: Mapping[str, Path], collection: Path, repeats: int, options: Mapping[str, Any], scratch: Path
) -> dict[str, Any]:
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {0: [], 1: []} for name in trees}
    for repeat in range(repeats + 1):
        for name, tree in trees.items():
            for workers in (0, 1) if repeat % 2 else (1, 0):
                done = _apart(tree, collection, workers, options, scratch)
                print(collection.name, name, workers, f"{done['wall']:.1f} s", file=sys.stderr)
                if repeat:  # the first run of all converts the models
                    runs[name][workers].append(done)
    return {name: _figures(both) for name, both in runs.items()}


def _apart(tree: Path, collection: Path, workers: int, options: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Run this file in a process of its own, which imports the tree."""
    with tempfile.TemporaryDirectory(dir=scratch) as root:
        cache = scratch / f"cache-{tree.name}"
        given = json.dumps({**options, "paths.cache_dir": str(cache)})
        command = [sys.executable, __file__, "--one", root, str(collection), str(workers), given]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        ended = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    made: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert Path(made["tree"]) == tree, f"{made['tree']} was imported, not {tree}"
    return made


def _figures(both: Mapping[int, list[dict[str, Any]]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for what in ("wall", "processor"):
        here, worker = ([round(run[what], 2) for run in both[workers]] for workers in (0, 1))
        ratios = [round(one / other, 3) for one, other in zip(worker, here, strict=True)]
        made[what] = {"in this process": here, "one worker": worker, "ratios": ratios}
        made[what]["median ratio"] = statistics.median(ratios)
    made["starts"] = both[1][0]["starts"]
    assert all(run["starts"] == made["starts"] for run in both[1])
    assert not any(run["starts"] for run in both[0])
    return made


@dataclass
class _Starts:
    """Counts the starts of workers by what the lease that they belong to is for."""

    counts: Counter[str] = field(default_factory=Counter)
    purpose: str = ""

    def counted(self, context: Any) -> Any:
        """Make a stage's context that tells of its leases and events."""

        def lease(*, model: str, stage: str) -> Any:
            self.purpose = f"{stage} {model}"
            return context.lease(model=model, stage=stage)

        return replace(context, lease=lease, events=_Counting(self, context.events))


@dataclass(frozen=True)
class _Counting:
    starts: _Starts
    sink: Any

    def emit(self, name: str, **facts: Any) -> None:
        """Count, and hand on."""
        self.starts.counts[self.starts.purpose] += name == "worker.started"
        self.sink.emit(name, **facts)


def one_run(root: Path, collection: Path, workers: int, options: Mapping[str, Any]) -> None:
    """Run the pipeline once in the tree that is imported, and print what it took. Both trees have what it calls."""
    import ensemble_assets
    from ensemble_assets.pipeline import compute_context
    from ensemble_assets_tests.orchestration.pipeline import Pipeline

    starts, usual = _Starts(), compute_context.settings_of

    class Computing(compute_context.Computing):
        def context(self, run: Any) -> Any:
            return starts.counted(super().context(run))

    def settings_of(settings: Any, **facts: Any) -> Any:
        return replace(usual(settings, **facts), workers_per_device=workers)

    compute_context.settings_of = settings_of
    (root / "corpora").mkdir()
    (root / "corpora" / collection.name).symlink_to(collection)
    pipeline = Pipeline(root, Computing())
    begun = time.perf_counter(), _processor()
    outcome = pipeline.run(options, collection.name)
    wall, processor = time.perf_counter() - begun[0], _processor() - begun[1]
    assert outcome.succeeded, outcome.error
    tree = str(Path(ensemble_assets.__file__).resolve().parents[1])
    counts = {purpose: count for purpose, count in starts.counts.items() if count}
    print(json.dumps({"wall": wall, "processor": processor, "starts": counts, "tree": tree}))


def _processor() -> float:
    """Processor seconds of this process and of its children that have ended, as workers have."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


if __name__ == "__main__":
    main()
