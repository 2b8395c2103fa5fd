"""Runs a token table through a model: de-duplicate, order by length, plan batches, run, check, split what fails.

One device, in this process. What devices there are, how much memory a batch may take and worker processes are other
modules; whatever runs batches has ``context.Runner``'s shape, so that stages do not care which it is.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import psutil
from numpy.typing import NDArray

from ensemble_assets.compute.batch_plan import DEFAULT_BATCH_TOKENS, halves, plan_batches
from ensemble_assets.compute.lease_shape import LOCAL_DEVICES, Lease
from ensemble_assets.compute.work import (
    Batch,
    DeviceOutOfMemoryError,
    Forward,
    ForwardFactory,
    ModelFailedError,
    OutputSpec,
    TokenTable,
    failure_word,
)
from ensemble_assets.core.errors import DeviceError, ModelUnavailableError
from ensemble_assets.core.events import EventSink

OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
NO_TOKENS = "no_tokens"

_PATIENCE = 8
"""Single rows that may fail one after another before the engine asks whether anything works at all."""


@dataclass(frozen=True)
class EngineResult:
    """What came out of a run.

    Attributes:
        outputs: ``[n, *shape]`` per output of the forward; rows that failed are zero.
        failed_rows: row -> why: ``out_of_memory``, ``not_finite``, ``no_tokens`` or ``failure_word`` of an exception.
        seconds: wall time, loading included.
        tokens: tokens of the distinct rows that ran, padding not counted.
        peak_bytes: allocator peak on CUDA; on CPU the process's resident bytes, looked at after every batch.
        precision_redone: distinct rows computed again in fp32 because they were not finite.
        distinct_rows: rows that were different from all before.
        device: where it ran, ``"none"`` if there was nothing to run.
        precision: what the forward computed in.
        largest_batch: rows of the largest batch that worked.
    """

    outputs: dict[str, NDArray[Any]]
    failed_rows: dict[int, str]
    seconds: float
    tokens: int
    peak_bytes: int
    precision_redone: int
    distinct_rows: int
    device: str
    precision: str
    largest_batch: int = 0


@runtime_checkable
class HasFullPrecision(Protocol):
    """A factory that can make the same model in fp32."""

    def full_precision(self) -> ForwardFactory:
        """The same model in fp32."""
        ...


@runtime_checkable
class HasRelease(Protocol):
    """A forward that can give its memory back at once: networks are in reference cycles and would wait for a sweep."""

    def release(self) -> None:
        """Drop the weights; the forward is of no use afterwards."""
        ...


def run(
    table: TokenTable,
    factory: ForwardFactory,
    *,
    lease: Lease = LOCAL_DEVICES,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    events: EventSink,
    folder: Path | None = None,
) -> EngineResult:
    """Run every row of ``table`` through the model on the first leased device.

    Args:
        table: ``n`` rows.
        factory: the model.
        lease: only its first device is used here.
        batch_tokens: padded tokens per batch; a longer row is a batch of its own.
        events: gets ``batch.done`` per batch and ``mitigation.*`` for whatever went wrong.
        folder: outputs become memory-mapped ``<output>.npy`` files in it; None keeps them in memory.

    Raises:
        ModelUnavailableError: if the model cannot be loaded.
        DeviceOutOfMemoryError: if its weights do not fit.
        DeviceError: if the device is lost.
    """
    started = time.perf_counter()
    device = lease.devices[0].torch_device
    same_as = first_equal_rows(table)
    distinct = np.flatnonzero(same_as == np.arange(len(table)))
    outputs = _allocate(factory.outputs, len(table), folder)
    rows = distinct[table.lengths[distinct] > 0]
    state = _Pass(table, outputs, events, device)
    state.failed = dict.fromkeys(distinct[table.lengths[distinct] == 0].tolist(), NO_TOKENS)
    redone = 0
    if len(rows):
        state.run(factory, plan_batches(table.lengths, rows, batch_tokens))
        redone = _redo_in_fp32(state, factory, batch_tokens)
    _copy_repeats(outputs, same_as)
    failed = {row: state.failed[first] for row, first in enumerate(same_as.tolist()) if first in state.failed}
    return EngineResult(
        outputs=outputs,
        failed_rows=failed,
        seconds=time.perf_counter() - started,
        tokens=int(table.lengths[rows].sum()),
        peak_bytes=state.peak_bytes,
        precision_redone=redone,
        distinct_rows=len(distinct),
        device=device if len(rows) else "none",
        precision=state.precision,
        largest_batch=state.largest_batch,
    )


def first_equal_rows(table: TokenTable) -> NDArray[np.int64]:
    """For every row the first row with the same tokens and segments (itself where there is none), ``[n] int64``."""
    first: dict[bytes, int] = {}
    same_as = np.empty(len(table), np.int64)
    bounds = table.offsets.tolist()
    seconds = None if table.second_from is None else table.second_from.tolist()
    for row in range(len(table)):
        digest = hashlib.blake2b(table.ids[bounds[row] : bounds[row + 1]].tobytes(), digest_size=16)
        if seconds is not None:
            digest.update(seconds[row].to_bytes(8, "little"))
        same_as[row] = first.setdefault(digest.digest(), row)
    return same_as


@dataclass
class _Pass:
    """One model's way through the batches; keeps what failed."""

    table: TokenTable
    outputs: dict[str, NDArray[Any]]
    events: EventSink
    device: str
    failed: dict[int, str] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    precision: str = "none"
    largest_batch: int = 0

    def run(self, factory: ForwardFactory, batches: Sequence[Batch]) -> None:
        """Load, run every batch, unload."""
        forward = factory.load(self.device)
        self.precision = getattr(forward, "precision", "fp32")
        try:
            self._run(forward, deque(batches))
        finally:
            if isinstance(forward, HasRelease):
                forward.release()
            del forward
            _free_cache(self.device)

    def _run(self, forward: Forward, todo: deque[Batch]) -> None:
        strikes = 0
        while todo:
            batch = todo.popleft()
            reason = self._attempt(forward, batch)
            if reason is None:
                strikes = 0
            elif batch.size > 1:
                self.events.emit("mitigation.split", rows=batch.size, longest=batch.longest, reason=reason)
                todo.extendleft(reversed(halves(batch, self.table.lengths)))
            else:
                self._fail(batch, reason)
                strikes += 1
                if strikes >= _PATIENCE and todo:
                    strikes = 0
                    self._give_up_unless_shortest_works(forward, todo)

    def _attempt(self, forward: Forward, batch: Batch) -> str | None:
        """Run one batch and store its rows; the reason if it raised, else None."""
        started = time.perf_counter()
        try:
            results = forward(self.table, batch)
        except DeviceOutOfMemoryError:
            return OUT_OF_MEMORY
        except DeviceError:
            raise
        except ModelFailedError as error:
            return error.reason
        except Exception as error:  # noqa: BLE001  # a row's failure is recorded and the stage decides what it means
            return failure_word(error)
        finite = np.ones(batch.size, np.bool_)
        for name, values in results.items():
            self.outputs[name][batch.rows] = values
            if values.dtype.kind == "f":
                finite &= np.isfinite(values).reshape(batch.size, -1).all(axis=1)
        self.not_finite += batch.rows[~finite].tolist()
        self.largest_batch = max(self.largest_batch, batch.size)
        self.peak_bytes = max(self.peak_bytes, _memory_now(self.device))
        seconds = time.perf_counter() - started
        self.events.emit("batch.done", rows=batch.size, longest=batch.longest, seconds=seconds, device=self.device)
        return None

    def _give_up_unless_shortest_works(self, forward: Forward, todo: deque[Batch]) -> None:
        """Long rows may fail in a row; a model that fails on the shortest one too is broken: the rest has failed."""
        last = todo.pop()
        row = last.rows[-1:]
        shortest = Batch(row, int(self.table.lengths[row[0]]))
        reason = self._attempt(forward, shortest)
        if last.size > 1:
            todo.append(Batch(last.rows[:-1], last.longest))
        if reason is None:
            return
        self._fail(shortest, reason)
        self.events.emit("mitigation.gave_up", rows=sum(batch.size for batch in todo), reason=reason)
        for batch in todo:
            self.failed.update(dict.fromkeys(batch.rows.tolist(), reason))
        todo.clear()

    def _fail(self, batch: Batch, reason: str) -> None:
        self.failed[int(batch.rows[0])] = reason
        self.events.emit("mitigation.row_failed", row=int(batch.rows[0]), longest=batch.longest, reason=reason)


def _redo_in_fp32(state: _Pass, factory: ForwardFactory, batch_tokens: int) -> int:
    """Compute rows that were not finite again in fp32, after the first model is gone; the number of rows.

    Rows that stay not finite have failed, and read as zeros.
    """
    rows = np.array(sorted(state.not_finite), np.int64)
    if not len(rows):
        return 0
    state.events.emit("mitigation.precision", rows=len(rows), precision="fp32")
    state.not_finite = []
    if isinstance(factory, HasFullPrecision):
        first_precision = state.precision
        try:
            state.run(factory.full_precision(), plan_batches(state.table.lengths, rows, batch_tokens))
        except (ModelUnavailableError, DeviceOutOfMemoryError):
            state.not_finite = rows.tolist()
        state.precision = first_precision
    else:
        state.not_finite = rows.tolist()
    for row in state.not_finite:
        state.failed[row] = NOT_FINITE
    for row in state.failed:
        for values in state.outputs.values():
            values[row] = 0
    return len(rows)


def _allocate(outputs: Mapping[str, OutputSpec], rows: int, folder: Path | None) -> dict[str, NDArray[Any]]:
    if folder is None:
        return {name: np.zeros((rows, *spec.shape), spec.dtype) for name, spec in outputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.dtype(spec.dtype), shape=(rows, *spec.shape)
        )
        for name, spec in outputs.items()
    }


def _copy_repeats(outputs: dict[str, NDArray[Any]], same_as: NDArray[np.int64], step: int = 8192) -> None:
    repeats = np.flatnonzero(same_as != np.arange(len(same_as)))
    for start in range(0, len(repeats), step):
        some = repeats[start : start + step]
        for values in outputs.values():
            values[some] = values[same_as[some]]


def _memory_now(device: str) -> int:
    if device.startswith("cuda"):
        import torch  # the engine itself does not need it

        return int(torch.cuda.max_memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def _free_cache(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
