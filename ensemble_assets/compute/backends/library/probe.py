"""Compare a model's batches here with sentence-transformers' own call on fixed texts, before the model is used.

A model whose library batches differ is refused. A fast path whose results differ is not taken. So no model can give
other vectors or scores without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError, StageError
from ensemble_assets.compute.backends.forward import SMALLEST_NORM, Forward, Precision, Runtime
from ensemble_assets.compute.backends.library.bodies import body_of
from ensemble_assets.compute.backends.library.forward import LibraryFactory
from ensemble_assets.compute.backends.library.loading import load_library_model
from ensemble_assets.compute.backends.library.model import LibraryModel
from ensemble_assets.compute.backends.model_traits import MAXSIM, ModelTraits
from ensemble_assets.compute.backends.token_head import load_head
from ensemble_assets.compute.backends.token_states import SCALE, STATE, restored
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout, padded_arrays
from ensemble_assets.compute.tokens.token_tables import TASKS, Batch, TokenTable, join_tables, pair_table, single_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import ModelFiles, weight_bytes
from ensemble_assets.models.spec import ModelSpec

_LONG = (
    "Retrieval systems first collect candidates with an index, then score each candidate against the query. "
    "A chunk may hold code such as `def f(x): return x**2`, numbers like 3.14159, or names: Zürich, Ångström. "
)
DOCUMENTS = (
    "a",
    "Dense vectors, sparse weights and BM25 scores are combined.",
    "ALL CAPITALS, mixed Case and\ttabs  or   runs of spaces",
    "naïve café — 人工知能 и поиск 🙂 e\u0301",
    _LONG,
    _LONG * 3,
)
"""Documents of the probe: short, plain, capitals and white space, other scripts, and of some 55 and 165 tokens.

Longer than a local attention window, so that padding beyond it shows; twice as long would cost twice as much."""
QUERIES = ("what is a lease?", "How do SPLADE vectors differ from BM25 weights, and WHY?")
"""Queries of the probe."""


def overlong(limit: int) -> str:
    """A text of more than ``limit`` tokens: ``_LONG`` has over 40 in every vocabulary."""
    return _LONG * (limit // 40 + 1)


FP32_TOLERANCE = 1e-4
"""Largest distance of results in fp32, as ``Probe.judge`` measures it."""
HALF_COSINE = 0.995
"""Least cosine of two vectors of which one or both are of half precision: half a percent of its direction."""
LARGE = 2**30
"""Bytes of weight files from which on a model is probed in bf16: in fp32 it would take 1 GiB and more."""


class Probe:
    """The fixed texts of one model: its rows and the library's own results for them.

    Attributes:
        precision: number format of the library's results.
        table: rows of documents, then of queries; of every query with every document for a reranker.
        expected: ``[n, dimension]`` vectors or weights, or ``[n]`` scores; of a ColBERT model those of all tokens.
    """

    def __init__(self, model: LibraryModel, precision: Precision) -> None:
        self.spec = model.spec
        self.precision = precision
        self.many = model.spec.is_colbert
        if self.spec.kind == "rerank":
            self.pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
            self.table = model.rows(self.pairs, "document")
            scores = model.model.predict(
                self.pairs, batch_size=1, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )
            self.expected: NDArray[np.float32] = np.asarray(scores, np.float32)
        else:
            self.table = join_tables(model.rows(DOCUMENTS, "document"), model.rows(QUERIES, "query"))
            self.expected = self._encoded(model)

    def _encoded(self, model: LibraryModel) -> NDArray[np.float32]:
        words: dict[str, Any] = {"batch_size": 1, "show_progress_bar": False}  # without any padding
        words |= {"convert_to_sparse_tensor": False} if self.spec.kind == "sparse" else {}
        made = []
        for task, texts in (("document", DOCUMENTS), ("query", QUERIES)):
            own = model.own_prompt(task)
            encode = getattr(model.model, f"encode_{task}")
            vectors = encode(list(texts), **({} if own is None else {"prompt": own}), **words)
            joined = torch.cat(vectors) if self.many else torch.as_tensor(vectors)
            made.append(joined.float().cpu().numpy())
        return np.concatenate(made)

    def judge(self, forward: Forward) -> tuple[bool, float]:
        """Run a forward in batches of mixed lengths; return whether it gives the library's results, and how far off.

        The distance is the largest difference of a component, of a weight by the largest one if that is above 1, or of
        a score by the scores' spread. What rounding to half precision does to token vectors does not count.
        """
        results, target = self._run(forward), self.expected
        if len(results) != len(target):  # other tokens are compared
            return False, float("inf")
        if self.spec.kind == "dense" and not self.many:
            target = target / np.maximum(np.linalg.norm(target, axis=1, keepdims=True), SMALLEST_NORM)
        rounding = np.abs(results) / 2048 if self.many else 0.0
        off = max(0.0, float((np.abs(results - target) - rounding).max()))
        if self.spec.kind == "sparse":
            off /= max(1.0, float(target.max()))
        elif self.spec.kind == "rerank":
            off /= float(np.ptp(target)) or 1.0
            results, target = (results - results.mean())[None], (target - target.mean())[None]
        if "fp32" == self.precision == forward.precision:
            return off <= FP32_TOLERANCE, off
        products = (results * target).sum(axis=1)
        norms = np.linalg.norm(results, axis=1) * np.linalg.norm(target, axis=1)
        return bool((products >= HALF_COSINE * norms).all()), off

    def _run(self, forward: Forward) -> NDArray[np.float32]:
        table = self.table
        order = np.argsort(table.lengths, kind="stable")
        made: dict[int, NDArray[Any]] = {}
        # the shortest beside the longest, so that padding is heavy, and few rows as long as those
        for rows in (order[[0, -1]], order[[1, -2]], order[2:-2]):
            batch = Batch(rows, int(table.lengths[rows].max()))
            made.update(zip(rows.tolist(), self._by_row(forward(table, batch), table.lengths[rows]), strict=True))
        join = np.concatenate if self.many else np.stack
        return join([made[row] for row in range(len(table))]).astype(np.float32)

    def _by_row(self, outputs: Mapping[str, NDArray[Any]], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
        if not self.many:
            return list(outputs[{"dense": "vector", "sparse": "weight", "rerank": "logit"}[self.spec.kind]])
        tokens = zip(*(np.split(outputs[name], np.cumsum(lengths)[:-1]) for name in (STATE, SCALE)), strict=True)
        return [restored(codes, scales)[scales >= 0] for codes, scales in tokens]


@lru_cache(maxsize=1)
def probe_model(spec: ModelSpec, files: ModelFiles) -> tuple[ModelTraits, Probe]:
    """Load a model on the CPU and read its traits. The last result stays for the fast paths, which are judged later.

    A model of ``LARGE`` weights is loaded in bf16, so that this never takes more memory than a run of it.

    Raises:
        ModelUnavailableError: if it cannot be loaded, lacks trained weights, fails in the library's own call, or fails
            or gives other results in batches of mixed lengths.
    """
    runtime = Runtime(precision="bf16" if weight_bytes(files.folder) >= LARGE else "fp32")
    model = load_library_model(spec, files, runtime, "cpu")
    try:
        with torch.inference_mode():
            probe = Probe(model, runtime.precision)
    except (ModelUnavailableError, MemoryError):
        raise
    except Exception as error:
        # networks of any architecture run here for the first time, and their code raises what it likes
        raise ModelUnavailableError(
            f"{spec.slug}: sentence-transformers' own call fails on texts of up to {model.max_tokens or 700} tokens "
            f"({type(error).__name__}: {error}). Choose another model, or set a smaller max_tokens in a models file"
        ) from error
    traits = ModelTraits(
        dimension=probe.expected.shape[1] if probe.expected.ndim > 1 else 1,
        max_tokens=model.limit("document") if probe.many else model.max_tokens,
        prompts={task: prompt for task in TASKS if (prompt := model.prompt(task)) is not None},
        width=probe.expected.shape[1] if probe.many else _width(model),
        similarity=_similarity(model, probe),
        body=body_of(model),
        layouts=dict(model.layouts),
        head=0 if (head := load_head(files)) is None else len(head[1]),
        tokens="fast" if not probe.many and _fast_tokens_agree(files, model) else "library",
    )
    factory = LibraryFactory(replace(spec, dimension=traits.dimension), files, runtime, traits=traits)
    forward = factory.around(model, "cpu")
    otherwise = "Report this model, and choose another one meanwhile"
    try:
        agrees, difference = probe.judge(forward)
    except StageError as error:
        raise ModelUnavailableError(f"{error}, but not in sentence-transformers' own call. {otherwise}") from error
    if not agrees:
        raise ModelUnavailableError(
            f"{spec.slug}: batches of mixed lengths differ from sentence-transformers' own call by {difference:.1e} "
            f"(in fp32 at most {FP32_TOLERANCE:.0e}). {otherwise}"
        )
    return replace(traits, largest_difference=difference), probe


def _similarity(model: LibraryModel, probe: Probe) -> str:
    """The comparison that the model's files name; ``cosine`` where that puts vectors in the same order."""
    name = str(getattr(model.model, "similarity_fn_name", None) or "cosine")
    unit = np.allclose(np.linalg.norm(probe.expected, axis=-1), 1.0, atol=FP32_TOLERANCE)
    if name in MAXSIM:
        return name
    return "cosine" if unit and name != "manhattan" else "dot" if name == "dot_product" else name


def _width(model: LibraryModel) -> int:
    config: Any = getattr(model.model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "hidden_size", 0) or 0)


def _fast_tokens_agree(files: ModelFiles, model: LibraryModel) -> bool:
    """Whether the shared tokeniser makes the rows that the model's own preprocessing makes, cut ones included."""
    limit, layouts = model.max_tokens, model.layouts
    if not limit:
        return False
    texts = {"document": (*DOCUMENTS, overlong(limit)), "query": (*QUERIES, overlong(limit))}
    try:
        words = load_vocabulary(files)
        ids = {task: tokenise_bodies(texts[task], words, limit, model.prompt(task) or "") for task in TASKS}
        if model.spec.kind == "rerank":
            chosen = np.zeros((len(texts["query"]), len(texts["document"])), np.bool_)
            chosen[0], chosen[:, 0], chosen[-1, -3:] = True, True, True  # each text, and each side or both to be cut
            pairs = np.argwhere(chosen)
            fast = pair_table(ids["query"], ids["document"], pairs, words.template, limit)
            own = model.rows([(texts["query"][q], texts["document"][d]) for q, d in pairs.tolist()], "document")
            return _same_rows(fast, own, layouts["document"])
        return all(
            _same_rows(single_table(ids[task], words.template, limit), model.rows(texts[task], task), layouts[task])
            for task in TASKS
        )
    except (ModelUnavailableError, StageError, SettingsError, ValueError):
        return False


def _same_rows(fast: TokenTable, library: TokenTable, layout: FeatureLayout) -> bool:
    if not np.array_equal(fast.offsets, library.offsets):
        return False
    whole = Batch(np.arange(len(library)), int(library.lengths.max()))
    made, wanted = (padded_arrays(table, whole, layout) for table in (fast, library))
    return all(np.array_equal(made[name], wanted[name]) for name in wanted)
