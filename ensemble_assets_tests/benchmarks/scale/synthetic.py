"""Search, fusion, export, gates and validation of a large collection, to the end, without its encoding.

``python -m ensemble_assets_tests.benchmarks.scale.synthetic --chunks 1000000`` writes chunk files of short texts,
reads them as a run does, stores synthetic vectors and sparse rows as the artefacts of the dense and the sparse stage,
and runs all that comes after them, each run in a process of its own. Prints one JSON object: seconds by the clock and
of the processor and the peak resident memory of every stage, of ``ensemble-assets validate`` too. Synthetic vectors
say nothing about quality. It needs about 25 kB of disk per chunk.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble_assets.artefacts.artefact import ArtefactWriter
from ensemble_assets.artefacts.records import DenseLayout, DenseRecord, SparseRecord
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.common.stages import PIPELINE, STAGE
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.settings import resolve
from ensemble_assets_tests.benchmarks.peak_memory import peak_bytes
from ensemble_assets_tests.benchmarks.scale import measured_run
from ensemble_assets_tests.benchmarks.topk_scale import DIMENSION, VOCABULARY, write_collection
from ensemble_assets_tests.tools.sample_build import term_weights

_SLUG = "synthetic"
_ENTRIES = 70
"""Entries drawn for a sparse vector; fewer remain, because some are drawn twice."""

_WORDS_OF_A_TEXT, _WORDS_OF_A_QUERY = 40, 6
_CHUNKS_OF_A_FILE = 5000
_READ, _AFTER = ("chunks", "queries"), ("fusion", "rerank", "evaluation", "export")
_STEP_OPTIONS = ("enable_rerank=false",)


def main() -> None:
    """Make the collection and measure, or run one part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder. It stays if named")
    parser.add_argument("--validate", type=Path, help=argparse.SUPPRESS)  # a bundle; a measuring child process
    options = parser.parse_args()
    if options.validate:
        print(json.dumps(validated(options.validate)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options.folder or Path(scratch), options.chunks, options.queries), indent=1))


def measure(folder: Path, chunks: int, queries: int) -> dict[str, Any]:
    """Give the figures of every stage, in the order in which they run."""
    collection = folder / "corpora" / measured_run.COLLECTION
    if not collection.is_dir():
        write_texts(collection, chunks, queries)
    stages = ran(folder, _READ)
    store_vectors(folder, chunks, queries)
    stages |= ran(folder, _AFTER)
    child = [sys.executable, "-m", __spec__.name, "--validate", str(folder / "output" / measured_run.COLLECTION)]
    done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
    stages["validate"] = json.loads(done.stdout.splitlines()[-1])
    return {"chunks": chunks, "queries": queries, "stages": stages}


def ran(folder: Path, stages: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Run these stages in a process of their own."""
    command = [sys.executable, "-m", measured_run.__name__, "--folder", str(folder)]
    command += [part for option in _STEP_OPTIONS for part in ("--set", option)]
    command += ["--assets", *(STAGE[stage].asset for stage in stages)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])["stages"]
    kept = {stage.name for stage in PIPELINE} | ({measured_run.CHECKS} if "export" in stages else set())
    return {name: figure for name, figure in figures.items() if name in kept}


def validated(bundle: Path) -> dict[str, float]:
    """Judge the bundle as ``ensemble-assets validate`` does, in this process.

    Raises:
        RuntimeError: if a gate failed.
    """
    from ensemble_assets.cli.main import main as command_line

    measuring = measured_run.Measuring()
    try:
        command_line(["validate", str(bundle), "--json"])
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"validate ended with {ended.code}") from None
    measuring.note("validate")
    return {**measuring.figures["validate"], "peak_mb": round(peak_bytes() / 1e6, 1)}


def write_texts(folder: Path, chunks: int, queries: int) -> None:
    """Write chunk files of texts drawn from 20,000 words, with metadata, and queries drawn from the same words."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "nu") for b in _SYLLABLES for c in _SYLLABLES]
    for start in range(0, chunks, _CHUNKS_OF_A_FILE):
        records = []
        for row in range(start, min(chunks, start + _CHUNKS_OF_A_FILE)):
            text = " ".join(draw.choices(words, k=_WORDS_OF_A_TEXT))
            metadata = {
                "chunk_id": f"{row:09d}",
                "source_file": f"part{row % 997}/page{row // 997}.md",
                "section_path": ["Guide", f"Section {row % 13}"],
                "heading_text": f"Section {row % 13}",
                "token_count": 3 * _WORDS_OF_A_TEXT,
                "sparse_features": term_weights(text),
            }
            records.append({"text": text, "metadata": metadata})
        (folder / f"part{start:09d}_chunks.json").write_text(json.dumps(records), encoding="utf-8")
    asked = (" ".join(draw.choices(words, k=_WORDS_OF_A_QUERY)) for _ in range(queries))
    lines = [json.dumps({"_id": f"q{number}", "text": text}) for number, text in enumerate(asked)]
    (folder / "queries.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


_SYLLABLES = [f"{first}{second}" for first in "bcdfghjklmnpqrs" for second in "aeiou"][:70]


def store_vectors(folder: Path, chunks: int, queries: int) -> None:
    """Publish unit vectors and sparse rows as the artefacts of the dense and the sparse stage."""
    made = folder / "vectors"
    if not made.is_dir():
        write_collection(made, chunks, queries, terms=(_ENTRIES, 30))
    entries = int(np.load(made / "sparse.documents.indptr.npy", mmap_mode="r")[-1])
    layout = DenseLayout(_SLUG, 1.0, f"owner/{_SLUG}", 256, DIMENSION)
    dense = DenseRecord("dense", "completed", items=chunks + queries, queries=queries, layout=(layout,))
    sparse = SparseRecord(
        "sparse",
        "completed",
        items=chunks + queries,
        model=_SLUG,
        index_space=f"{_SLUG}/vocabulary",
        dimension=VOCABULARY,
        vectors_total=chunks,
        vectors_live=chunks,
        vectors_available=chunks,
        coverage_ratio=1.0,
        entries=entries,
        queries=queries,
        queries_live=queries,
    )
    sides = {"documents": "chunks", "queries": "queries"}
    _publish(folder, dense, {made / f"dense.{old}.npy": f"{new}.{_SLUG}" for old, new in sides.items()})
    parts = ("indptr", "indices", "values")
    names = {made / f"sparse.{old}.{part}.npy": f"{new}.{part}" for old, new in sides.items() for part in parts}
    _publish(folder, sparse, names, chunks)


def _publish(folder: Path, record: Record, arrays: dict[Path, str], with_source: int = 0) -> None:
    """Seal an artefact of arrays that lie in files, which are copied without reading them into memory."""
    settings = resolve({"paths.output_dir": str(folder / "output"), "paths.cache_dir": str(folder / "cache")}).settings
    store, asset = open_store(settings), STAGE[record.stage].asset
    writer: ArtefactWriter = store.begin(measured_run.COLLECTION, asset)
    for path, name in arrays.items():
        shutil.copyfile(path, writer.folder / f"{name}.npy")
    if with_source:
        writer.array("source", np.ones(with_source, dtype=np.uint8))
        writer.frame("vocabulary", pl.DataFrame({"token": [f"token{number}" for number in range(VOCABULARY)]}))
    store.publish(measured_run.COLLECTION, asset, writer.seal(record))


if __name__ == "__main__":
    main()
