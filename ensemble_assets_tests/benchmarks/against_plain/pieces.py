"""The measured pieces of ``against_plain``: each runs in a process of its own and returns numbers for JSON.

Pieces leave what they made in the work folder, so that the other side's can be compared with it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble_assets.artefacts.store import artefact_store
from ensemble_assets.collection.folders import discover
from ensemble_assets.common.events import EventLog
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.planning.calibration import Sample, read_sample
from ensemble_assets.settings import Settings, resolve

DENSE, SPARSE, RERANK = (MODELS[slug] for slug in ("all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny"))
DEPTH = 20


def settings_for(work: Path) -> Settings:
    """Defaults, with everything that is written below the work folder; nothing is reused from earlier runs."""
    overrides = {
        "paths.chunked_dir": str(work / "corpora"),
        "paths.output_dir": str(work / "output"),
        "paths.cache_dir": str(work / "cache"),
        "paths.key_file": str(work / "key"),
        "paths.lock_dir": str(work / "locks"),
        "rerank.depth": DEPTH,
        "rerank.budget": "off",
    }
    return resolve(overrides, environment=dict(os.environ)).settings


def texts_of(work: Path) -> Sample:
    """Chunks and queries as the pipeline reads them; both sides encode the same strings."""
    return read_sample(settings_for(work), discover(work / "corpora").collections[0])


def run_piece(name: str, work: Path) -> dict[str, Any]:
    """Measure one piece in this process."""
    made = PIECES[name](work)
    return {**made, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Most resident memory that this process, or the largest it waited for, ever had, 10⁶ bytes."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024 / 1e6


def ours_run(work: Path) -> dict[str, Any]:
    """The whole default run through the command line, depth not limited; leaves the pairs that both sides score."""
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "ensemble_assets.cli", "run", "--chunked-dir", str(work / "corpora"), "--json"]
    command += ["--output-dir", str(output), "--set", "rerank.budget=off", "--set", f"rerank.depth={DEPTH}"]
    command += ["--set", f"paths.cache_dir={work / 'cache'}", "--set", f"paths.key_file={work / 'key'}"]
    command += ["--set", f"paths.lock_dir={work / 'locks'}"]  # nobody else's leases are waited for
    started = time.perf_counter()
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    stages = json.loads(finished.stdout)["collections"][0]["stages"]
    store = artefact_store(str(output / ".artifacts"), work / "cache")
    candidates = store.load("subset", "fused_candidates").frame("candidates")
    pairs = candidates.filter(pl.col("rank") <= DEPTH).select("public_id", "row", "rank")
    (work / "made").mkdir(exist_ok=True)
    pairs.write_parquet(work / "made" / "pairs.parquet")
    candidates.write_parquet(work / "made" / "candidates.parquet")
    return {"command_seconds": seconds, "stage_seconds": {one["stage"]: one["wall_seconds"] for one in stages}}


def plain_dense(work: Path) -> dict[str, Any]:
    """``SentenceTransformer(folder).encode(texts)``."""
    from sentence_transformers import SentenceTransformer

    texts = texts_of(work).chunks["text"].to_list()
    started = time.perf_counter()
    model = SentenceTransformer(str(locate(DENSE).folder), device=None)
    loaded = time.perf_counter()
    vectors = model.encode(texts)
    ended = time.perf_counter()
    _save(work, "plain-dense", vectors=np.asarray(vectors, np.float32))
    return _plain_seconds(started, loaded, ended, len(texts))


def plain_sparse(work: Path, max_tokens: int | None = None, name: str = "plain-sparse") -> dict[str, Any]:
    """``SparseEncoder(folder).encode_document(texts)``."""
    import torch
    from sentence_transformers import SparseEncoder

    texts = texts_of(work).searched.to_list()
    started = time.perf_counter()
    model = SparseEncoder(str(locate(SPARSE).folder))
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    loaded = time.perf_counter()
    encoded = model.encode_document(texts)
    ended = time.perf_counter()
    sparse = encoded.to_sparse_csr() if encoded.layout != torch.sparse_csr else encoded
    _save(
        work,
        name,
        indptr=sparse.crow_indices().numpy(),
        indices=sparse.col_indices().numpy(),
        values=sparse.values().numpy(),
    )
    return {**_plain_seconds(started, loaded, ended, len(texts)), "max_tokens": int(model.max_seq_length)}


def plain_rerank(work: Path, max_tokens: int | None = None, name: str = "plain-rerank") -> dict[str, Any]:
    """``CrossEncoder(folder).predict(pairs)`` on the pairs that the pipeline scores."""
    from sentence_transformers import CrossEncoder

    sample, pairs = texts_of(work), pl.read_parquet(work / "made" / "pairs.parquet")
    queries = dict(sample.queries.select("public_id", "text").iter_rows())
    chunks = sample.searched.to_list()
    texts = [(queries[query], chunks[row]) for query, row, _ in pairs.iter_rows()]
    started = time.perf_counter()
    folder = str(locate(RERANK).folder)
    model = CrossEncoder(folder) if max_tokens is None else CrossEncoder(folder, max_length=max_tokens)
    loaded = time.perf_counter()
    scores = model.predict(texts)
    ended = time.perf_counter()
    _save(work, name, scores=np.asarray(scores, np.float32))
    return _plain_seconds(started, loaded, ended, len(texts))


def ours_dense(work: Path) -> dict[str, Any]:
    """The dense stage, chunks and queries, and how its vectors agree with the plain ones."""
    from ensemble_assets.compute.stages.dense import encode_dense

    sample, context = texts_of(work), _context(work)
    started = time.perf_counter()
    result = encode_dense(sample.chunks["text"], sample.queries["text"], (DENSE,), context)
    seconds = time.perf_counter() - started
    made: dict[str, Any] = {"seconds": seconds, "precision": result.record.precision, "items": result.record.items}
    plain = _load(work, "plain-dense")
    if plain:
        unit = plain["vectors"] / np.linalg.norm(plain["vectors"], axis=1, keepdims=True)
        cosines = np.einsum("ij,ij->i", unit.astype(np.float64), result.models[0].chunks.astype(np.float64))
        made |= {"least_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
    return made


def ours_sparse(work: Path) -> dict[str, Any]:
    """The sparse stage, and how its weights agree with the plain ones."""
    from ensemble_assets.compute.stages.sparse import encode_sparse

    sample, context = texts_of(work), _context(work)
    chunks = sample.searched
    started = time.perf_counter()
    result = encode_sparse(chunks, sample.chunks["metadata"], sample.queries["text"], (SPARSE,), context)
    seconds = time.perf_counter() - started
    made: dict[str, Any] = {"seconds": seconds, "precision": result.record.precision, "items": result.record.items}
    plain = _load(work, "plain-sparse-same-length") or _load(work, "plain-sparse")
    if plain:
        made |= _weights_agree(plain, result.chunks, _short(chunks, SPARSE))
    return made


def ours_rerank(work: Path) -> dict[str, Any]:
    """The rerank stage on the pipeline's candidates, and how its scores agree with the plain ones."""
    from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates

    sample, context = texts_of(work), _context(work)
    candidates = pl.read_parquet(work / "made" / "candidates.parquet")
    chunks = sample.searched
    started = time.perf_counter()
    result = rerank_candidates(candidates, chunks, sample.queries, RERANK, context, RerankOptions(depth=DEPTH))
    seconds = time.perf_counter() - started
    made: dict[str, Any] = {"seconds": seconds, "precision": result.record.precision, "items": result.record.items}
    plain = _load(work, "plain-rerank-same-length") or _load(work, "plain-rerank")
    if plain:
        pairs = pl.read_parquet(work / "made" / "pairs.parquet").with_columns(pl.Series("plain", plain["scores"]))
        scored = result.reranked.filter("reranked").select("public_id", "row", "rerank_score")
        both = pairs.join(scored, on=["public_id", "row"], how="inner", validate="1:1")
        ours = 1 / (1 + np.exp(-both["rerank_score"].to_numpy().astype(np.float64)))  # predict applies a sigmoid
        made |= {
            "compared_pairs": both.height,
            "largest_score_difference": float(np.abs(ours - both["plain"].to_numpy()).max()),
            "mean_score_difference": float(np.abs(ours - both["plain"].to_numpy()).mean()),
        }
    return made


def ours_warm(work: Path) -> dict[str, Any]:
    """Not shown: lets backends convert and compile what they keep, which happens once per machine.

    Whether the sparse head is compiled depends on how much there is to do, so that stage gets all chunks.
    """
    from ensemble_assets.planning.calibration import run_stage

    sample = texts_of(work)
    few = Sample(sample.chunks.head(8), sample.queries)
    for stage in ("dense", "rerank"):
        run_stage(stage, few, settings_for(work), Computing())
    ours_sparse(work)
    return {"seconds": 0.0}


PIECES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours-warm": ours_warm,
    "ours-run": ours_run,
    "plain-dense": plain_dense,
    "plain-sparse": plain_sparse,
    "plain-sparse-same-length": lambda work: plain_sparse(work, SPARSE.max_tokens, "plain-sparse-same-length"),
    "plain-rerank": plain_rerank,
    "plain-rerank-same-length": lambda work: plain_rerank(work, RERANK.max_tokens, "plain-rerank-same-length"),
    "ours-dense": ours_dense,
    "ours-sparse": ours_sparse,
    "ours-rerank": ours_rerank,
}
"""In the order in which they need each other's results."""


def _context(work: Path) -> Any:
    """Imports first, so that they are not counted."""
    import ensemble_assets.compute.stages.rerank.stage  # noqa: F401 - with it everything that the three stages import

    return Computing().context(ComputeRun(settings_for(work), "benchmark", EventLog()))


def _plain_seconds(started: float, loaded: float, ended: float, items: int) -> dict[str, Any]:
    return {"seconds": ended - started, "load_seconds": loaded - started, "items": items}


def _save(work: Path, name: str, **arrays: np.ndarray) -> None:
    (work / "made").mkdir(exist_ok=True)
    np.savez(work / "made" / f"{name}.npz", allow_pickle=False, **arrays)


def _load(work: Path, name: str) -> dict[str, np.ndarray]:
    path = work / "made" / f"{name}.npz"
    return dict(np.load(path)) if path.exists() else {}


def _short(texts: pl.Series, spec: ModelSpec) -> np.ndarray:
    """Whether a text is cut by neither side: only those have the same input whatever the length limits."""
    from ensemble_assets.planning.planner import token_lengths

    return token_lengths(texts, spec, resolve().settings) <= spec.max_tokens - 2


def _weights_agree(plain: dict[str, np.ndarray], ours: Any, short: np.ndarray) -> dict[str, Any]:
    """Largest difference of a kept weight, and cosines of whole rows, over texts that are not cut."""
    worst, cosines = 0.0, []
    for row in np.flatnonzero(short):
        low, high = plain["indptr"][row : row + 2]
        weights = np.zeros(SPARSE.dimension)
        weights[plain["indices"][low:high]] = plain["values"][low:high]
        kept = slice(int(ours.indptr[row]), int(ours.indptr[row + 1]))
        indices, values = ours.indices[kept], ours.values[kept].astype(np.float64)
        worst = max(worst, float(np.abs(weights[indices] - values).max(initial=0.0)))
        norms = np.linalg.norm(weights) * np.linalg.norm(values)
        cosines.append(float(weights[indices] @ values / norms) if norms else 1.0)
    return {
        "compared_texts": len(cosines),
        "largest_weight_difference": worst,
        "least_cosine": min(cosines, default=1.0),
    }
