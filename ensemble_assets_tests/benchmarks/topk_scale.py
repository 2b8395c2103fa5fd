"""How exact search scales: seconds and peak resident memory over synthetic collections, beside what a user would write.

    python -m ensemble_assets_tests.benchmarks.topk_scale --sizes 10000 100000 1000000 --threads 1

prints one JSON object. Every search runs in a process of its own over memory-mapped files, so that its peak is its own;
medians of ``--repeats`` searches; CPU seconds are what a busy machine distorts least. ``plain`` is numpy's product in
slices with ``argpartition`` for dense vectors, and scipy's sparse product in slices of queries for sparse ones, over
arrays that were loaded. Synthetic vectors say nothing about quality.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse

from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets.retrieval.fusion import RankedList, fuse, rrf
from ensemble_assets.retrieval.ranked_lists import run_from_topk
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk
from ensemble_assets_tests.benchmarks.peak_memory import peak_bytes

DIMENSION, VOCABULARY = 384, 30_522
TERMS_PER_DOCUMENT, TERMS_PER_QUERY = 280, 45  # drawn; about 250 and 44 remain after repeats are dropped
TERM_SKEW = 0.8  # term popularity ~ 1 / rank ** skew
K = 100
BLOCK = 20_000
SEARCHES = ("dense", "dense_plain", "sparse", "sparse_plain", "pipeline")


def main() -> None:
    """Measure every size and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-plain", action="store_true", help="only this project's searches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--search", choices=SEARCHES, help=argparse.SUPPRESS)  # a measuring child process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(json.dumps(measured(options.search, options.folder, options.repeats)))
        return
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in options.sizes:
            folder = Path(scratch) / str(size)
            facts = write_collection(folder, size, options.queries)
            figures[str(size)] = {**facts, **searched(folder, options)}
            for file in folder.iterdir():
                file.unlink()
    setting = {"queries": options.queries, "k": K, "threads": options.threads, "repeats": options.repeats}
    print(json.dumps({**setting, "sizes": figures, "growth": growth(figures)}, indent=1))


def searched(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """All searches over one collection, each in its own process, and ratios to the plain ones."""
    command = [sys.executable, "-m", __spec__.name, "--folder", str(folder), "--repeats", str(options.repeats)]
    threads = {name: str(options.threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    found = {}
    for search in chosen(options):
        child = subprocess.run(
            [*command, "--search", search], env={**os.environ, **threads}, capture_output=True, text=True, check=True
        )
        found[search] = json.loads(child.stdout)
    for kind in () if options.without_plain else ("dense", "sparse"):
        ours, plain = found[kind], found[f"{kind}_plain"]
        for what in ("seconds", "cpu_seconds", "peak_rss_bytes"):
            ours[f"{what}_to_plain"] = round(ours[what] / plain[what], 3)
        ours["same_rows_as_plain"] = share_of_same_rows(folder, kind)
    return found


def chosen(options: argparse.Namespace) -> list[str]:
    """The searches to measure."""
    return [search for search in SEARCHES if not (options.without_plain and search.endswith("_plain"))]


def growth(figures: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """CPU seconds per row relative to the size before: 1 is linear."""
    sizes = [(int(size), found) for size, found in figures.items()]
    return {
        search: [
            round((later[search]["cpu_seconds"] / many) / (earlier[search]["cpu_seconds"] / few), 3)
            for (few, earlier), (many, later) in itertools.pairwise(sizes)
        ]
        for search in next(iter(figures.values()))
        if search in SEARCHES
    }


def measured(search: str, folder: Path, repeats: int) -> dict[str, float]:
    """Median seconds of a search and this process's peak resident memory; the rows found are left in ``folder``."""
    run = {
        "dense": dense,
        "dense_plain": dense_plain,
        "sparse": sparse,
        "sparse_plain": sparse_plain,
        "pipeline": pipeline,
    }[search](folder)
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        rows = run()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    np.save(folder / f"{search}.rows.npy", rows)
    return {
        "seconds": round(statistics.median(seconds), 3),
        "cpu_seconds": round(statistics.median(cpu_seconds), 3),
        "peak_rss_bytes": peak_bytes(),
    }


def dense(folder: Path) -> Callable[[], np.ndarray]:
    """This project's dense search, memory-mapped."""
    model = DenseModel("synthetic", mapped(folder, "dense.documents"), mapped(folder, "dense.queries"))
    return lambda: dense_topk(model, K).rows


def sparse(folder: Path) -> Callable[[], np.ndarray]:
    """This project's sparse search, memory-mapped."""
    documents, queries = (sparse_rows(folder, side) for side in ("documents", "queries"))
    return lambda: sparse_topk(documents, queries, K).rows


def pipeline(folder: Path) -> Callable[[], np.ndarray]:
    """Both searches and their fusion in one process."""

    def run() -> np.ndarray:
        model = DenseModel("synthetic", mapped(folder, "dense.documents"), mapped(folder, "dense.queries"))
        documents, queries = (sparse_rows(folder, side) for side in ("documents", "queries"))
        ids = [f"q{number}" for number in range(len(queries))]
        lists = [
            RankedList("dense", run_from_topk(dense_topk(model, K), ids)),
            RankedList("sparse", run_from_topk(sparse_topk(documents, queries, K), ids)),
        ]
        chunk_ids = pl.select(pl.format("c{}", pl.int_range(len(documents)))).to_series()
        return fuse(lists, chunk_ids, rrf(), depth=K)["row"].to_numpy()

    return run


def dense_plain(folder: Path) -> Callable[[], np.ndarray]:
    """Products in slices of rows, the best of each slice, then the best of those."""
    documents, queries = (np.load(folder / f"dense.{side}.npy") for side in ("documents", "queries"))

    def run() -> np.ndarray:
        scores, rows = [], []
        for start in range(0, len(documents), 65_536):
            block = queries @ documents[start : start + 65_536].T
            best = np.argpartition(-block, min(K, block.shape[1]) - 1, axis=1)[:, :K]
            scores.append(np.take_along_axis(block, best, axis=1))
            rows.append(best + start)
        return sorted_best(np.hstack(scores), np.hstack(rows))

    return run


def sparse_plain(folder: Path) -> Callable[[], np.ndarray]:
    """Scipy's sparse product in slices of queries, made dense and partitioned."""
    documents, queries = (
        scipy.sparse.csr_array(
            tuple(np.load(folder / f"sparse.{side}.{part}.npy") for part in ("values", "indices", "indptr")),
            shape=(-1 + len(mapped(folder, f"sparse.{side}.indptr")), VOCABULARY),
        )
        for side in ("documents", "queries")
    )

    def run() -> np.ndarray:
        by_term, rows = documents.T.tocsr(), []
        for start in range(0, queries.shape[0], 100):
            block = (queries[start : start + 100] @ by_term).toarray()
            best = np.argpartition(-block, K - 1, axis=1)[:, :K]
            rows.append(sorted_best(np.take_along_axis(block, best, axis=1), best))
        return np.vstack(rows)

    return run


def sorted_best(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The K best rows per query, best first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(rows, order, axis=1)


def share_of_same_rows(folder: Path, kind: str) -> float:
    """Mean overlap of the rows found per query."""
    ours, plain = (np.load(folder / f"{name}.rows.npy") for name in (kind, f"{kind}_plain"))
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ours, plain, strict=True)]))


def write_collection(
    folder: Path, size: int, n_queries: int, terms: tuple[int, int] = (TERMS_PER_DOCUMENT, TERMS_PER_QUERY)
) -> dict[str, float]:
    """Synthetic dense and sparse vectors as ``.npy`` files, block by block.

    ``terms`` are drawn for a document's and for a query's sparse vector.
    """
    folder.mkdir()
    generator = np.random.default_rng(0)
    for side, count in (("documents", size), ("queries", n_queries)):
        array = np.lib.format.open_memmap(folder / f"dense.{side}.npy", "w+", np.float32, (count, DIMENSION))
        for start in range(0, count, BLOCK):
            block = generator.standard_normal((min(BLOCK, count - start), DIMENSION), dtype=np.float32)
            array[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    popularity = 1 / np.arange(1, VOCABULARY + 1) ** TERM_SKEW
    cumulative = np.cumsum(popularity / popularity.sum())
    per_side = {}
    for side, count, drawn_terms in (("documents", size, terms[0]), ("queries", n_queries, terms[1])):
        lengths = []
        with (folder / "indices.raw").open("wb") as indices, (folder / "values.raw").open("wb") as values:
            for start in range(0, count, BLOCK):
                drawn = np.searchsorted(cumulative, generator.random((min(BLOCK, count - start), drawn_terms))).astype(
                    "i4"
                )
                drawn.sort(axis=1)
                new = np.diff(drawn, axis=1, prepend=-1) > 0
                lengths.append(np.count_nonzero(new, axis=1))
                drawn[new].tofile(indices)
                generator.gamma(1.5, 0.5, int(new.sum())).astype(np.float32).tofile(values)
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        np.save(folder / f"sparse.{side}.indptr.npy", indptr)
        for name, dtype in (("indices", np.int32), ("values", np.float32)):
            raw = np.memmap(folder / f"{name}.raw", dtype, "r")
            np.save(folder / f"sparse.{side}.{name}.npy", raw)
            (folder / f"{name}.raw").unlink()
        per_side[f"weights_per_sparse_vector_of_{side}"] = round(indptr[-1] / count, 1)
    return per_side


def mapped(folder: Path, name: str) -> np.ndarray:
    """An array of the collection, memory-mapped."""
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
    return array


def sparse_rows(folder: Path, side: str) -> SparseRows:
    """One side of the sparse collection, memory-mapped."""
    indptr, indices, values = (mapped(folder, f"sparse.{side}.{part}") for part in ("indptr", "indices", "values"))
    return SparseRows(indptr, indices, values, VOCABULARY)


if __name__ == "__main__":
    main()
