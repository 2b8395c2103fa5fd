"""Where the seconds of a small run go: ``python -m ensemble_assets_tests.benchmarks.fixed_costs [--chunks 30] [--ui]``.

A table of wall seconds and of the processor's seconds, for short commands, for a first run, a run into a new folder and
a run with nothing new, part by part: imports, opening, every stage, the checks, and what Dagster itself takes for a
step. ``--ui`` adds a run as the UI starts it, every step in a process of its own. On a machine that does other things
only the processor's seconds mean something, and of a run with several threads they are more than the wall's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from ensemble_assets_tests.benchmarks.fixed_costs.marks import MARKS, Seconds, mean, now
from ensemble_assets_tests.benchmarks.subset import SAMPLE

_ROOT = Path(__file__).resolve().parents[3]
COMMANDS = {
    "--help": ("--help",),
    "a mistyped profile": ("run", "--profile", "nope"),
    "a mistyped model": ("run", "--ensemble-models", "nope"),
    "a missing folder": ("run", "--chunked-dir", "nowhere"),
}
IMPORTS = ("polars", "dagster", "openvino", "numba", "scipy.stats", "torch", "transformers", "sentence_transformers")
QUESTION = "how do I sort a dictionary by its values"
ASK_TWICE = """
import sys, time
from pathlib import Path
from ensemble_assets.asking.last_asked import searcher_of
import ensemble_assets
begun = time.perf_counter(), time.process_time()
for question in (sys.argv[2], sys.argv[2] + " in reverse"):
    assert ensemble_assets.search(sys.argv[1], question)
    now = time.perf_counter(), time.process_time()
    print(now[0] - begun[0], now[1] - begun[1])
    begun = now
"""


def main() -> None:
    if sys.argv[1:2] == ["--traced"]:
        traced(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=30, help="of the sample collection (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="take the whole sample collection")
    parser.add_argument("--ui", action="store_true", help="add a run with a process for each step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for title, rows in tables(Path(scratch), 0 if options.sample else options.chunks, ui=options.ui):
            print(f"\n{title}\n{'':44}{'wall, s':>10}{'processor, s':>14}")
            for name, seconds in rows:
                print(f"{name:44}{seconds.wall:10.2f}{seconds.processor:14.2f}")


def tables(work: Path, chunks: int, *, ui: bool) -> Iterator[tuple[str, list[tuple[str, Seconds]]]]:
    from ensemble_assets.common.machine import library_versions, this_host

    host = this_host()
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    busy = f"load {os.getloadavg()[0]:.1f}"
    command = [sys.executable, "-m", "ensemble_assets.cli"]
    rows = [(name, of_process([*command, *arguments], work)) for name, arguments in COMMANDS.items()]
    yield f"{host.cores} cores of {host.cpu}; {versions}; {busy}\n\nShort commands", rows
    yield (
        "Imports, each alone",
        [(name, of_process([sys.executable, "-c", f"import {name}"], work)) for name in IMPORTS],
    )
    write_sample(work / "corpora" / "notes", chunks)
    size = f"{chunks} chunks" if chunks else "The sample collection"
    for title, output in (("first run", "first"), ("into a new folder", "second"), ("nothing new", "second")):
        yield f"{size}, {title}", parts_of(traced_run(work, output))
    asked = subprocess.run(
        [sys.executable, "-c", ASK_TWICE, str(work / "second" / "notes"), QUESTION],
        cwd=work, env=environment(work), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    first, second = (Seconds(*map(float, line.split())) for line in asked.stdout.splitlines())
    whole = of_process([*command, "search", str(work / "second" / "notes"), QUESTION], work)
    yield "A question", [("search, the whole command", whole), ("first answer", first), ("second question", second)]
    if ui:
        yield f"{size}, nothing new, a process for each step", step_processes(work)


def write_sample(folder: Path, chunks: int) -> None:
    """Write the first chunks of the sample collection, with as large a share of its queries; 0 takes all."""
    folder.mkdir(parents=True)
    left, share = chunks, 1.0
    total = sum(len(json.loads(path.read_bytes())) for path in SAMPLE.glob("*_chunks.json"))
    share = min(1.0, chunks / total) if chunks else 1.0
    for path in sorted(SAMPLE.glob("*_chunks.json")):
        records = json.loads(path.read_bytes())
        taken = records[:left] if chunks else records
        left -= len(taken)
        if taken:
            (folder / path.name).write_text(json.dumps(taken), encoding="utf-8")
    lines = (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    some = lines[: max(1, round(share * len(lines)))]
    (folder / "queries.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")


def environment(work: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDDER_")}
    paths = {"EMBEDDER_KEY_FILE": str(work / "key"), "EMBEDDER_PATHS_CACHE_DIR": str(work / "cache")}
    return {**inherited, **paths, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}


def of_process(command: Sequence[str], work: Path) -> Seconds:
    """Run a command and wait for it; its exit code does not matter."""
    begun = now()
    subprocess.run(command, cwd=work, env=environment(work), capture_output=True, check=False)
    return now() - begun


def traced_run(work: Path, output: str) -> list[dict[str, Any]]:
    """Run the pipeline in a process that writes down when what began; see ``traced``."""
    marks = work / "marks.json"
    arguments = ["run", "--chunked-dir", str(work / "corpora"), "--output-dir", str(work / output), "--json"]
    command = [sys.executable, "-m", __package__, "--traced", str(marks), repr(time.perf_counter()), *arguments]
    finished = subprocess.run(command, cwd=work, env=environment(work), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    events: list[dict[str, Any]] = json.loads(marks.read_text())
    return events


def traced(path: Path, begun: float, arguments: Sequence[str]) -> None:
    """Run a command line with a mark at each of Dagster's events, and at both ends of a stage's own work."""
    marks: list[dict[str, Any]] = []

    def mark(kind: str, name: str = "") -> None:
        moment = now()
        marks.append({"kind": kind, "name": name, "wall": moment.wall - begun, "processor": moment.processor})

    from ensemble_assets.cli.arguments import importing
    from ensemble_assets.cli.main import main as command_line

    mark("command_line")
    with importing():
        import dagster as dg

        importlib.import_module("ensemble_assets.build")
        importlib.import_module("ensemble_assets.cli.console")
        from ensemble_assets.orchestration import asset_frame
    mark("imported")
    usual, handle = vars(asset_frame)["stage_step"], dg.DagsterInstance.handle_new_event

    @contextmanager
    def marked(context: Any, form: Any, progress: Any, stage: str) -> Iterator[Any]:
        with usual(context, form, progress, stage) as run:
            mark("stage_begins", stage)
            yield run
            mark("stage_ends", stage)

    def heard(self: Any, event: Any, **words: Any) -> Any:
        if event.dagster_event is not None:
            mark(event.dagster_event.event_type_value, event.dagster_event.step_key or "")
        return handle(self, event, **words)

    vars(asset_frame)["stage_step"] = marked
    dg.DagsterInstance.handle_new_event = heard  # type: ignore[method-assign]
    try:
        command_line(list(arguments))
    finally:
        mark("ends")
        path.write_text(json.dumps(marks))


def parts_of(marks: Sequence[dict[str, Any]]) -> list[tuple[str, Seconds]]:
    """Add the marks up to parts; Dagster's own part of a step is what stages and checks leave of the job."""

    def at(kind: str, name: str | None = None) -> Seconds:
        marked = next(each for each in marks if each["kind"] in kind.split() and name in (None, each["name"]))
        return Seconds(marked["wall"], marked["processor"])

    stages = [each["name"] for each in marks if each["kind"] == "stage_begins"]
    steps = [each["name"] for each in marks if each["kind"] == "STEP_START"]
    checks = [name for name in steps if "gates" in name]
    begins, ends = at("STEP_START"), at("PIPELINE_SUCCESS RUN_SUCCESS")
    of_stages = {stage: at("stage_ends", stage) - at("stage_begins", stage) for stage in stages}
    of_checks = sum((at("STEP_SUCCESS STEP_FAILURE", name) - at("STEP_START", name) for name in checks), Seconds())
    dagster = ends - begins - sum(of_stages.values(), of_checks)
    return [
        ("Python, and the command line's imports", at("command_line")),
        ("imports of a run (Dagster, polars)", at("imported") - at("command_line")),
        ("checks of the input, definitions, the job", begins - at("imported")),
        *((f"stage {stage}", seconds) for stage, seconds in of_stages.items()),
        (f"gates of {len(checks)} steps", of_checks),
        (f"Dagster's own part of {len(steps)} steps", dagster),
        ("... of one step", dagster.over(len(steps))),
        ("summary and end", at("ends") - ends),
        ("the whole command", at("ends")),
    ]


def step_processes(work: Path) -> list[tuple[str, Seconds]]:
    """Run the job as the UI does, every step in a process of its own, and tell what a step takes beside its work."""
    home, marks = work / "home", work / "steps.jsonl"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    paths = {"EMBEDDER_CHUNKED_DIR": str(work / "corpora"), "EMBEDDER_OUTPUT_DIR": str(work / "second")}
    begun = time.time()
    subprocess.run(
        [sys.executable, "-c", STEP_PROCESSES],
        cwd=work, env={**environment(work), **paths, "DAGSTER_HOME": str(home), MARKS: str(marks)},
        capture_output=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in marks.read_text().splitlines()]
    steps: dict[str, dict[str, Seconds]] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).setdefault(line["event"], Seconds(line["wall"], line["processor"]))
    parts = {
        "starts its process": ("STEP_WORKER_STARTING", "RESOURCE_INIT_STARTED"),
        "opens resources and inputs": ("RESOURCE_INIT_STARTED", "STEP_START"),
        "works": ("STEP_START", "STEP_SUCCESS"),
    }
    means = {name: mean([_between(step, *ends) for step in steps.values()]) for name, ends in parts.items()}
    first = min(step["STEP_START"].wall for step in steps.values())
    ordered = sorted(steps.values(), key=lambda step: step["STEP_START"].wall)
    pauses = [after["STEP_WORKER_STARTING"].wall - before["STEP_SUCCESS"].wall for before, after in pairwise(ordered)]
    return [
        ("from the process of the run to its first step", Seconds(first - begun)),
        *((f"a step {name} (mean of {len(steps)})", seconds) for name, seconds in means.items()),
        ("from a step's end to the next", Seconds(sum(pauses) / len(pauses))),
    ]


def _between(step: dict[str, Seconds], begins: str, ends: str) -> Seconds:
    passed = step[ends] - step[begins]
    # the process of the run tells that a step's own one starts
    return passed if begins != "STEP_WORKER_STARTING" else Seconds(passed.wall, step[ends].processor)


STEP_PROCESSES = """
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from ensemble_assets.orchestration.partitions import COLLECTIONS

recon = ReconstructableRepository.for_module("ensemble_assets_tests.benchmarks.fixed_costs.marked_definitions", "defs")
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
    result = dg.execute_job(
        recon.get_reconstructable_job("retrieval_bundle"), instance=instance,
        tags={"dagster/partition": "notes"}, raise_on_error=True,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
assert result.success
"""


if __name__ == "__main__":
    main()
