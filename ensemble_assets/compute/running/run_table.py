"""Run a token table through a model: equal rows once, rows that an earlier run stored not at all.

The outputs of a row depend on its token ids and on everything that decides what a model computes from them: weights,
pooling, pruning, backend, precision and kind of device. ``row_store`` keeps them under a key of all that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.defaults import BATCH_TOKENS
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import NO_TOKENS, TableResult, merge_results
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import DistinctRows, shards
from ensemble_assets.compute.running.loaded_once import PartEvents
from ensemble_assets.compute.running.local_runner import LocalRunner, Runner
from ensemble_assets.compute.running.row_store import RowStore, drop_others, open_store, secret_of, store_name
from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows


@dataclass(frozen=True)
class TableRunner:
    """Runs the tables of stages.

    ``folder`` has the collection's row stores, one per model; None keeps nothing after a run. Rows are stored
    after every ``shard_tokens``, so a killed run loses at most this much; None runs all rows at once. A row with
    outputs of both kinds is computed where those per row are missing; those per token are kept beside them. Of outputs
    per token at most ``most_token_bytes`` stay on disk, as long as the table's own are not more.
    """

    runner: Runner
    folder: Path | None = None
    shard_tokens: int | None = None
    most_token_bytes: int = 4_000_000_000

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
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        rows: NDArray[np.int64] | None = None,
    ) -> TableResult:
        """Return the outputs of every row; errors are those of ``Runner``.

        The shards do not depend on how many rows are stored already. On a CPU, a run that goes on after a kill gives
        the same bytes as a run that was never killed. ``rows`` are numbers for events, if ``table`` is a part of the
        stage's.
        """
        started = time.perf_counter()
        events = events if rows is None else PartEvents(events, rows)
        distinct = DistinctRows.from_table(table, secret_of(self.folder) if self.folder is not None else b"")
        with self._stores(factory, lease) as (store, by_token):
            main = store if store.outputs else by_token
            stored = main.find(distinct.keys[distinct.first]).stored
            missing = np.sort(distinct.first[~stored])
            empty = table.lengths[missing] == 0
            failed = dict.fromkeys(missing[empty].tolist(), NO_TOKENS)
            missing = missing[~empty]
            if by_token.outputs:
                size = sum(np.prod(s.shape) * np.dtype(s.dtype).itemsize for s in by_token.outputs.values())
                new = int(size * table.lengths[missing].sum())
                by_token.make_room(new, self.most_token_bytes, by_token.find(distinct.keys))
            events.emit("batch.planned", rows=len(missing))
            parts = []
            for shard in shards(table.lengths, missing, self.shard_tokens):
                whole = np.array_equal(shard, np.arange(len(table)))  # then nothing needs to be copied
                shard_table = table if whole else take_rows(table, shard)
                part = self.runner(shard_table, factory, lease=lease, events=PartEvents(events, shard))
                good = np.setdiff1d(np.arange(len(shard)), list(part.failed_rows))
                outputs = dict(part.outputs)
                if part.failed_rows:  # else copies would be as large as all outputs
                    places_of = {name: spec.places(shard_table, good) for name, spec in factory.outputs.items()}
                    outputs = {name: values[places_of[name]] for name, values in outputs.items()}
                keys = distinct.keys[shard[good]]
                if by_token.outputs:
                    by_token.add(keys, outputs, part.precision, shard_table.lengths[good])
                if store.outputs:
                    store.add(keys, outputs, part.precision)
                failed |= {int(shard[row]): reason for row, reason in part.failed_rows.items()}
                parts.append(replace(part, outputs={}))  # the store has them
            places = main.find(distinct.keys)
            return replace(
                merge_results(parts),
                outputs=store.read(places) if store.outputs else {},
                by_token=by_token.tokens(by_token.find(distinct.keys)) if by_token.outputs else None,
                failed_rows=distinct.spread(failed),
                seconds=time.perf_counter() - started,
                distinct_rows=len(distinct.first),
                precision=main.precision(places),
                reused_rows=int(stored[distinct.group].sum()),
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


def in_process_runner(batch_tokens: int = BATCH_TOKENS) -> TableRunner:
    """Make a runner that computes in this process, on the lease's first device, a CPU, and stores nothing."""
    return TableRunner(LocalRunner(WorkerSettings(cpu_batches(batch_tokens), workers_per_device=0)))
