"""What ``docs/telemetry.md`` documents and what pipeline runs emit is the same set of names, in both directions.

Five runs together: in trouble on two simulated GPUs with real worker processes, everything off, everything falling
back, a failure, and a plain default run on the CPU.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.telemetry.spans import CURRENT
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, fast_factories, write_collection
from ensemble_assets_tests.orchestration.troubled import troubled
from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.telemetry.documented import PAGE, block, rows

NOT_IN_THESE_RUNS = {
    "mitigation.back_off",  # needs memory that others take and give back; compute/test_simulated_properties
    "worker.stuck",  # needs a process that SIGKILL does not end
    "budget.granted",  # these three come from the latency budget
    "budget.spent",
    "budget.measured",
}
"""Events that a test cannot bring about through a whole pipeline; that the code reports them as documented is checked
from its source (``telemetry/test_allowed_names``)."""
ONLY_THERE = {
    "others_bytes", "baseline_seconds", "budget_seconds", "left_seconds", "against", "ratio", "limit"
}  # fmt: skip
METRICS_ONLY_THERE = {"rag_latency_budget_ratio", "rag_latency_budget_limit_ratio"}


@dataclass
class Emitted:
    """Everything that the runs wrote."""

    spans: dict[str, set[str]] = field(default_factory=dict)
    statuses: dict[str, set[str]] = field(default_factory=dict)
    events: dict[str, set[str]] = field(default_factory=dict)
    metrics: dict[str, set[str]] = field(default_factory=dict)
    traces: set[tuple[str, str]] = field(default_factory=set)

    def take_journal(self, text: str) -> None:
        for line in map(json.loads, text.splitlines()):
            if line["kind"] == "span":
                self.spans.setdefault(line["name"], set()).update(line["attributes"])
                self.statuses.setdefault(line["name"], set()).add(line["status"])
                self.traces.add((line["trace_id"], line["attributes"]["run_id"].replace("-", "")))
            elif line["kind"] == "event":
                self.events.setdefault(line["name"], set()).update(line["facts"])

    def take_metrics(self, text: str) -> None:
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            for sample in family.samples:
                self.metrics.setdefault(name, set()).update(sample.labels)


class Watched:
    """Runs pipelines, each in a folder of its own, and collects what they emit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.emitted = Emitted()

    def run(self, name: str, computing: Computing, succeeds: bool = True, **options: Any) -> None:
        folder = self.root / name
        write_collection(folder / "corpora" / "notes")
        given = {"metrics.textfile_dir": str(folder / "prom"), **{k.replace("__", "."): v for k, v in options.items()}}
        outcome = Pipeline(folder, computing).run(given)
        assert outcome.succeeded is succeeds, outcome.error
        for journal in (folder / "output" / ".artifacts" / "telemetry").glob("*.jsonl"):
            self.emitted.take_journal(journal.read_text())
        for metrics in (folder / "prom").glob("*.prom"):
            self.emitted.take_metrics(metrics.read_text())


def _reports_a_text(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*arguments: Any) -> Any:
        span = CURRENT.get()
        assert span is not None
        span.set(query="a text that must not get out")
        return make(*arguments)

    return made


def _hold_until_waited_for(root: Path, lock_folder: Path, device: SimulatedDevice) -> threading.Thread:
    """Another program that has the device until the run's journal says that it waits."""
    held = threading.Event()

    def hold() -> None:
        with lease_devices("other", "other", lock_folder=lock_folder, events=EventLog(), devices=[device]):
            held.set()
            while not any("lease.waiting" in path.read_text() for path in root.rglob("telemetry-*.jsonl")):
                threading.Event().wait(0.1)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(60)
    return thread


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    watched = Watched(tmp_path_factory.mktemp("runs"))
    devices = [SimulatedDevice("SIM-0"), SimulatedDevice("SIM-1")]
    in_trouble = {
        "dense": troubled(dense_double(), bytes_per_token=60_000_000, dies_once=watched.root / "died"),
        "sparse": troubled(sparse_double(), not_finite_on=frozenset({2}), raises_on=frozenset({5})),
        "rerank": _reports_a_text(troubled(rerank_double())),
    }
    holder = _hold_until_waited_for(watched.root, watched.root / "trouble" / "locks", devices[0])
    watched.run("trouble", Computing(in_trouble, devices), metrics__pushgateway="http://127.0.0.1:9")
    holder.join()
    fast = fast_factories()
    watched.run("off", Computing(fast), enable_sparse=False, enable_rerank=False)
    failing = {"sparse": troubled(sparse_double(), raises_on=None), "rerank": rerank_double(missing=True)}
    two = ("all-minilm-l6-v2", "bge-m3")
    watched.run("fallback", Computing({**fast, **failing}), models__ensemble=two)
    watched.run("failure", Computing({**fast, "dense": dense_double(missing=True)}), succeeds=False)
    watched.run("default", Computing(fast))
    return watched.emitted


FACTS_NOT_IN_THESE_RUNS = {"budget.measured": {"limit"}}
"""Only the ratio that the budget is held against has a limit, and these runs have no baseline to hold it against."""


def _documented(table: str, column: int) -> dict[str, set[str]]:
    """First column of a table of the page, and the names in one of its further columns."""
    return {cells[0][0]: set(cells[column]) for cells in rows(block(PAGE.read_text(), table).group(2))}


def _common() -> tuple[set[str], set[str]]:
    said = block(PAGE.read_text(), "spans").group(2).split("\n", 1)[0]
    every, stages = said.split("; a stage's span also ")
    return set(re.findall(r"`(\w+)`", every)), set(re.findall(r"`(\w+)`", stages))


def test_every_span_and_attribute_is_emitted_and_no_other(emitted: Emitted) -> None:
    every, of_stages = _common()
    documented = _documented("spans", 2)
    assert emitted.spans.keys() == documented.keys()
    for span, attributes in emitted.spans.items():
        is_stage = span.count(".") == 1 and span != "rag.run"
        assert attributes <= documented[span] | every | (of_stages if is_stage else set()), span
        assert documented[span] - attributes <= ONLY_THERE, span
    together = set().union(*emitted.spans.values())
    assert every | of_stages <= together


def test_every_event_and_fact_is_emitted_and_no_other(emitted: Emitted) -> None:
    documented = _documented("events", 3)
    assert emitted.events.keys() <= documented.keys()
    assert documented.keys() - emitted.events.keys() <= NOT_IN_THESE_RUNS
    for event, facts in emitted.events.items():
        assert facts <= documented[event], event
        assert documented[event] - facts <= FACTS_NOT_IN_THESE_RUNS.get(event, set()), event


def test_every_name_of_the_list_is_used(emitted: Emitted) -> None:
    used = set().union(*emitted.spans.values(), *emitted.events.values())
    documented = set(_documented("names", 0))
    assert used <= documented
    assert documented - used <= ONLY_THERE


def test_every_metric_and_label_is_emitted_and_no_other(emitted: Emitted) -> None:
    documented = _documented("metrics", 2)
    assert emitted.metrics.keys() <= documented.keys()
    assert documented.keys() - emitted.metrics.keys() <= METRICS_ONLY_THERE
    for metric, labels in emitted.metrics.items():
        assert labels - {"le", "collection"} == documented[metric], metric


def test_a_run_is_one_trace_whose_id_is_the_runs(emitted: Emitted) -> None:
    assert len(emitted.traces) == 5
    assert all(trace == run for trace, run in emitted.traces)


def test_spans_say_how_it_went(emitted: Emitted) -> None:
    assert emitted.statuses["rag.run"] == {"active", "failed"}
    assert emitted.statuses["rag.dense"] == {"active", "failed"}
    assert emitted.statuses["rag.sparse"] == emitted.statuses["rag.rerank"] == {"active", "skipped"}
