"""A double in trouble: it takes a simulated device's memory, kills its worker once, gives NaN, quotes what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.orchestration.doubles import Double
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS


@dataclass
class Troubled(PlainFactory):
    """Factory and forward around a double.

    Attributes:
        bytes_per_token: taken of the simulated device during a batch.
        dies_once: a file; the first batch that finds it missing makes it and ends its process.
        not_finite_on: rows whose results are NaN, except in full precision.
        raises_on: rows on which it raises.
        says: message of that exception.
    """

    inner: Double
    bytes_per_token: int = 0
    dies_once: Path | None = None
    not_finite_on: frozenset[int] = frozenset()
    raises_on: frozenset[int] | None = frozenset()
    says: str = ""
    precise: bool = False
    device: str = ""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return self.inner.outputs

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def spec(self) -> ModelSpec:
        return self.inner.spec

    @property
    def precision(self) -> str:
        return "fp32" if self.precise else "fp16"

    def full_precision(self) -> Troubled:
        return replace(self, precise=True)

    def load(self, device: str) -> Troubled:
        return replace(self, inner=self.inner.load(device), device=device)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        if self.dies_once is not None and not self.dies_once.exists():
            self.dies_once.touch()
            os._exit(7)
        if self.bytes_per_token:
            session = OPEN_SESSIONS[self.device]
            session.allocate(self.bytes_per_token * batch.tokens)
            session.free(self.bytes_per_token * batch.tokens)
        rows = set(batch.rows.tolist())
        if self.raises_on is None or rows & self.raises_on:
            raise ValueError(self.says)
        results = {name: np.array(values) for name, values in self.inner(table, batch).items()}
        for values in results.values():
            if values.dtype.kind == "f" and not self.precise:
                values[[row in self.not_finite_on for row in batch.rows.tolist()]] = np.nan
        return results


def troubled(make: Callable[..., Double], **trouble: Any) -> Callable[..., Troubled]:
    """A factory maker like ``make``, in trouble."""

    def troubled_make(*arguments: Any) -> Troubled:
        return Troubled(make(*arguments), **trouble)

    return troubled_make
