"""A token table through a model on a Ray cluster: shards of rows, one actor per GPU, or per node where there is none.

Ray finds nodes, starts processes and moves arrays. What happens on a node is ``ray_node``; its leases guard the node
against everything else that computes there. The driver leases nothing and loads nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import merge_devices
from ensemble_assets.common.errors import DeviceError, StageError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.device import DeviceSession, MemoryReading
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.ray.node import NodeOptions, Order, ShardReport, compute_shard
from ensemble_assets.compute.running.equal_rows import DistinctRows
from ensemble_assets.compute.running.part_events import PartEvents
from ensemble_assets.compute.running.shared_folder import create_outputs, take_outputs, work_folder
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows

_ANSWER_SECONDS = 10.0
_ATTEMPTS = 3
"""A shard whose actor died three times is given up: then it is the shard."""


@dataclass(frozen=True)
class RayDevice:
    """Stands for the cluster where a stage asks what it computes on; never opened here."""

    uuid: str = "ray"
    name: str = "Ray cluster"
    kind: str = "ray"
    total_bytes: int = 0
    torch_device: str = "ray"
    frees_late: bool = False

    def memory(self) -> MemoryReading:
        """Nodes have memory, the cluster has none."""
        return MemoryReading(0, 0)

    def holders(self) -> tuple[int, ...]:
        """Unknown here."""
        return ()

    def environment(self) -> Mapping[str, str]:
        """Nothing to set."""
        return {}

    def open(self) -> DeviceSession:
        """Refuse: only nodes open devices.

        Raises:
            DeviceError: always.
        """
        raise DeviceError("the Ray cluster itself is no device; its nodes open theirs")


@dataclass(frozen=True)
class ClusterLease:
    """What a stage holds while it computes on the cluster: names only; nodes take the locks."""

    model: str
    stage: str
    devices: tuple[RayDevice, ...] = (RayDevice(),)
    descriptors: tuple[int, ...] = ()

    def abandon(self) -> None:
        """There is no lock here."""


@contextmanager
def cluster_lease(*, model: str, stage: str) -> Iterator[Lease]:
    """A lease for ``RayRunner``."""
    yield ClusterLease(model, stage)


@dataclass(frozen=True)
class RayRunner:
    """Takes tables through models on a cluster; has the shape that stages call.

    Attributes:
        options: how nodes compute.
        address: ``auto`` for the cluster that this machine belongs to, ``local`` for a private one on this machine, or
            the address of a cluster.
        shard_rows: a table with more distinct rows is split into shards of so many.
    """

    options: NodeOptions
    address: str = "auto"
    shard_rows: int = 50_000

    def __call__(
        self,
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        folder: Path | None = None,
    ) -> TableResult:
        """Run every row; results agree with ``parallel.run_parallel`` as that function says of other batches.

        Raises:
            EnsembleError: what loading and the devices of the nodes may raise.
            DeviceOutOfMemoryError: if the weights fit on no device.
            DeviceError: if there is no cluster, or its nodes keep dying.
            StageError: for any other error on a node, by the name of its class.
        """
        if not isinstance(lease, ClusterLease):
            raise DeviceError("the Ray runner needs a lease of the cluster")
        started = time.perf_counter()
        distinct = DistinctRows.of(table)
        rows, failed = distinct.rows, dict(distinct.empty)
        order = Order(lease.model, lease.stage, self.options)
        with work_folder(folder) as scratch:
            outputs = create_outputs(scratch, factory.outputs, len(table))
            parts = []
            for shard, report in self._compute(table, split(table.lengths, rows, self.shard_rows), factory, order):
                of_shard = PartEvents(events, shard)
                for event in report.events:
                    of_shard.emit(event.name, **event.facts)
                result = _result_of(report, lease.stage)
                for name, values in result.outputs.items():
                    outputs[name][shard] = values
                failed |= {int(shard[row]): reason for row, reason in result.failed_rows.items()}
                parts.append(result)
            distinct.spread(outputs)
            taken = take_outputs(scratch, list(outputs), folder)
        return TableResult(
            outputs=taken,
            failed_rows=distinct.spread_failures(failed),
            seconds=time.perf_counter() - started,
            tokens=int(table.lengths[rows].sum()),
            peak_bytes=max((part.peak_bytes for part in parts), default=0),
            precision_redone=sum(part.precision_redone for part in parts),
            distinct_rows=len(distinct.first),
            device=merge_devices(part.device for part in parts),
            precision=parts[0].precision if parts else "none",
            largest_batch=max((part.largest_batch for part in parts), default=0),
        )

    def _compute(
        self, table: TokenTable, shards: list[NDArray[np.int64]], factory: ForwardFactory, order: Order
    ) -> Iterator[tuple[NDArray[np.int64], ShardReport]]:
        """Every shard's report, as they come in."""
        if not shards:
            return
        with _connected(self.address) as ray:
            crew = _Crew(ray, most=len(shards))
            try:
                yield from crew.work(table, shards, factory, order)
            finally:
                crew.dismiss()


def split(lengths: NDArray[np.int64], rows: NDArray[np.int64], shard_rows: int) -> list[NDArray[np.int64]]:
    """Rows in shards of at most ``shard_rows``, longest rows first, so that batches are padded as little as locally."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    return [ordered[start : start + shard_rows] for start in range(0, len(ordered), shard_rows)]


def _result_of(report: ShardReport, stage: str) -> TableResult:
    if report.error is not None:
        raise report.error
    if report.result is None:
        raise StageError(f"{stage}: a node of the cluster failed ({report.word}). See the node's own log for the place")
    return report.result


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The ``ray`` module, connected; a private cluster is ended afterwards.

    Raises:
        DeviceError: if Ray is not installed or no cluster answers.
    """
    # Ray reports its use to its makers unless told not to, before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise DeviceError("cluster.engine is ray, which is not installed: pip install 'ensemble-assets[ray]'") from None
    ours = not ray.is_initialized()
    private = {"include_dashboard": False} if address == "local" else {}
    if ours:
        try:
            _require_somebody(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **private)
        except (OSError, ValueError, RuntimeError) as error:
            raise DeviceError(
                f"cluster.address: no Ray cluster answers at {address!r} ({type(error).__name__}). Start one with "
                "'ray start --head', correct the address, or set cluster.engine to local"
            ) from None
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _require_somebody(address: str) -> None:
    """Raise OSError at once where nobody listens: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()


@dataclass
class _Crew:
    """The actors of one computation."""

    ray: Any
    most: int
    actors: list[Any] = field(default_factory=list)

    def work(
        self, table: TokenTable, shards: list[NDArray[np.int64]], factory: ForwardFactory, order: Order
    ) -> Iterator[tuple[NDArray[np.int64], ShardReport]]:
        """Hand shards to whoever is free until all are done; a shard whose actor died goes to another one."""
        makers = self._places()
        self.actors = [make() for make in makers[: self.most]]
        model = self.ray.put(factory)
        waiting, attempts = deque(range(len(shards))), dict.fromkeys(range(len(shards)), 0)
        idle = deque(range(len(self.actors)))
        busy: dict[Any, tuple[int, int]] = {}
        while waiting or busy:
            while waiting and idle:
                number, actor = waiting.popleft(), idle.popleft()
                attempts[number] += 1
                future = self.actors[actor].compute.remote(take_rows(table, shards[number]), model, order)
                busy[future] = (number, actor)
            [done], _ = self.ray.wait(list(busy), num_returns=1)
            number, actor = busy.pop(done)
            try:
                report: ShardReport = self.ray.get(done)
            except self.ray.exceptions.RayError as error:
                if attempts[number] >= _ATTEMPTS:
                    raise _lost(order.stage, error) from None
                self.actors[actor] = makers[actor](elsewhere=True)
                waiting.append(number)
            else:
                yield shards[number], report
            idle.append(actor)

    def _actor(self, on_gpu: bool, strategy: Callable[..., Any], *, elsewhere: bool = False) -> Any:
        options = {"num_gpus": int(on_gpu), "num_cpus": 0, "scheduling_strategy": strategy(soft=elsewhere)}
        return self.ray.remote(**options)(_Actor).remote()

    def dismiss(self) -> None:
        """End all actors, so that the cluster has its devices back."""
        for actor in self.actors:
            self.ray.kill(actor)

    def _places(self) -> list[Any]:
        """One maker of an actor per GPU; per node with processors where there is no GPU."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        places: list[Any] = []
        for node in nodes:
            gpus = int(node["Resources"].get("GPU", 0))
            # Where the node is gone when an actor has to be replaced, any other will do.
            make = partial(self._actor, gpus > 0, partial(NodeAffinitySchedulingStrategy, node["NodeID"]))
            places += [(gpus > 0, make)] * (gpus or int(node["Resources"].get("CPU", 0) > 0))
        with_gpu = [make for on_gpu, make in places if on_gpu]
        found = with_gpu or [make for _, make in places]
        if not found:
            raise DeviceError("the Ray cluster has neither a GPU nor a processor to offer")
        return found


def _lost(stage: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"{stage}: a shard's node or process on the Ray cluster was lost {_ATTEMPTS} times ({type(error).__name__}). "
        "See 'ray status' and the logs of the nodes; a node may lack memory"
    )


class _Actor:
    """A process that Ray keeps on a node; it holds its GPU as long as it lives."""

    def compute(self, table: TokenTable, factory: ForwardFactory, order: Order) -> ShardReport:
        """One shard."""
        return compute_shard(table, factory, order)
