"""The small golden bundles in ``golden/``: what goes into each, and how to write them again.

``python -m ensemble_assets_tests.export.golden_cases`` writes them anew from what the package does now; review the
difference before committing it. The upload script is code and left out. The v4.0 part of every case is held to the
reference writer as well.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemble_assets.export.write.bundle import RankedLists, write_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.manifest import FeatureToggles, ManifestInputs
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, live_sparse
from ensemble_assets_tests.export.runs import RERANK, SPARSE, everything_off, everything_on, lists, reranked

GOLDEN = Path(__file__).parent / "golden"

PLAIN = [Chunk("First  chunk.", {"chunk_id": "a", "token_count": 2}), Chunk("Second"), Chunk("def third(): pass")]
TERMS = {"term_weights": [{"term": "alpha", "tf": 3, "weight": 0.3}, {"term": "naïve 😀", "tf": 4, "weight": 0.4}]}
RICH = [
    Chunk("One\n| a |\n| b |", {"chunk_id": "a", "section_path": ["Top ", " Sub"], "sparse_features": TERMS}),
    Chunk("Two — café", {"chunk_id": "b", "heading_text": "Two", "text_preview": "own", "tiny": 1e-7, "huge": 2**70}),
    Chunk('{"three": 3}', {"chunk_id": "c", "sparse_features": {**TERMS, "unique_terms": 9, "total_terms": 12}}),
]


@dataclass(frozen=True)
class GoldenCase:
    """One bundle: its chunks beside its inputs, so that the reference can write it too."""

    chunks: list[Chunk]
    bundle: BundleInputs
    manifest: ManifestInputs
    lists: RankedLists | None = None


def plain_rows(count: int, width: int) -> np.ndarray:
    """Unit rows that are the same with every version of every library; one value needs an exponent."""
    rows = np.zeros((count, width), dtype=np.float32)
    for row in range(count):
        rows[row, row % width] = 0.6
        rows[row, (row + 1) % width] = -0.8
        rows[row, (row + 2) % width] = 1.25e-5
    return rows


def _bundle(chunks: list[Chunk], companions: bool = False) -> BundleInputs:
    models = [dense("mini", plain_rows(len(chunks), 4)), dense("other-1.5b", plain_rows(len(chunks), 3))]
    return bundle_of(chunks, *models[: 1 + companions])


def _sparse_only() -> ManifestInputs:
    return everything_on(toggles=FeatureToggles(False, True, ("splade-tiny",)), rerank_run=None)


def _cases() -> dict[str, Callable[[], GoldenCase]]:
    full = live_sparse([{"alpha": 1.5}, {"beta": 0.25, "alpha": 2e-5}, {"gamma": 0.75}], [1, 1, 1])
    mixed = live_sparse([{"alpha": 1.0}, {}, {"gamma": 0.75}], [2, 0, 1])
    failed = replace(RERANK, executed=False, status="fallback", loaded=False, fallback_count=2, candidate_ids=())
    failed = replace(failed, scores=(), fallback_reason="model_unavailable", fallback_source="load")
    rerank_only = FeatureToggles(True, False)
    whole = replace(SPARSE, vectors_available=3, fallback_count=0, fallback_reason=None)
    partly = replace(RERANK, status="partial", fallback_count=1, fallback_reason="budget_exhausted")
    partly = replace(partly, fallback_source="runtime")
    on = everything_on(sparse_run=whole, rerank_run=partly)
    return {
        "dense_only": lambda: GoldenCase(PLAIN, _bundle(PLAIN), everything_off()),
        "companions": lambda: GoldenCase(PLAIN, _bundle(PLAIN, True), everything_off()),
        "metadata_echo": lambda: GoldenCase(RICH, _bundle(RICH), everything_off()),
        "live_sparse": lambda: GoldenCase(RICH, replace(_bundle(RICH), sparse=full), on, lists()),
        "mixed_fallback": lambda: GoldenCase(RICH, replace(_bundle(RICH), sparse=mixed), _sparse_only(), _fused()),
        "rerank_only": lambda: GoldenCase(
            RICH, _bundle(RICH), everything_on(toggles=rerank_only, sparse_run=None), _reranked()
        ),
        "rerank_failed": lambda: GoldenCase(
            RICH, _bundle(RICH), everything_on(toggles=rerank_only, sparse_run=None, rerank_run=failed), _not_reranked()
        ),
    }


def _reranked() -> RankedLists:
    """Every query was reranked."""
    return replace(
        lists(),
        reranked=reranked(
            ("q1", 1, 1, "b", 0.75, 2, 0.25, 3.5),
            ("q1", 2, 0, "a", 0.5, 1, 0.5, None),
            ("q2", 1, 2, "c", 0.625, 1, 0.5, 1.25),
        ),
    )


def _not_reranked() -> RankedLists:
    """The model was not there: every query keeps its fused order."""
    return replace(
        lists(),
        reranked=reranked(
            ("q1", 1, 0, "a", 0.5, 1, 0.5, None),
            ("q1", 2, 1, "b", 0.25, 2, 0.25, None),
            ("q2", 1, 2, "c", 0.5, 1, 0.5, None),
        ),
    )


def _fused() -> RankedLists:
    return replace(lists(), reranked=None)


CASES = _cases()

NOT_STORED = ("*.py", "*.faiss", "*_processing_summary.json")
"""Code, a file that not every installation writes, and the manifest under its second name."""


def write_case(name: str, output: Path) -> Path:
    """Write one bundle below ``output``; returns its folder."""
    case = CASES[name]()
    return write_bundle(output, case.bundle, lambda written: case.manifest, case.lists).folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name in CASES:
            shutil.rmtree(GOLDEN / name, ignore_errors=True)
            shutil.copytree(write_case(name, Path(scratch)), GOLDEN / name, ignore=shutil.ignore_patterns(*NOT_STORED))
