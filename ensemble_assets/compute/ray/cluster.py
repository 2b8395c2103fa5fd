"""Run rows on a Ray cluster: shards of rows, one actor per GPU, or per node if the cluster has no GPU.

Ray finds nodes, starts processes and moves arrays. The nodes lease their devices; the driver loads nothing.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from ensemble_assets.compute.ray.node import Node, NodeOptions, Order, ShardReport
from ensemble_assets.compute.running.equal_rows import shards
from ensemble_assets.compute.running.loaded_once import PartEvents
from ensemble_assets.compute.running.local_runner import Runner
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows

_ANSWER_SECONDS = 10.0
"""Time for the head node of a cluster to accept a connection."""

_ATTEMPTS = 3
"""A shard whose actor died this often is given up: it is then the shard that kills nodes."""

_FAREWELL_SECONDS = 15.0
"""Time for all actors to give their devices back: their own workers have five seconds to report and ten to die."""

_LOOK_SECONDS = 2.0
"""Time between two looks for nodes that joined."""

_SLOW = 2.0
"""A shard is computed a second time after so many times what the others took: they are of equal size."""

Place = tuple[str, int]
"""A node's id, and the number of one of its GPUs."""


cluster_lease = partial(unlocked_lease, devices=())
"""Lease for ``RayRunner``: it names no devices, since the nodes lock their own."""


@dataclass(frozen=True)
class RayRunner(Runner):
    """A ``Runner`` on the nodes of a cluster, in shards of at most ``shard_rows`` rows.

    ``address`` is ``auto`` for the cluster that this machine belongs to, ``local`` for a private one on this machine,
    or the address of a cluster. ``crew`` has the actors of a lease, which keep their devices and their model.
    """

    options: NodeOptions
    address: str = "auto"
    shard_rows: int = 50_000
    crew: _Crew | None = None
    round_trips = True

    @contextmanager
    def holding(self, lease: Lease, events: EventSink) -> Iterator[RayRunner]:
        """Keep the nodes' devices and their model for all runs of a lease. No cluster is a ``DeviceError``."""
        if lease.devices:
            raise DeviceError("the Ray runner needs a lease of the cluster")
        with _connected(self.address) as ray:
            crew = _Crew(ray, Order(lease.purpose.model, lease.purpose.stage, self.options))
            try:
                yield replace(self, crew=crew)
                crew.say_goodbye(events)
            finally:
                crew.end(list(crew.actors))  # so that the cluster has its devices back

    def __call__(self, table: TokenTable, factory: ForwardFactory, *, lease: Lease, events: EventSink) -> TableResult:
        """Run every row of ``table``; see ``Runner``.

        No cluster, and nodes that keep dying, are a ``DeviceError``. An error on a node is raised as it is if it may be
        shown, else as a ``StageError`` with the name of its class.
        """
        if self.crew is None:
            with self.holding(lease, events) as held:
                return held(table, factory, lease=lease, events=events)
        started = time.perf_counter()
        outputs = {name: np.zeros(spec.size(table), spec.dtype) for name, spec in factory.outputs.items()}
        failed: dict[int, str] = {}
        parts = []
        shard_list = split(table.lengths, self.shard_rows)
        for shard, report in self.crew.work(table, shard_list, factory) if shard_list else ():
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
    """The actors of one lease, by place: one of a node's GPUs, or the node."""

    ray: Any
    order: Order
    most: int = 0
    actors: dict[Place, Any] = field(default_factory=dict)
    idle: deque[Place] = field(default_factory=deque)
    makers: dict[Place, Callable[..., Any]] = field(default_factory=dict)

    def work(
        self, table: TokenTable, shards: list[NDArray[np.int64]], factory: ForwardFactory
    ) -> Iterator[tuple[NDArray[np.int64], ShardReport]]:
        """Hand shards to free actors until all are done; the first report of a shard counts.

        The shard of an actor that died goes to another one. Nodes that join get shards too. A shard that takes much
        longer than the others did is computed a second time where nobody has anything else to do.
        """
        self.most = len(shards)
        self._recruit()
        if not self.actors:
            raise DeviceError("the Ray cluster has neither a GPU nor a processor to offer")
        model, work = self.ray.put(factory), _Work(len(shards))
        while work.open:
            self._recruit()
            while self.idle and (number := work.next()) is not None:
                place = self.idle.popleft()
                future = self.actors[place].compute.remote(take_rows(table, shards[number]), model, self.order)
                work.began(future, number, place)
            ended, _ = self.ray.wait(list(work.running), num_returns=1, timeout=_LOOK_SECONDS)
            for future in ended:
                number, place = work.ended(future)
                try:
                    report: ShardReport = self.ray.get(future)
                except self.ray.exceptions.RayError as error:
                    if work.lost(number):
                        raise _lost(self.order.stage, error) from None
                    self.actors[place] = self.makers[place](elsewhere=True)
                else:
                    if work.reported(number):
                        yield shards[number], report
                self.idle.append(place)
        self.end([place for _, place, _ in work.running.values()])  # whose shards others had done before

    def say_goodbye(self, events: EventSink) -> None:
        """Have all actors give their devices back, and record what they still have to report."""
        partings = [actor.close.remote() for actor in self.actors.values()]
        if not partings:
            return
        ended, _ = self.ray.wait(partings, num_returns=len(partings), timeout=_FAREWELL_SECONDS)
        for parting in ended:
            with suppress(self.ray.exceptions.RayError):
                for event in self.ray.get(parting):
                    events.emit(event.name, **event.facts)

    def end(self, places: list[Place]) -> None:
        """Kill the actors of some places."""
        for place in places:
            self.ray.kill(self.actors.pop(place))
        self.idle = deque(place for place in self.idle if place in self.actors)

    def _recruit(self) -> None:
        """Start an actor for every place that has none yet: all GPUs, or all nodes with processors if there is none."""
        places = self._places()
        for place, maker in places.items():
            if place not in self.actors and len(self.actors) < self.most:
                self.makers[place], self.actors[place] = maker, maker()
                self.idle.append(place)

    def _places(self) -> dict[Place, Callable[..., Any]]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        with_gpu: dict[Place, Callable[..., Any]] = {}
        without: dict[Place, Callable[..., Any]] = {}
        for node in self.ray.nodes():
            resources, name = node["Resources"], node["NodeID"]
            # If the node is gone when an actor must be replaced, Ray chooses another one.
            strategy = partial(NodeAffinitySchedulingStrategy, name)
            for number in range(int(resources.get("GPU", 0)) if node["Alive"] else 0):
                with_gpu[name, number] = partial(self._actor, True, strategy)
            if node["Alive"] and resources.get("CPU", 0) > 0:
                without[name, 0] = partial(self._actor, False, strategy)
        return with_gpu or without

    def _actor(self, on_gpu: bool, strategy: Callable[..., Any], *, elsewhere: bool = False) -> Any:
        options = {"num_gpus": int(on_gpu), "num_cpus": 0, "scheduling_strategy": strategy(soft=elsewhere)}
        return self.ray.remote(**options)(Node).remote()


class _Work:
    """Which shards wait, which are being computed, where and since when, and which are done."""

    def __init__(self, shards: int) -> None:
        self.open = set(range(shards))
        self.running: dict[Any, tuple[int, Place, float]] = {}
        self._waiting = deque(range(shards))
        self._losses = dict.fromkeys(range(shards), 0)
        self._seconds: list[float] = []

    def next(self) -> int | None:
        """Give the shard to compute next; None while all of them are in good hands."""
        if self._waiting:
            return self._waiting.popleft()
        copies = Counter(number for number, _, _ in self.running.values())
        alone = [(began, number) for number, _, began in self.running.values() if copies[number] == 1]
        if not self._seconds or not alone:
            return None
        began, number = min(alone)
        return number if time.monotonic() - began > _SLOW * statistics.median(self._seconds) else None

    def began(self, future: Any, number: int, place: Place) -> None:
        """Note that a shard is being computed."""
        self.running[future] = number, place, time.monotonic()

    def ended(self, future: Any) -> tuple[int, Place]:
        """Note the end of a computation, good or bad."""
        number, place, began = self.running.pop(future)
        self._seconds.append(time.monotonic() - began)
        return number, place

    def reported(self, number: int) -> bool:
        """Note a shard's report; say whether it is the first."""
        first = number in self.open
        self.open.discard(number)
        return first

    def lost(self, number: int) -> bool:
        """Note that a shard's actor died; say whether the shard is given up."""
        self._losses[number] += 1
        if number in self.open and all(number != other for other, _, _ in self.running.values()):
            self._waiting.append(number)
        return number in self.open and self._losses[number] >= _ATTEMPTS


def _lost(stage: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"{stage}: a shard's node or process on the Ray cluster was lost {_ATTEMPTS} times ({type(error).__name__}). "
        "See 'ray status' and the logs of the nodes; a node may lack memory"
    )
