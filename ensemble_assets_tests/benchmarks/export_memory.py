"""How much memory and time it takes to write a large bundle, and to look at it with every gate.

``python -m ensemble_assets_tests.benchmarks.export_memory --points 1000000 --dim 384 --sparse-terms 64``

Makes synthetic chunks (metadata as rich as a chunker's, optionally with live sparse vectors), writes the bundle in a
process of its own, judges it in another, and prints one JSON object: for each of the two the peak resident memory
(mapped files included), the memory right after the imports, seconds by the clock and of the processor; bytes written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle, public_names
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.inputs import BundleInputs, DenseModel, LiveSparse, chunk_rows
from ensemble_assets.export.write.manifest import FeatureToggles, ManifestInputs
from ensemble_assets.export.write.manifest_stages import SparseRun
from ensemble_assets_tests.benchmarks.peak_memory import peak_bytes

_BLOCK = 20_000
_VOCABULARY = 30_522
_QUERY_WORDS = ("how", "where", "river", "engine", "orchard", "violin", "harbour", "glacier", "lantern", "canyon")
_CLOCK = "2026-01-02T03:04:05.678901"


def main() -> None:
    """Make the inputs, write the bundle in another process, print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--sparse-terms", type=int, default=0, help="entries per live sparse vector; 0 switches it off")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 20 kB per point")
    parser.add_argument("--queries", type=int, default=1000, help="queries for no_raw_queries to look for")
    parser.add_argument("--part", choices=("write", "judge"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = _write(options.folder) if options.part == "write" else _judge(options.folder, options.queries)
        print(json.dumps(part))
        return
    figures: dict[str, Any] = {"points": options.points, "dim": options.dim, "sparse_terms": options.sparse_terms}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        _make_inputs(Path(scratch), options.points, options.dim, options.sparse_terms)
        for name in ("write", "judge"):
            command = [sys.executable, "-m", __spec__.name, "--folder", scratch, "--part", name]
            command += ["--queries", str(options.queries)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[name] = json.loads(done.stdout)
            print(json.dumps(figures), flush=True)


def _make_inputs(folder: Path, points: int, dim: int, terms: int) -> None:
    generator = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(folder / "dense.npy", mode="w+", dtype=np.float32, shape=(points, dim))
    chunk_files = folder / "chunks"
    chunk_files.mkdir()
    for start in range(0, points, _BLOCK):
        rows = generator.standard_normal((min(_BLOCK, points - start), dim)).astype(np.float32)
        vectors[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        _chunk_block(start, len(rows)).write_parquet(chunk_files / f"{start:09d}.parquet")
    vectors.flush()
    if terms:
        total = points * terms
        offsets = generator.integers(1, _VOCABULARY // terms, size=(points, terms), dtype=np.int32)
        np.save(folder / "indices.npy", np.cumsum(offsets, axis=1, dtype=np.int32).reshape(-1))
        np.save(folder / "values.npy", generator.random(total, dtype=np.float32) + np.float32(0.01))


def _chunk_block(start: int, count: int) -> pl.DataFrame:
    words = [
        "lorem",
        "ipsum",
        "dolor",
        "sit",
        "amet",
        "consectetur",
        "adipiscing",
        "elit",
        "sed",
        "do",
        "eiusmod",
        "tempor",
    ]
    weights = [{"term": word, "tf": 3, "weight": 0.038961} for word in words]
    records = []
    for row in range(start, start + count):
        text = " ".join(words[(row + k) % len(words)] for k in range(80))
        metadata = {
            "chunk_id": f"{row:012x}-0001",
            "source_file": f"Docs/part{row % 97}/page{row}.md",
            "section_path": ["Guide", f"Section {row % 13}"],
            "heading_text": f"Section {row % 13}",
            "token_count": 130 + row % 7,
            "semantic_score": 0.7,
            "structural_score": 0.8999999999999999,
            "content_flags": {"has_code_block": False, "has_table": row % 2 == 0},
            "sparse_features": {"version": "1.0", "term_weights": weights, "unique_terms": 12, "total_terms": 80},
        }
        records.append((row, text, json.dumps(metadata), "pages_chunks.json", len(text), "0" * 40, "prose"))
    names = ["row", "text", "metadata", "source", "original_length", "text_sha1", "modal_hint"]
    return pl.DataFrame(records, schema=names, orient="row")


def _inputs(folder: Path) -> BundleInputs:
    vectors = np.load(folder / "dense.npy", mmap_mode="r")
    return BundleInputs(
        collection="synthetic",
        rows=chunk_rows(pl.scan_parquet(folder / "chunks" / "*.parquet")),
        count=len(vectors),
        dense=(DenseModel("mini", "owner/mini", 256, vectors),),
        clock=_CLOCK,
        sparse=_live(folder, len(vectors)),
    )


def _judge(folder: Path, count: int) -> dict[str, object]:
    """Every gate over the bundle, in one pass, as the exporter does."""
    inputs = _inputs(folder)
    bundle = open_bundle(folder / "out" / "synthetic")
    words = np.random.default_rng(1).choice(_QUERY_WORDS, size=(count, 9))
    queries = tuple(Query(f"q{number}", " ".join(row)) for number, row in enumerate(words))
    before, started, processor = _peak_mb(), time.perf_counter(), time.process_time()
    results = judge_bundle(bundle, Limits(), inputs=inputs, queries=queries, public=lambda: public_names(inputs))
    return {
        "peak_rss_mb": _peak_mb(),
        "rss_after_imports_mb": before,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "gates": len(results),
        "not_passed": [result.name for result in results if not result.passed],
    }


def _write(folder: Path) -> dict[str, float]:
    bundle = _inputs(folder)
    before, started, processor = _peak_mb(), time.perf_counter(), time.process_time()
    exported = write_bundle(folder / "out", bundle, lambda written: _manifest(bundle))
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in exported.folder.iterdir())
    return {
        "peak_rss_mb": _peak_mb(),
        "rss_after_imports_mb": before,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "points_per_second": round(bundle.count / seconds),
        "written_gb": round(size / 1e9, 2),
        "has_flat_index": not exported.written.skipped,
    }


def _live(folder: Path, points: int) -> LiveSparse | None:
    if not (folder / "indices.npy").exists():
        return None
    indices, values = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("indices", "values"))
    return LiveSparse(
        indptr=np.arange(points + 1, dtype=np.int64) * (len(indices) // points),
        indices=indices,
        values=values,
        source=np.ones(points, dtype=np.uint8),
        vocabulary=tuple(f"token{number}" for number in range(_VOCABULARY)),
        model="splade-tiny",
        index_space="splade-tiny/vocabulary",
    )


def _manifest(bundle: BundleInputs) -> ManifestInputs:
    sparse = SparseRun(
        executed=True,
        models=("splade-tiny",),
        vectors_total=bundle.count,
        vectors_available=bundle.count,
        devices={"splade-tiny": "cpu"},
        run_id="benchmark",
        latency_ms=0.0,
        success=True,
    )
    sparse_run = sparse if bundle.sparse else None
    toggles = FeatureToggles(enable_rerank=False, enable_sparse=sparse_run is not None)
    return ManifestInputs(_CLOCK, bundle.collection, bundle.count, toggles, dense_run={}, sparse_run=sparse_run)


def _peak_mb() -> float:
    return round(peak_bytes() / 1024**2, 1)


if __name__ == "__main__":
    main()
