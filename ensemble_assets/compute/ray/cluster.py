"""Run rows on a Ray cluster: shards of rows, one actor per GPU, or per node if the cluster has no GPU.

Ray finds nodes, starts processes and moves arrays. The nodes lease their devices; the driver loads nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, StageError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult, merge_results
from ensemble_assets.compute.devices.lease import Lease, unlocked_lease
from ensemble_assets.compute.ray.node import NodeOptions, Order, ShardReport, compute_shard
from ensemble_assets.compute.running.equal_rows import shards
from ensemble_assets.compute.running.loaded_once import PartEvents
from ensemble_assets.compute.running.local_runner import Runner
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows

_ANSWER_SECONDS = 10.0
"""Time for the head node of a cluster to accept a connection."""

_ATTEMPTS = 3
"""A shard whose actor died this often is given up: it is then the shard that kills nodes."""


cluster_lease = partial(unlocked_lease, devices=())
"""Lease for ``RayRunner``: it names no devices, since the nodes lock their own."""


@dataclass(frozen=True)
class RayRunner(Runner):
    """A ``Runner`` on the nodes of a cluster, in shards of at most ``shard_rows`` rows.

    ``address`` is ``auto`` for the cluster that this machine belongs to, ``local`` for a private one on this machine,
    or the address of a cluster.
    """

    options: NodeOptions
    address: str = "auto"
    shard_rows: int = 50_000
    reloads = True

    def __call__(self, table: TokenTable, factory: ForwardFactory, *, lease: Lease, events: EventSink) -> TableResult:
        """Run every row of ``table``; see ``Runner``.

        No cluster, and nodes that keep dying, are a ``DeviceError``. An error on a node is raised as it is if it may be
        shown, else as a ``StageError`` with the name of its class.
        """
        if lease.devices:
            raise DeviceError("the Ray runner needs a lease of the cluster")
        started = time.perf_counter()
        order = Order(lease.purpose.model, lease.purpose.stage, self.options)
        outputs = {name: np.zeros(spec.size(table), spec.dtype) for name, spec in factory.outputs.items()}
        failed: dict[int, str] = {}
        parts = []
        shard_list = split(table.lengths, self.shard_rows)
        for shard, report in self._compute(table, shard_list, factory, order):
            shard_events = PartEvents(events, shard)
            for event in report.events:
                shard_events.emit(event.name, **event.facts)
            if report.result is None:
                where = f"{lease.purpose.stage}: a node of the cluster failed ({report.word})"
                raise report.error or StageError(f"{where}. See the node's own log for the place")
            result = report.result
            for name, values in result.outputs.items():
                outputs[name][factory.outputs[name].places(table, shard)] = values
            failed |= {int(shard[row]): reason for row, reason in result.failed_rows.items()}
            parts.append(replace(result, outputs={}))
        seconds = time.perf_counter() - started
        return replace(merge_results(parts), outputs=outputs, failed_rows=failed, seconds=seconds)

    def _compute(
        self, table: TokenTable, shards: list[NDArray[np.int64]], factory: ForwardFactory, order: Order
    ) -> Iterator[tuple[NDArray[np.int64], ShardReport]]:
        """Yield every shard and its report, in the order in which they end."""
        if not shards:
            return
        with _connected(self.address) as ray:
            crew = _Crew(ray, most=len(shards))
            try:
                yield from crew.work(table, shards, factory, order)
            finally:
                for actor in crew.actors:  # so that the cluster has its devices back
                    ray.kill(actor)


def split(lengths: NDArray[np.int64], shard_rows: int) -> list[NDArray[np.int64]]:
    """Cut all rows into shards of at most ``shard_rows``, longest rows first, so that batches are padded little."""
    longest_first = np.argsort(-lengths, kind="stable")
    return list(shards(np.ones(len(lengths), np.int64), longest_first, shard_rows))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect and yield the ``ray`` module, or raise ``DeviceError``. A private cluster ends with the block."""
    # Ray sends usage reports unless this is set before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise DeviceError("cluster.engine is ray, which is not installed: pip install 'ensemble-assets[ray]'") from None
    ours = not ray.is_initialized()
    private = {"include_dashboard": False} if address == "local" else {}
    if ours:
        try:
            _require_listener(address)
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


def _require_listener(address: str) -> None:
    """Raise OSError at once if nothing listens at the address: Ray itself would try for minutes."""
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
        """Hand shards to free actors until all are done. The shard of an actor that died goes to another one."""
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

    def _places(self) -> list[Any]:
        """Make one maker of an actor per GPU, or per node with processors if there is no GPU."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        places: list[Any] = []
        for node in nodes:
            gpus = int(node["Resources"].get("GPU", 0))
            # If the node is gone when an actor must be replaced, Ray chooses another one.
            make = partial(self._actor, gpus > 0, partial(NodeAffinitySchedulingStrategy, node["NodeID"]))
            places += [(gpus > 0, make)] * (gpus or int(node["Resources"].get("CPU", 0) > 0))
        with_gpu = [make for on_gpu, make in places if on_gpu]
        makers = with_gpu or [make for _, make in places]
        if not makers:
            raise DeviceError("the Ray cluster has neither a GPU nor a processor to offer")
        return makers


def _lost(stage: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"{stage}: a shard's node or process on the Ray cluster was lost {_ATTEMPTS} times ({type(error).__name__}). "
        "See 'ray status' and the logs of the nodes; a node may lack memory"
    )


class _Actor:
    """A process that Ray keeps on a node; it holds its GPU as long as it lives."""

    def compute(self, table: TokenTable, factory: ForwardFactory, order: Order) -> ShardReport:
        """Compute one shard."""
        return compute_shard(table, factory, order)
