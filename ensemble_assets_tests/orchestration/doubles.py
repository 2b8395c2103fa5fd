"""Fast stand-ins for the three encoders, with faults on demand. Tokenisation, engine and stages around them are real.

A text's dense vector is its bag of tokens folded into 64 buckets, its sparse vector its tokens, a pair's logit the
number of tokens that both sides share: crude, deterministic, and enough for searches to find what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.library.describe import describe
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

Fault = Callable[[int], bool]
"""From a row number to whether the model raises on it."""

BUCKETS, TERMS = 64, 256


def never(row: int) -> bool:
    return False


def always(row: int) -> bool:
    return True


@dataclass
class Double(PlainFactory):
    """A factory and its forward in one."""

    compute: Callable[[TokenTable, int], Mapping[str, np.ndarray]]
    outputs: Mapping[str, OutputSpec]
    identity: str
    fault: Fault = never
    missing: bool = False
    precision: str = "fp32"
    calls: list[int] = field(default_factory=list)
    spec: ModelSpec = PlainFactory.spec

    def load(self, device: str) -> Double:
        if self.missing:
            raise ModelUnavailableError(f"{self.identity}: not here")
        return self

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        self.calls.append(batch.size)
        if any(self.fault(int(row)) for row in batch.rows):
            raise ValueError("the text itself, which must not get out: canary-4711")
        rows = [self.compute(table, int(row)) for row in batch.rows]
        return {name: np.stack([row[name] for row in rows]) for name in self.outputs}


def tokens_of(table: TokenTable, row: int) -> np.ndarray:
    return table.ids[table.offsets[row] : table.offsets[row + 1]]


def _dense(table: TokenTable, row: int) -> Mapping[str, np.ndarray]:
    vector = np.bincount(tokens_of(table, row) % BUCKETS, minlength=BUCKETS).astype(np.float32)
    return {"vector": vector / np.linalg.norm(vector)}


def _long_dense(table: TokenTable, row: int) -> Mapping[str, np.ndarray]:
    return _dense(table, row) | {"norm": np.float32(len(tokens_of(table, row)))}


def _sparse(table: TokenTable, row: int) -> Mapping[str, np.ndarray]:
    terms, counts = np.unique(tokens_of(table, row)[1:-1], return_counts=True)
    index, weight = np.full(TERMS, -1, np.int32), np.zeros(TERMS, np.float32)
    index[: len(terms)], weight[: len(terms)] = terms[:TERMS], np.log1p(counts[:TERMS])
    return {"index": index, "weight": weight, "active": np.int32(len(terms))}


def _pair(table: TokenTable, row: int) -> Mapping[str, np.ndarray]:
    assert table.second_from is not None
    tokens, border = tokens_of(table, row), int(table.second_from[row])
    return {"logit": np.float32(len(set(tokens[:border].tolist()) & set(tokens[border:].tolist())))}


def dense_double(fault: Fault = never, missing: bool = False) -> Callable[..., Double]:
    def make(spec: ModelSpec, files: ModelFiles, *settings: Any) -> Double:
        outputs = {"vector": OutputSpec((BUCKETS,), np.float32)}
        return Double(_dense, outputs, spec.slug, fault, missing, spec=describe(spec, files, None).spec)

    return make


def dot_double(spec: ModelSpec, files: ModelFiles, *settings: Any) -> Double:
    """An encoder meant for dot products: a vector is as long as its text has tokens."""
    outputs = {"vector": OutputSpec((BUCKETS,), np.float32), "norm": OutputSpec((), np.float32)}
    return Double(_long_dense, outputs, spec.slug, spec=describe(spec, files, None).spec)


def sparse_double(fault: Fault = never, missing: bool = False) -> Callable[..., Double]:
    outputs = {
        "index": OutputSpec((TERMS,), np.int32),
        "weight": OutputSpec((TERMS,), np.float32),
        "active": OutputSpec((), np.int32),
    }

    def make(spec: ModelSpec, files: ModelFiles, *settings: Any) -> Double:
        return Double(_sparse, outputs, spec.slug, fault, missing, spec=describe(spec, files, None).spec)

    return make


def rerank_double(fault: Fault = never, missing: bool = False) -> Callable[..., Double]:
    def make(spec: ModelSpec, files: ModelFiles, *settings: Any) -> Double:
        outputs = {"logit": OutputSpec((), np.float32)}
        return Double(_pair, outputs, spec.slug, fault, missing, spec=describe(spec, files, None).spec)

    return make
