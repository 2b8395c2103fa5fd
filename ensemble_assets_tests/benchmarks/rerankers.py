"""Pairs a second of several rerankers: ``python -m ensemble_assets_tests.benchmarks.rerankers MODEL ...``.

Every query of the sample collection with ``--depth`` of its chunks, through the rerank stage, loading included; a model
is a registered slug or a CrossEncoder's folder. They take turns, medians over ``--repeats``; the first is what the
others are compared with. A first run of each, not
counted, converts the model where it was never used on this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import polars as pl

from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import FolderSource, ModelSpec
from ensemble_assets.settings.default_paths import cache_folder
from ensemble_assets.settings.options import Paths
from ensemble_assets_tests.benchmarks.cpu_workers import sample_texts
from ensemble_assets_tests.benchmarks.subset import SAMPLE

SHIPPED = MODELS["ensemble-reranker-tiny"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=SHIPPED.max_tokens, help="of folders")
    options = parser.parse_args()
    chunks, queries = pl.Series(sample_texts(10**6)), sample_queries()
    candidates = every_query_with(queries, len(chunks), options.depth)
    specs = [model_of(one, options.max_tokens) for one in options.models]
    seconds: dict[str, list[float]] = {spec.slug: [] for spec in specs}
    for _ in range(options.repeats + 1):
        for spec in specs:
            seconds[spec.slug].append(stage_seconds(spec, candidates, chunks, queries))
    rates = {slug: candidates.height / statistics.median(taken[1:]) for slug, taken in seconds.items()}
    first = next(iter(rates.values()))
    table = {
        slug: {"pairs_per_second": round(rate), "of_the_first": round(rate / first, 3)} for slug, rate in rates.items()
    }
    print(json.dumps({"pairs": candidates.height, **table}, indent=1))


def model_of(name: str, max_tokens: int) -> ModelSpec:
    if name in MODELS:
        return MODELS[name]
    folder = Path(name)
    return dataclasses.replace(
        SHIPPED, slug=folder.name, source=FolderSource(str(folder.resolve())), max_tokens=max_tokens
    )


def sample_queries() -> pl.DataFrame:
    lines = (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return pl.DataFrame({"public_id": [f"q{number}" for number in range(len(texts))], "text": texts})


def every_query_with(queries: pl.DataFrame, chunks: int, depth: int) -> pl.DataFrame:
    """A ``CANDIDATES`` frame: each query with chunks that are spread over the collection, another start for each."""
    rows = [
        (query, rank + 1, (number + rank * chunks // depth) % chunks)
        for number, query in enumerate(queries["public_id"])
        for rank in range(depth)
    ]
    found = [{"public_id": q, "rank": rank, "row": row, "chunk_id": f"c{row}", "score": -rank} for q, rank, row in rows]
    return pl.DataFrame(found, schema=dict(CANDIDATES))


def stage_seconds(spec: ModelSpec, candidates: pl.DataFrame, chunks: pl.Series, queries: pl.DataFrame) -> float:
    context = ComputeContext(runtime=Runtime(backend="auto", precision="auto", cache_folder=cache_folder(Paths())))
    begun = time.perf_counter()
    result = rerank_candidates(candidates, chunks, queries, spec, context, RerankOptions(depth=10**6))
    taken = time.perf_counter() - begun
    if result.record.status != "completed":
        raise SystemExit(f"{spec.slug}: {result.record.status} ({dict(result.record.fallback_reasons)})")
    return taken


if __name__ == "__main__":
    main()
