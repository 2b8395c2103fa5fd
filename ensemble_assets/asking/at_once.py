"""Run a few rows on a model that stays loaded: for questions, of whose time planning and measuring would take most."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, OutputSpec
from ensemble_assets.compute.batching.table_result import TableResult, TokenOutputs
from ensemble_assets.compute.devices.device import used_devices
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import row_keys
from ensemble_assets.compute.running.run_batch import OutputArrays
from ensemble_assets.compute.running.run_table import TableRunner, TableSlice
from ensemble_assets.compute.running.stored_rows.shards import TokenRows
from ensemble_assets.compute.running.stored_rows.store import find_tokens
from ensemble_assets.compute.running.worker_settings import cpu_batches, widen_batches
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable, take_rows

CACHE_BYTES = 768 * 2**20
"""Most bytes of states kept for later questions: about 8,000 passages of 240 tokens with states of width 384."""


class StateCache:
    """The states of the most recently used texts, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._states: OrderedDict[bytes, _TokensOfRow] = OrderedDict()

    def lookup(self, keys: Iterable[bytes]) -> dict[bytes, _TokensOfRow]:
        """Return the states that are here, and mark them as just used."""
        cached = {key: self._states[key] for key in keys if key in self._states}
        for key in cached:
            self._states.move_to_end(key)
        return cached

    def add(self, states: Mapping[bytes, _TokensOfRow]) -> None:
        """Add states, and drop the least recently used where there are too many bytes."""
        for key, value in states.items():
            self._states[key] = value
            self._bytes += value.nbytes
        while self._bytes > self._limit:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= dropped.nbytes


@dataclass(frozen=True)
class AtOnceRunner(TableRunner):
    """Runs tables of a few rows, with factories whose models stay loaded.

    The first table of a model is run as every table of a stage is: loading is what takes memory. So is a table where
    anything is unusual: an empty row, a batch that fails, an output that is not finite.

    Attributes:
        loaded: models that have run once, by identity and outputs.
        states: outputs per token of recent rows, which are candidates of one question after another.
        rows: the row stores of the bundle's runs, which are read and not changed; None without them.
        searches: in these stores, by identity and outputs of the model; None where they have nothing of it.
    """

    loaded: set[tuple[str, ...]] = field(default_factory=set)
    states: StateCache = field(default_factory=lambda: StateCache(CACHE_BYTES))
    rows: Path | None = None
    searches: dict[tuple[str, ...], Callable[[TokenTable], TokenRows] | None] = field(default_factory=dict)

    def __call__(
        self,
        table: TokenTable | Iterable[TableSlice],
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        rows: NDArray[np.int64] | None = None,
    ) -> TableResult:
        """Return the outputs of every row; see ``TableRunner``. Slices are not a few rows."""
        if not isinstance(table, TokenTable):
            return super().__call__(table, factory, lease=lease, events=events, rows=rows)
        model = (factory.identity, *factory.outputs)
        result = self._at_once(table, factory, lease) if table.lengths.all() else None
        if result is None:
            result = super().__call__(table, factory, lease=lease, events=events, rows=rows)
            self.loaded.add(model)
            if result.by_token is not None:
                self._remember(table, factory, result.by_token, np.arange(len(table)))
        return result

    def _at_once(self, table: TokenTable, factory: ForwardFactory, lease: Lease) -> TableResult | None:
        """Run the rows; None where the model was not loaded, or the usual way has to say what is wrong with them."""
        arrays = OutputArrays(
            factory.outputs, {name: np.zeros(spec.size(table), spec.dtype) for name, spec in factory.outputs.items()}
        )
        missing = self._recall(table, factory, lease, arrays)
        if len(missing) and (factory.identity, *factory.outputs) not in self.loaded:
            return None
        forward = factory.load(lease.devices[0].torch_device) if len(missing) else None
        try:
            for batch in _batches(table.lengths, missing, factory.width):
                assert forward is not None
                if arrays.store(table, batch.rows, forward(table, batch)):
                    return None
        except Exception:  # noqa: BLE001  # the usual way tells a lack of memory from a failure, and finds the row
            return None
        by_token = {name: arrays.arrays[name] for name in _per_token(factory.outputs)}
        tokens = _TokensInMemory(table, by_token) if by_token else None
        if tokens is not None:
            self._remember(table, factory, tokens, missing)
        return TableResult(
            outputs={name: values for name, values in arrays.arrays.items() if name not in by_token},
            tokens=int(table.lengths[missing].sum()),
            distinct_rows=len(missing),
            device=used_devices(lease.devices),
            precision=forward.precision if forward else "none",
            reused_rows=len(table) - len(missing),
            by_token=tokens,
        )

    def _recall(
        self, table: TokenTable, factory: ForwardFactory, lease: Lease, arrays: OutputArrays
    ) -> NDArray[np.int64]:
        """Write what is remembered or stored of the rows, and return the numbers of the others."""
        every = np.arange(len(table))
        if len(_per_token(factory.outputs)) < len(factory.outputs):  # a vector would be missing beside the states
            return every
        keys = _keys(table, factory)
        states = self.states.lookup(keys)
        for row, key in enumerate(keys):
            for name, values in states[key].outputs.items() if key in states else ():
                arrays.arrays[name][_span(table, row)] = values
        missing: NDArray[np.int64] = every[[key not in states for key in keys]]
        model = (factory.identity, *factory.outputs)
        if self.rows is not None and model not in self.searches:
            self.searches[model] = find_tokens(self.rows, factory, lease)
        find = self.searches.get(model)
        if find is None or not len(missing):
            return missing
        stored = find(take_rows(table, missing))
        here = np.flatnonzero(stored.lengths)
        for name in _per_token(factory.outputs) if len(here) else ():
            arrays.arrays[name][table.token_numbers(missing[here])] = stored.read(name, here)
        return np.delete(missing, here)

    def _remember(
        self, table: TokenTable, factory: ForwardFactory, by_token: TokenOutputs, rows: NDArray[np.int64]
    ) -> None:
        keys, names = _keys(table, factory), _per_token(factory.outputs)
        chosen = {keys[row] for row in rows.tolist()}
        new = chosen - self.states.lookup(chosen).keys()
        self.states.add(
            {
                key: _TokensOfRow({name: by_token.read(name, np.array([row])).copy() for name in names})
                for row, key in enumerate(keys)
                if key in new and by_token.lengths[row]
            }
        )


@dataclass(frozen=True)
class _TokensOfRow:
    outputs: Mapping[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.outputs.values())


@dataclass(frozen=True)
class _TokensInMemory:
    """Outputs per token of all rows of a table; see ``TokenOutputs``."""

    table: TokenTable
    outputs: Mapping[str, NDArray[Any]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.table.lengths

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        values: NDArray[Any] = self.outputs[name][self.table.token_numbers(rows)]
        return values


def _per_token(outputs: Mapping[str, OutputSpec]) -> list[str]:
    return [name for name, spec in outputs.items() if spec.per_token]


def _span(table: TokenTable, row: int) -> slice:
    return slice(int(table.offsets[row]), int(table.offsets[row + 1]))


def _keys(table: TokenTable, factory: ForwardFactory) -> list[bytes]:
    """Give a key of every row."""
    model = factory.identity.encode() + b"\0"
    return [model + key.tobytes() for key in row_keys(table)]


def _batches(lengths: NDArray[np.int64], rows: NDArray[np.int64], width: int) -> Iterator[Batch]:
    """Cut rows, longest first, into batches of a CPU's size."""
    most = widen_batches(cpu_batches(), width).sizes.max_tokens or 0
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    while len(ordered):
        longest = int(lengths[ordered[0]])
        size = max(1, most // longest)
        yield Batch(ordered[:size], longest)
        ordered = ordered[size:]
