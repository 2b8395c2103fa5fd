"""A model for simulated devices: how much memory a batch takes, how long, what goes wrong, and an answer to check.

The answer is arithmetic on token ids, so that a test can tell whether every row was computed, once, in which batch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, SimulatedSession

_RISE = 0.4  # share of a batch's time after which its memory peaks


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a model takes: weights, and ``per_token·tokens + per_square·tokens·longest + per_row·rows``.

    Attributes:
        unpadded_square: bytes per token and position that a batch without padding takes besides, by another kernel.
        noise: every batch's need varies by up to this share either way.
    """

    weights: int = 1_000_000_000
    per_token: float = 100_000.0
    per_square: float = 0.0
    per_row: float = 0.0
    noise: float = 0.0
    unpadded_square: float = 0.0

    def batch_bytes(self, tokens: int, longest: int, padded: bool = True) -> float:
        """Need of a batch on top of the weights, without noise."""
        square = self.per_square + (0.0 if padded else self.unpadded_square)
        return self.per_token * tokens + square * tokens * longest + self.per_row * tokens / longest


@dataclass(frozen=True)
class Speed:
    """Time of a batch in seconds: ``overhead + tokens / tokens_per_second``, tokens counted as padded.

    Attributes:
        start: seconds until a worker process can load a model: interpreter, libraries, context.
        load: seconds that loading takes.
        shape: seconds that the first batch of every shape takes besides (a library that plans its kernels by shape).
        steady: busy seconds after which the clocks fall.
        fallen: factor of a batch's time from then on.
        refusal: seconds until a batch that does not fit is refused.
        host: seconds of the host between two batches, unless the second one was prepared while the first ran.
    """

    tokens_per_second: float = 50_000.0
    overhead: float = 0.005
    load: float = 0.0
    start: float = 0.0
    shape: float = 0.0
    steady: float = float("inf")
    fallen: float = 1.0
    refusal: float = 0.0
    host: float = 0.0

    def seconds(self, batch: Batch) -> float:
        """Time of a batch."""
        return self.overhead + batch.tokens / self.tokens_per_second


@dataclass(frozen=True)
class Faults:
    """What goes wrong. Counters are per worker.

    Attributes:
        out_of_memory_from: padded tokens from which a batch never fits, whatever the memory.
        out_of_memory_share: chance of a batch not to fit for no reason.
        lost_at: the device is lost in its batch of this number (0 is the first).
        hangs_at: the device hangs in its batch of this number.
        only_on: devices (UUIDs) that are lost or hang; empty for all.
        raises_on: rows on which the model raises.
        poison_rows: rows on which the device is lost.
        not_finite_on: rows whose vectors are NaN, except in full precision.
    """

    out_of_memory_from: int | None = None
    out_of_memory_share: float = 0.0
    lost_at: int | None = None
    hangs_at: int | None = None
    only_on: frozenset[str] = frozenset()
    raises_on: frozenset[int] = frozenset()
    poison_rows: frozenset[int] = frozenset()
    not_finite_on: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SimulatedModel(PlainFactory):
    """A ``ForwardFactory`` for simulated devices.

    Outputs: ``vector`` ``[n, 4] float32``, which depends on the row's tokens only; ``company`` ``[n, 3] int64``: rows
    in the batch, its longest, and the process that ran it.

    Attributes:
        journal: a file to which each worker appends a line per batch (process, rows); None for none.
    """

    needs: MemoryNeeds = field(default_factory=MemoryNeeds)
    speed: Speed = field(default_factory=Speed)
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    precise: bool = False
    journal: Path | None = None

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Two arrays."""
        return {"vector": OutputSpec((4,), "float32"), "company": OutputSpec((3,), "int64")}

    @property
    def identity(self) -> str:
        """Changes with the memory needs."""
        return f"simulated:{self.needs}:{'fp32' if self.precise else 'fp16'}"

    def full_precision(self) -> SimulatedModel:
        """The same without NaNs."""
        return replace(self, precise=True)

    def load(self, device: str) -> SimulatedForward:
        """Put the weights on a device that this process has opened."""
        if device not in OPEN_SESSIONS:
            raise DeviceError(f"{device} is not a simulated device that was opened")
        if self.speed.start + self.speed.load:
            time.sleep(self.speed.start + self.speed.load)
        return self.place(OPEN_SESSIONS[device])

    def place(self, session: SimulatedSession) -> SimulatedForward:
        """Put the weights on an opened device, in no time, and load the kernels."""
        try:
            session.allocate(self.needs.weights)
            session.load_lazily()
        except RuntimeError as error:
            raise _our_error(error) from None
        return SimulatedForward(self, session)


class SimulatedForward:
    """The model on a device."""

    def __init__(self, model: SimulatedModel, session: SimulatedSession) -> None:
        self.outputs = model.outputs
        self.precision = "fp32" if model.precise else "fp16"
        self._model = model
        self._session = session
        self._random = random.Random(f"{model.seed} {session.device.uuid}")  # repeatable, not secret
        self._batches = 0
        self._busy = 0.0
        self._shapes: set[tuple[int, int]] = set()

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Take the time and the memory, then answer."""
        for pause in self.phases(batch, is_padded(table.lengths, batch)):
            time.sleep(min(pause, 1e6))
        if self._model.journal is not None:
            with self._model.journal.open("a") as file:
                file.write(f"{' '.join(map(str, batch.rows.tolist()))}\n")
        return self.answer(table, batch)

    def phases(self, batch: Batch, padded: bool = True) -> Iterator[float]:
        """Run a batch; yields seconds that pass between one change of memory and the next.

        Raises:
            DeviceOutOfMemoryError: if it does not fit, or as the faults say.
            DeviceError: if the device is lost.
            ModelFailedError: on rows that the faults name.
        """
        faults, number = self._model.faults, self._batches
        self._batches += 1
        afflicted = not faults.only_on or self._session.device.uuid in faults.only_on
        if afflicted and number == faults.hangs_at:
            yield float("inf")
        noise = 1 + self._model.needs.noise * self._random.uniform(-1, 1)
        need = int(self._model.needs.batch_bytes(batch.tokens, batch.longest, padded) * noise)
        chance = self._random.random() < faults.out_of_memory_share
        seconds = self._seconds(batch)
        rows = batch.rows.tolist()
        taken = 0
        self._session.fragment()
        try:
            for late, count in self._session.device.late_growth:
                if late == number:
                    self._session.grow_outside(count)
            for share, pause in ((0.5, _RISE), (0.5, 1 - _RISE)):
                self._session.allocate(int(need * share))
                taken += int(need * share)
                yield seconds * pause
                if chance or batch.tokens >= (faults.out_of_memory_from or batch.tokens + 1):
                    raise DeviceOutOfMemoryError("as the faults say")
                if (afflicted and number == faults.lost_at) or faults.poison_rows.intersection(rows):
                    raise DeviceError(f"{self._session.device.uuid} was lost. Run again")
            if faults.raises_on.intersection(rows):
                raise ModelFailedError("simulated", "ValueError", batch.size, batch.longest)
        except (RuntimeError, DeviceOutOfMemoryError) as error:
            yield self._model.speed.refusal
            raise (error if isinstance(error, DeviceOutOfMemoryError) else _our_error(error)) from None
        finally:
            self._session.free(taken)

    def _seconds(self, batch: Batch) -> float:
        speed = self._model.speed
        seconds = speed.seconds(batch) * (speed.fallen if self._busy >= speed.steady else 1.0)
        if (batch.size, batch.longest) not in self._shapes:
            self._shapes.add((batch.size, batch.longest))
            seconds += speed.shape
        self._busy += seconds
        return seconds

    def answer(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """The outputs of a batch."""
        import os

        vectors = np.stack([expected_vector(table, int(row)) for row in batch.rows])
        if not self._model.precise:
            vectors[[int(row) in self._model.faults.not_finite_on for row in batch.rows]] = np.nan
        company = np.tile(np.array([batch.size, batch.longest, os.getpid()]), (batch.size, 1))
        return {"vector": vectors, "company": company}


def is_padded(lengths: NDArray[np.int64], batch: Batch) -> bool:
    """Whether a row of the batch is shorter than its longest."""
    return bool((lengths[batch.rows] < batch.longest).any())


def _our_error(error: RuntimeError) -> Exception:
    """What a torch forward makes of an error of the device."""
    from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory

    if is_out_of_memory(error):
        return DeviceOutOfMemoryError(str(error))
    return DeviceError(str(error))


def expected_vector(table: TokenTable, row: int) -> NDArray[np.float32]:
    """The ``[4] float32`` that a simulated model answers for a row."""
    ids = table.ids[table.offsets[row] : table.offsets[row + 1]].astype(np.float64)
    return np.array([len(ids), ids.sum(), (ids * np.arange(1, len(ids) + 1)).sum(), ids.max(initial=0)], np.float32)
