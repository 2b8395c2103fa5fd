"""Run a token table through a model: equal rows once, rows that an earlier run stored not at all.

The outputs of a row depend on its token ids and on everything that decides what a model computes from them: weights,
pooling, pruning, backend, precision and kind of device. ``stored_rows`` keeps them under a key of all that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.defaults import BATCH_TOKENS
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import NO_TOKENS, TableResult, merge_results
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import DistinctRows, Keys, row_keys, shards
from ensemble_assets.compute.running.loaded_once import PartEvents
from ensemble_assets.compute.running.local_runner import LocalRunner, Runner
from ensemble_assets.compute.running.stored_rows.store import (
    RowStore,
    drop_others,
    open_store,
    secret_of,
    store_name,
    stored_secret,
)
from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows

TableSlice = tuple[NDArray[np.int64], TokenTable]
"""The numbers of some rows in a stage's table, ``[n] int64``, and a table of these rows."""


@dataclass(frozen=True)
class TableRunner:
    """Runs the tables of stages.

    ``folder`` has the collection's row stores, one per model; None keeps nothing after a run. Rows are stored
    after every ``shard_tokens``, so a killed run loses at most this much; None runs all rows at once. A row with
    outputs of both kinds is computed where those per row are missing; those per token are kept beside them. Of outputs
    per token at most ``most_token_bytes`` stay on disk, as long as the table's own are not more. ``others`` are such
    folders of other collections: rows that one of them has are copied, not computed.
    """

    runner: Runner
    folder: Path | None = None
    shard_tokens: int | None = None
    most_token_bytes: int = 4_000_000_000
    others: tuple[Path, ...] = ()

    @contextmanager
    def expecting(self, models: int) -> Iterator[TableRunner]:
        """Return a runner for a stage that will hold ``models``; see ``Runner``."""
        with self.runner.expecting(models) as runner:
            yield replace(self, runner=runner)

    @contextmanager
    def holding(self, lease: Lease, events: EventSink) -> Iterator[TableRunner]:
        """Return a runner for the runs of one lease; see ``Runner``."""
        with self.runner.holding(lease, events) as runner:
            yield replace(self, runner=runner)

    def __call__(
        self,
        table: TokenTable | Iterable[TableSlice],
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        rows: NDArray[np.int64] | None = None,
    ) -> TableResult:
        """Return the outputs of every row; errors are those of ``Runner``.

        The shards do not depend on how many rows are stored already. On a CPU, a run that goes on after a kill gives
        the same bytes as a run that was never killed. A table may come in slices: each is run before the next one is
        asked for. ``rows`` are numbers for events, if ``table`` is a part of the stage's.
        """
        started = time.perf_counter()
        events = events if rows is None else PartEvents(events, rows)
        slices = [(np.arange(len(table)), table)] if isinstance(table, TokenTable) else table
        secret = secret_of(self.folder) if self.folder is not None else b""
        all_numbers, all_keys, failed, parts, computed = [], [], _FailedRows(), [], list[int]()
        with self._stores(factory, lease) as (store, by_token):
            main = store if store.outputs else by_token
            others = list(self._other_stores(factory, lease))
            for numbers, piece in slices:
                distinct = DistinctRows.of(row_keys(piece, secret))
                all_numbers.append(numbers)
                all_keys.append(distinct.keys)
                for key, *stores in others:
                    theirs = row_keys(piece, key)[distinct.first]
                    for own, other in zip((store, by_token), stores, strict=True):
                        own.take(distinct.keys[distinct.first], other, theirs)
                stored = main.find(distinct.keys[distinct.first]).stored
                missing = failed.others(np.sort(distinct.first[~stored]), distinct.keys)
                empty = missing[piece.lengths[missing] == 0]
                failed.add(dict.fromkeys(empty.tolist(), NO_TOKENS), numbers, distinct.keys)
                missing = missing[piece.lengths[missing] > 0]
                if by_token.outputs:
                    size = sum(np.prod(s.shape) * np.dtype(s.dtype).itemsize for s in by_token.outputs.values())
                    new = int(size * piece.lengths[missing].sum())
                    by_token.make_room(new, self.most_token_bytes, by_token.find(distinct.keys))
                events.emit("batch.planned", rows=len(missing))
                for shard in shards(piece.lengths, missing, self.shard_tokens):
                    whole = np.array_equal(shard, np.arange(len(piece)))  # then nothing needs to be copied
                    shard_table = piece if whole else take_rows(piece, shard)
                    part = self.runner(shard_table, factory, lease=lease, events=PartEvents(events, numbers[shard]))
                    good = np.setdiff1d(np.arange(len(shard)), list(part.failed_rows))
                    outputs = dict(part.outputs)
                    if part.failed_rows:  # else copies would be as large as all outputs
                        places_of = {name: spec.places(shard_table, good) for name, spec in factory.outputs.items()}
                        outputs = {name: values[places_of[name]] for name, values in outputs.items()}
                    keys = distinct.keys[shard[good]]
                    computed.append(main.shards)
                    if by_token.outputs:
                        by_token.add(keys, outputs, part.precision, shard_table.lengths[good])
                    if store.outputs:
                        store.add(keys, outputs, part.precision)
                    failed.add(part.failed_rows, numbers[shard], distinct.keys[shard])
                    parts.append(replace(part, outputs={}))  # the store has them
            if len(all_keys) != 1:
                in_order = np.argsort(np.concatenate([np.empty(0, np.int64), *all_numbers]))
                distinct = DistinctRows.of(np.concatenate([np.empty((0, 2), np.uint64), *all_keys])[in_order])
            places = main.find(distinct.keys)
            return replace(
                merge_results(parts),
                outputs=store.read(places) if store.outputs else {},
                by_token=by_token.tokens(by_token.find(distinct.keys)) if by_token.outputs else None,
                failed_rows=distinct.spread(failed.reasons),
                seconds=time.perf_counter() - started,
                distinct_rows=len(distinct.first),
                precision=main.precision(places),
                reused_rows=int((places.stored & ~np.isin(places.shard, computed)).sum()),
            )

    @contextmanager
    def _stores(self, factory: ForwardFactory, lease: Lease) -> Iterator[tuple[RowStore, RowStore]]:
        """Open the stores of the factory's outputs per row and per token; the latter without outputs where none are."""
        with ExitStack() as stack:
            stores = []
            for per_token in (False, True):
                outputs = {name: spec for name, spec in factory.outputs.items() if spec.per_token == per_token}
                folder = None
                if self.folder is not None and outputs:
                    folder = self.folder / store_name(factory, lease, per_token=per_token)
                    if per_token:
                        drop_others(folder)
                stores.append(stack.enter_context(open_store(folder, outputs)))
            yield stores[0], stores[1]

    def _other_stores(self, factory: ForwardFactory, lease: Lease) -> Iterator[tuple[bytes, RowStore, RowStore]]:
        """Give the secret and both stores of every further folder, to be read only; one without a store is empty."""
        for folder in self.others if self.folder is not None else ():
            stores = []
            for per_token in (False, True):
                outputs = {name: spec for name, spec in factory.outputs.items() if spec.per_token == per_token}
                path = folder / store_name(factory, lease, per_token=per_token)
                stores.append(RowStore(path if outputs else None, outputs, own=False))
            yield stored_secret(folder), stores[0], stores[1]


@dataclass
class _FailedRows:
    """The reasons of rows that failed, by their number in the whole table, and the keys of these rows."""

    reasons: dict[int, str] = field(default_factory=dict)
    _keys: set[bytes] = field(default_factory=set)

    def add(self, reasons: Mapping[int, str], numbers: NDArray[np.int64], keys: Keys) -> None:
        """Add rows of a part of the table, whose rows have these numbers and keys."""
        self.reasons.update((int(numbers[row]), reason) for row, reason in reasons.items())
        self._keys.update(keys[row].tobytes() for row in reasons)

    def others(self, rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
        """Leave out the rows that equal one that failed: it was in a slice before theirs."""
        return rows[[keys[row].tobytes() not in self._keys for row in rows.tolist()]] if self._keys else rows


def in_process_runner(batch_tokens: int = BATCH_TOKENS) -> TableRunner:
    """Make a runner that computes in this process, on the lease's first device, a CPU, and stores nothing."""
    return TableRunner(LocalRunner(WorkerSettings(cpu_batches(batch_tokens), workers_per_device=0)))
