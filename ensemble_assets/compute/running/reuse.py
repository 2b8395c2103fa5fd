"""Computes only rows that no earlier run has computed, shard by shard; a killed run goes on where it was.

What was computed before is the cache: a row's outputs are known by its token ids and by all that decides what a model
makes of them (weights, pooling, pruning, backend, precision, device kind). Text, prefix and length limit are in the
token ids. Where rows are kept is ``row_store``; how missing ones are computed is the inner runner's part.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import UsedDevices, merge_devices
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.part_events import PartEvents
from ensemble_assets.compute.running.row_keys import row_keys
from ensemble_assets.compute.running.row_store import open_store, secret_of
from ensemble_assets.compute.running.run_table import Runner
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows

FORWARD_VERSION = 1
"""Goes up when the forwards compute something else from the same weights and tokens."""


@dataclass(frozen=True)
class ReusingRunner:
    """A runner around another one.

    Attributes:
        inner: computes what is missing.
        folder: of the collection; has a store per model below it.
        shard_tokens: tokens that are computed before they are sealed: what a killed run loses at most.
        keep_loaded: keep the model between shards. Only where ``inner`` computes in this process: workers load anew.
    """

    inner: Runner
    folder: Path
    shard_tokens: int
    keep_loaded: bool

    def __call__(
        self,
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        folder: Path | None = None,
    ) -> TableResult:
        """Every row's outputs, those that are missing computed first; in memory or mapped, not in ``folder``.

        Rows are cut into shards longest first, so that after a kill the rest is cut as it would have been: on a CPU the
        result has the same bytes as that of a run that was never killed.
        """
        started = time.perf_counter()
        keys = row_keys(table, secret_of(self.folder))
        _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        with open_store(self.folder / store_name(factory, lease), factory.outputs) as store:
            missing = np.sort(first[~store.find(keys[first]).known])
            total = _Total()
            with loaded_once(factory) if self.keep_loaded else nullcontext(factory) as once:
                for rows in shards(table.lengths, missing, self.shard_tokens):
                    part = self.inner(take_rows(table, rows), once, lease=lease, events=PartEvents(events, rows))
                    good = np.setdiff1d(np.arange(len(rows)), list(part.failed_rows))
                    outputs = {name: values[good] for name, values in part.outputs.items()}
                    store.add(keys[rows[good]], outputs, part.precision)
                    total.take(part, group[rows])
            places = store.find(keys)
            return TableResult(
                outputs=store.read(places),
                failed_rows={row: total.failed[int(group[row])] for row in np.flatnonzero(~places.known).tolist()},
                seconds=time.perf_counter() - started,
                tokens=total.tokens,
                peak_bytes=total.peak_bytes,
                precision_redone=total.precision_redone,
                distinct_rows=len(first),
                device=total.device,
                precision=store.precision(places),
                largest_batch=total.largest_batch,
                reused_rows=int((~np.isin(group, group[missing])).sum()),
            )


def store_name(factory: ForwardFactory, lease: Lease) -> str:
    """The folder of what this factory computes on these devices: 32 hex digits."""
    kinds = sorted({device.kind for device in lease.devices})
    outputs = {name: (spec.shape, np.dtype(spec.dtype).str) for name, spec in factory.outputs.items()}
    identity = repr((FORWARD_VERSION, factory.identity, kinds, outputs))
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def shards(lengths: NDArray[np.int64], rows: NDArray[np.int64], shard_tokens: int) -> Iterator[NDArray[np.int64]]:
    """``rows``, longest first, cut when a shard has ``shard_tokens``; without the first, the others are the same."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    reached = np.cumsum(lengths[ordered])
    start = done = 0
    while start < len(ordered):
        stop = int(np.searchsorted(reached, done + shard_tokens)) + 1
        yield ordered[start:stop]
        start, done = stop, int(reached[min(stop, len(ordered)) - 1])


@dataclass
class _Total:
    """What the shards' runs add up to; ``failed`` is by group of equal rows."""

    tokens: int = 0
    peak_bytes: int = 0
    precision_redone: int = 0
    largest_batch: int = 0
    device: UsedDevices = field(default_factory=UsedDevices)
    failed: dict[int, str] = field(default_factory=dict)

    def take(self, part: TableResult, groups: NDArray[np.int64]) -> None:
        self.tokens += part.tokens
        self.peak_bytes = max(self.peak_bytes, part.peak_bytes)
        self.precision_redone += part.precision_redone
        self.largest_batch = max(self.largest_batch, part.largest_batch)
        self.device = merge_devices((self.device, part.device))
        self.failed |= {int(groups[row]): reason for row, reason in part.failed_rows.items()}
