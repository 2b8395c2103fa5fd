"""Fast stand-ins for models: small real tokenizers on disk, and forwards that compute something simple from token ids.

Faults are switched on by token id, so that a test plants them by putting a word into a text.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import ForwardFactory, OutputSpec
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import FolderSource, ModelKind, ModelSpec
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    "alpha", "beta", "gamma", "delta", "storm", "flood", "wind", "rain", "engine", "piston", "valve", "query",
    "broken", "nan", "huge", "##ing",
)  # fmt: skip
IDS = {word: number for number, word in enumerate((*SPECIALS, *WORDS))}
BERT, ROBERTA, BARE = "bert", "roberta", "bare"
DIMENSION = 8


def tokenizer(template: str = BERT, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer over letters and a few words, with BERT's, RoBERTa's or no special tokens."""
    made = Tokenizer(models.WordPiece(dict(IDS), unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
    if template == BERT:
        pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    elif template == ROBERTA:
        pair = "[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:0 [SEP]:0"
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    made.add_special_tokens(list(SPECIALS))
    return made


def model_folder(folder: Path, kind: ModelKind = "dense", template: str = BERT, **spec: Any) -> ModelSpec:
    """Writes what a model's folder needs to be found, tokenised with and completed; the weights are no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(template).save(str(folder / "tokenizer.json"))
    config = {"hidden_size": DIMENSION, "vocab_size": len(IDS), "max_position_embeddings": 512, "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    dimension = {"dense": DIMENSION, "sparse": len(IDS), "rerank": 1}[kind]
    return ModelSpec(
        **{
            "slug": folder.name,
            "kind": kind,
            "hf_model_id": f"test/{folder.name}",
            "source": FolderSource(str(folder)),
            "dimension": dimension,
            "max_tokens": 32,
            "pooling": "mean",
            "licence": "Apache-2.0",
            **spec,
        }
    )


def table_of(rows: list[list[int]], second_from: list[int] | None = None) -> TokenTable:
    """A token table from lists of ids."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    ids = np.array([token for row in rows for token in row], np.int32)
    second = None if second_from is None else np.array(second_from, np.int32)
    return TokenTable(ids, offsets, np.zeros(len(rows), np.bool_), second)


def run_here(
    table: TokenTable,
    factory: ForwardFactory,
    batch_tokens: int = 4096,
    events: EventLog | None = None,
) -> TableResult:
    """A table through a model in this process, as the CPU of a small host does it."""
    log = EventLog() if events is None else events
    return in_process_runner(batch_tokens)(table, factory, lease=Lease((CpuDevice(),)), events=log)


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and on which token ids or sizes."""

    raises_on: frozenset[int] = frozenset()
    raises_after: int = 1 << 60
    nan_on: frozenset[int] = frozenset()
    nan_in_fp32_too: bool = False
    most_tokens: int = 1 << 60
    message: str = "the secret text"


NO_FAULTS = Faults()


def faults(*, raises: str = "", nan: str = "", **other: Any) -> Faults:
    """Faults by word."""
    return Faults(
        raises_on=frozenset(IDS[word] for word in raises.split()),
        nan_on=frozenset(IDS[word] for word in nan.split()),
        **other,
    )


@dataclass
class Journal:
    """What a double's forwards were asked to do."""

    loaded: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    """Token ids of every row that was computed."""
    calls: int = 0

    @property
    def rows(self) -> list[int]:
        """Rows that were computed, in order, by their numbers in the table that the forward was given."""
        return [int(row) for batch in self.batches for row in batch.rows]


@dataclass(frozen=True)
class DoubleFactory(PlainFactory):
    """A model that needs no weights; ``outputs`` says which kind it plays."""

    outputs: Mapping[str, OutputSpec]
    faults: Faults = Faults()
    precision: str = "fp16"
    journal: Journal = field(default_factory=Journal)
    identity: str = "double"
    spec: ModelSpec = PlainFactory.spec

    def load(self, device: str) -> DoubleForward:
        self.journal.loaded.append(f"{self.precision}@{device}")
        return DoubleForward(self)

    def full_precision(self) -> DoubleFactory:
        return replace(self, precision="fp32")


class DoubleForward:
    """Every output of a row depends on that row's tokens only."""

    def __init__(self, factory: DoubleFactory) -> None:
        self.outputs = factory.outputs
        self.precision = factory.precision
        self._factory = factory

    def release(self) -> None:
        """Free nothing."""

    def __call__(self, table: TokenTable, batch: Batch) -> dict[str, np.ndarray]:
        faults, journal = self._factory.faults, self._factory.journal
        journal.calls += 1
        if batch.tokens > faults.most_tokens:
            raise DeviceOutOfMemoryError("too big")
        rows = [table.ids[table.offsets[row] : table.offsets[row + 1]].tolist() for row in batch.rows]
        assert max(map(len, rows)) == batch.longest
        if len(journal.rows) >= faults.raises_after or any(faults.raises_on & set(row) for row in rows):
            raise ValueError(faults.message)
        journal.batches.append(batch)
        journal.tokens += map(tuple, rows)
        results = [expected_outputs(self.outputs, row) for row in rows]
        for result, row in zip(results, rows, strict=True):
            bad = faults.nan_on & set(row) and (self.precision != "fp32" or faults.nan_in_fp32_too)
            for name, values in result.items():
                if bad and self.outputs[name].dtype == "float32":
                    result[name] = np.full_like(values, np.nan)
        return {name: np.stack([result[name] for result in results]) for name in self.outputs}


def expected_outputs(outputs: Mapping[str, OutputSpec], tokens: list[int]) -> dict[str, np.ndarray]:
    """What a double gives for one row, one output after another."""
    words = [token for token in tokens if token >= len(SPECIALS)]
    counts = np.bincount(words, minlength=len(IDS)).astype(np.float32)
    results: dict[str, np.ndarray] = {}
    for name, spec in outputs.items():
        if name == "vector":
            raw = np.array([sum((t * (i + 3)) % 7 for t in words) + 1 for i in range(spec.shape[0])], np.float32)
            results[name] = raw / np.linalg.norm(raw)
        elif name == "logit":
            results[name] = np.array(sum(t * (at + 1) for at, t in enumerate(tokens)) % 97, np.float32)
        elif name == "active":
            results[name] = np.array((counts > 0).sum(), np.int32)
        elif name == "index":
            best = np.argsort(-counts, kind="stable")[: spec.shape[0]]
            results[name] = np.where(counts[best] > 0, best, -1).astype(np.int32)
        elif name == "weight":
            full = np.log1p(counts)
            results[name] = np.sort(full)[::-1][: spec.shape[0]].copy() if "index" in outputs else full
    return results


VECTOR = {"vector": OutputSpec((DIMENSION,), "float32")}
LOGIT = {"logit": OutputSpec((), "float32")}


def dense_maker(planted: Faults = NO_FAULTS, journal: Journal | None = None, precision: str = "fp32") -> Any:
    """A ``make_factory`` for ``encode_dense``."""
    return lambda spec, files, runtime: DoubleFactory(VECTOR, planted, precision, journal or Journal(), spec=spec)


def rerank_maker(planted: Faults = NO_FAULTS, journal: Journal | None = None) -> Any:
    """A ``make_factory`` for ``rerank_candidates``."""
    return lambda spec, files, runtime: DoubleFactory(LOGIT, planted, "fp32", journal or Journal(), spec=spec)


def sparse_maker(planted: Faults = NO_FAULTS, journal: Journal | None = None) -> Any:
    """A ``make_factory`` for ``encode_sparse``."""

    def make(spec: ModelSpec, files: ModelFiles, runtime: Any, top_k: int) -> DoubleFactory:
        places = min(top_k, len(IDS)) or len(IDS)
        index = {"index": OutputSpec((places,), "int32")} if top_k else {}
        outputs = {**index, "weight": OutputSpec((places,), "float32"), "active": OutputSpec((), "int32")}
        return DoubleFactory(outputs, planted, "fp32", journal or Journal(), spec=spec)

    return make
