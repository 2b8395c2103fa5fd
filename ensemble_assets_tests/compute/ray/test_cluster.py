"""Encoding on a Ray cluster: the same results as on this machine, shards by size, leases on every node."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import DeviceError, LeaseTimeoutError, StageError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.discovery import Discovery
from ensemble_assets.compute.devices.lease import unlocked_lease
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.ray import cluster as cluster_module
from ensemble_assets.compute.ray.cluster import RayRunner, cluster_lease, split
from ensemble_assets.compute.ray.node import Node, NodeOptions, Order
from ensemble_assets.compute.running.run_table import TableRunner, in_process_runner
from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.models.registry import MODELS
from ensemble_assets.settings.sources import process_environment
from ensemble_assets_tests.compute.running.doubles import VECTOR, DoubleFactory
from ensemble_assets_tests.gpu.acceptance.bench import random_table
from ensemble_assets_tests.gpu.acceptance.models import factory, model
from ensemble_assets_tests.orchestration.doubles import Double, OutputSpec, _dense

OUTPUTS = {"vector": OutputSpec((64,), np.float32)}


def broken(table: TokenTable, row: int) -> dict[str, np.ndarray]:
    raise MemoryError("canary-4711")


def table_of(lengths: list[int]) -> TokenTable:
    """Rows of these lengths; equal lengths from 40 on make equal rows."""
    random = np.random.default_rng(7)
    rows = [np.full(n, n, np.int32) if n >= 40 else random.integers(5, 900, n).astype(np.int32) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenTable(np.concatenate(rows), offsets, np.zeros(len(lengths), bool))


TABLE = table_of([3, 9, 40, 0, 17, 40, 25, 5, 41, 8, 40, 12])


def options_in(folder: Path) -> NodeOptions:
    settings = WorkerSettings(cpu_batches(64), workers_per_device=0)
    return NodeOptions(
        settings,
        settings,
        process_environment,
        folder / "locks",
        lease_timeout=30.0,
        ceiling_bytes=12 * 10**9,
        threads=1,
    )


def test_shards_hold_every_row_once_the_longest_first() -> None:
    lengths = np.array([5, 9, 1, 9, 3])
    shards = split(lengths, 2)
    assert [shard.tolist() for shard in shards] == [[1, 3], [0, 4], [2]]
    assert split(np.array([], np.int64), 2) == []
    assert len(split(lengths, 5)) == 1, "up to the limit, a collection is one shard"


def test_a_node_leases_its_devices_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDDER_PATHS_LOCK_DIR", raising=False)
    order = Order("double", "dense", options_in(tmp_path))
    node = Node()
    report = node.compute(TABLE, Double(_dense, OUTPUTS, "double"), order)
    assert report.result is not None
    assert "lease.acquired" in {event.name for event in report.events}
    assert "lease.released" in {event.name for event in node.close()}
    impatient = dataclasses.replace(order, options=dataclasses.replace(order.options, lease_timeout=0.0))
    with lease_devices("other", "dense", lock_folder=tmp_path / "locks", events=EventLog()):
        taken = node.compute(TABLE, Double(_dense, OUTPUTS, "double"), impatient)
    assert isinstance(taken.error, LeaseTimeoutError)
    missing = node.compute(TABLE, Double(_dense, OUTPUTS, "double", missing=True), order)
    assert type(missing.error).__name__ == "ModelUnavailableError"
    assert "lease.released" in {event.name for event in missing.events}, "after an error it keeps nothing"
    assert node.compute(TABLE, Double(_dense, OUTPUTS, "double"), order).result is not None
    node.close()


@dataclass(frozen=True)
class Counted(DoubleFactory):
    """Leaves a file for each time that it is loaded; ``folder`` None is that of the node's locks."""

    folder: Path | None = None

    def load(self, device: str) -> Any:
        (self.folder or node_folder()).joinpath(f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        return super().load(device)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_node_loads_a_model_once_for_all_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Every shard comes with its own copy of the factory, as Ray sends it."""
    monkeypatch.delenv("EMBEDDER_PATHS_LOCK_DIR", raising=False)
    settings = WorkerSettings(cpu_batches(64), workers_per_device=workers)
    order = Order("double", "dense", dataclasses.replace(options_in(tmp_path), on_cpu=settings, on_gpu=settings))
    node, names = Node(), []
    for identity in ("first", "first", "first", "second"):
        factory = Counted(VECTOR, identity=identity, folder=tmp_path)
        report = node.compute(table_of([3, 9, 40, 17]), pickle.loads(pickle.dumps(factory)), order)
        assert report.result is not None
        assert not report.result.failed_rows
        names += [event.name for event in report.events]
    names += [event.name for event in node.close()]
    assert len(list(tmp_path.glob("loaded-*"))) == 2, "the last shard was of another model"
    assert [names.count(name) for name in ("lease.acquired", "lease.released")] == [2, 2]
    assert names.count("worker.started") == 2 * workers


@dataclass(frozen=True)
class StandInGpu(CpuDevice):
    """A processor that does not go by the name of one, so that rows are packed as on a GPU, behind a mask."""

    @property
    def torch_device(self) -> str:
        """Torch takes a processor's number too."""
        return "cpu:0"


@pytest.mark.timeout(300)
def test_a_node_packs_rows_on_a_gpu_and_pads_them_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = random_table(np.array([5, 9, 33, 64, 17]), seed=4)
    files = model("minilm", tmp_path, small=True)
    with unlocked_lease(model="minilm", stage="dense") as lease:
        padded = in_process_runner(64)(table, factory(*files, "fp32"), lease=lease, events=EventLog())
    settings = WorkerSettings(cpu_batches(1024), workers_per_device=1)
    order = Order("minilm", "dense", dataclasses.replace(options_in(tmp_path), on_cpu=settings, on_gpu=settings))
    for device, packing in ((StandInGpu(1), "packed"), (CpuDevice(1), "off")):
        chosen = Discovery((device,), ())
        monkeypatch.setattr("ensemble_assets.compute.ray.node.discover_devices", lambda *_, chosen=chosen, **__: chosen)
        node = Node()
        report = node.compute(table, factory(*files, "fp32", packed=True), order)
        assert report.result is not None, (report.error, report.word)
        assert [event.facts["packing"] for event in report.events if event.name == "worker.ready"] == [packing]
        np.testing.assert_allclose(report.result.outputs["vector"], padded.outputs["vector"], rtol=0, atol=2e-5)
        node.close()


def test_the_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    runner = RayRunner(options_in(tmp_path), address="127.0.0.1:1")
    with (
        cluster_lease(model="m", stage="dense") as lease,
        pytest.raises((DeviceError, StageError), match="no Ray cluster answers"),
    ):
        runner(TABLE, Double(_dense, OUTPUTS, "d"), lease=lease, events=EventLog())


# With a real cluster


@dataclass
class Nodes:
    """Nodes on this machine, each with its own folder of locks, as machines have them."""

    made: Any
    folder: Path
    nodes: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.made.address)

    def add(self, name: str) -> Path:
        """Start a node and return its folder of locks, whose name the node's processes find in their environment."""
        locks = self.folder / name
        locks.mkdir()
        variables = {"EMBEDDER_PATHS_LOCK_DIR": str(locks), "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        self.nodes[name] = self.made.add_node(num_cpus=1, object_store_memory=10**8, env_vars=variables)
        return locks

    def remove(self, name: str) -> None:
        self.made.remove_node(self.nodes.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 10**8, "include_dashboard": False}
    nodes = Nodes(Cluster(initialize_head=True, head_node_args=head), tmp_path_factory.mktemp("nodes"))
    for name in ("first", "second"):
        nodes.add(name)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.made.shutdown()


def expected_vectors() -> np.ndarray:
    with unlocked_lease(model="double", stage="dense") as lease:
        result = in_process_runner(64)(TABLE, Double(_dense, OUTPUTS, "double"), lease=lease, events=EventLog())
    return result.outputs["vector"]


def node_folder() -> Path:
    return Path(os.environ["EMBEDDER_PATHS_LOCK_DIR"])


def when_told(table: TokenTable, row: int) -> dict[str, np.ndarray]:
    """Compute a row once the nodes' folder has a file ``go``, and say before that the node is at work."""
    (node_folder() / "busy").touch()
    until((node_folder().parent / "go").exists)
    return _dense(table, row)


def never_on_the_second(table: TokenTable, row: int) -> dict[str, np.ndarray]:
    """Compute a row, on the first node not before the second one is at work, which never ends there."""
    (node_folder() / "busy").touch()
    if node_folder().name == "second":
        until(lambda: False, seconds=600.0)
    until((node_folder().parent / "second" / "busy").exists)
    return _dense(table, row)


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slow_node_holds_nobody_up(cluster: Nodes, tmp_path: Path) -> None:
    """Its shard is computed a second time elsewhere; in this test it would never end."""
    runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address, shard_rows=1))
    with cluster_lease(model="double", stage="dense") as lease:
        result = runner(TABLE, Double(never_on_the_second, OUTPUTS, "double"), lease=lease, events=EventLog())
    np.testing.assert_array_equal(result.outputs["vector"], expected_vectors())
    assert (cluster.folder / "second" / "busy").exists(), "the slow node had a shard"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_joins_works_and_one_that_dies_loses_nothing(cluster: Nodes, tmp_path: Path) -> None:
    runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address, shard_rows=1))
    for name in cluster.nodes:
        (cluster.folder / name / "busy").unlink(missing_ok=True)

    def run() -> np.ndarray:
        with cluster_lease(model="double", stage="dense") as lease:
            return runner(TABLE, Double(when_told, OUTPUTS, "double"), lease=lease, events=EventLog()).outputs["vector"]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            until(lambda: all((cluster.folder / name / "busy").exists() for name in ("first", "second")))
            third = cluster.add("third")
            until((third / "busy").exists)
            cluster.remove("second")
        finally:
            (cluster.folder / "go").touch()
        np.testing.assert_array_equal(running.result(300), expected_vectors())
    cluster.remove("third")
    (cluster.folder / "second").rename(cluster.folder / "gone")
    cluster.add("second")


_DRIVER = """
import os, sys
from pathlib import Path
from ensemble_assets_tests.compute.ray import test_cluster as cases

class Dying(cases.EventLog):
    def record(self, event):
        super().record(event)
        if [each.name for each in self.events].count("lease.acquired") == 2:  # the first shard's rows are stored
            os._exit(9)

print(cases.stored_run(sys.argv[1], Path(sys.argv[2]), Dying()))
"""


def stored_run(address: str, folder: Path, events: EventLog) -> TableResult:
    """Run the table in several stored parts, as a stage does."""
    runner = TableRunner(RayRunner(options_in(folder), address), folder / "rows", shard_tokens=60)
    with cluster_lease(model="double", stage="dense") as lease:
        return runner(TABLE, Double(_dense, OUTPUTS, "double"), lease=lease, events=events)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_goes_on_where_it_was(cluster: Nodes, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, cluster.address, str(tmp_path)]
    root = Path(__file__).resolve().parents[3]
    killed = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr[-2000:]
    result = stored_run(cluster.address, tmp_path, EventLog())
    np.testing.assert_array_equal(result.outputs["vector"], expected_vectors())
    assert 0 < result.reused_rows < len(TABLE), "the first part was stored, the others were not"


@pytest.mark.nightly
@pytest.mark.models
@pytest.mark.timeout(1800)
def test_two_nodes_encode_to_the_bytes_of_one(cluster: Nodes, tmp_path: Path, record_property) -> None:
    """Shards and batches do not depend on the number of nodes, so the vectors do not either."""
    texts = pl.Series([text[:700] for text in list(topics.values())[:60]])

    def encoded() -> tuple[bytes, float]:
        runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address, shard_rows=10))
        context = ComputeContext(lease=cluster_lease, runner=runner, runtime=Runtime(threads=1))
        started = time.perf_counter()
        (model,) = encode_dense(texts, texts[:1], [MODELS["all-minilm-l6-v2"]], context).models
        return model.chunks.tobytes(), time.perf_counter() - started

    on_two, seconds_on_two = encoded()
    cluster.remove("second")
    on_one, seconds_on_one = encoded()
    (cluster.folder / "second").rename(cluster.folder / "removed")
    cluster.add("second")
    assert on_two == on_one
    record_property("seconds on one node over those on two", round(seconds_on_one / seconds_on_two, 2))


@pytest.fixture
def no_second_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no shard computed twice: the actor of a copy is killed, and with it the event of its lease's end."""
    monkeypatch.setattr(cluster_module, "_SLOW", float("inf"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_second_copies")
def test_two_nodes_give_what_this_machine_gives(cluster: Nodes, tmp_path: Path) -> None:
    factory, events = Double(_dense, OUTPUTS, "double"), EventLog()
    with unlocked_lease(model="double", stage="dense") as lease:
        expected = in_process_runner(64)(TABLE, factory, lease=lease, events=EventLog())
    runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address, shard_rows=3))
    with cluster_lease(model="double", stage="dense") as lease:
        found = runner(TABLE, factory, lease=lease, events=events)
    np.testing.assert_array_equal(found.outputs["vector"], expected.outputs["vector"])
    assert (found.failed_rows, found.tokens) == (expected.failed_rows, expected.tokens)
    assert (found.distinct_rows, found.device) == (expected.distinct_rows, UsedDevices("cpu"))
    for _ in range(4):  # a node that starts late may find nothing left of so small a table
        if not all(list((cluster.folder / name).glob("*.lock")) for name in cluster.nodes):
            with cluster_lease(model="double", stage="dense") as lease:
                runner(TABLE, factory, lease=lease, events=EventLog())
    assert all(list((cluster.folder / name).glob("*.lock")) for name in cluster.nodes), (
        "both nodes took their own lease"
    )
    acquired = len(events.named("lease.acquired"))
    assert 1 <= acquired <= 2, "nine distinct rows in shards of three, and a lease of each node for all of its shards"
    assert len(events.named("lease.released")) == acquired


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_second_copies")
def test_nodes_load_a_model_once_for_all_runs_of_a_stage(cluster: Nodes, tmp_path: Path) -> None:
    runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address, shard_rows=2), tmp_path / "rows", 60)
    events = EventLog()
    with cluster_lease(model="double", stage="dense") as lease, runner.holding(lease, events) as held:
        for table in (TABLE, table_of([6, 7, 8])):  # several shards each
            assert held(table, Counted(VECTOR), lease=lease, events=events).outputs["vector"].any()
    loaded = [len(list((cluster.folder / name).glob("loaded-*"))) for name in cluster.nodes]
    assert all(count <= 1 for count in loaded)
    assert sum(loaded) == len(events.named("lease.acquired")) == len(events.named("lease.released"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_errors_of_nodes_arrive_without_their_words(cluster: Nodes, tmp_path: Path) -> None:
    runner = TableRunner(RayRunner(options_in(tmp_path), cluster.address))
    with cluster_lease(model="double", stage="dense") as lease:
        with pytest.raises(Exception, match="not here") as missing:
            runner(TABLE, Double(_dense, OUTPUTS, "double", missing=True), lease=lease, events=EventLog())
        assert type(missing.value).__name__ == "ModelUnavailableError"
        outcome = runner(TABLE, Double(broken, OUTPUTS, "double"), lease=lease, events=EventLog())
    assert "canary" not in str(outcome.failed_rows)
    assert len(outcome.failed_rows) == len(TABLE)


def test_a_lease_of_devices_is_refused(tmp_path: Path) -> None:
    with (
        unlocked_lease(model="m", stage="dense") as lease,
        pytest.raises(DeviceError, match="needs a lease of the cluster"),
    ):
        RayRunner(options_in(tmp_path))(TABLE, Double(_dense, OUTPUTS, "d"), lease=lease, events=EventLog())
