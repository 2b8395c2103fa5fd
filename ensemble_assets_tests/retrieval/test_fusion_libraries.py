"""Fusion against independent libraries: ranx for rrf, minmax and zscore, qdrant-client for dbsf.

Their results on the same lists are recorded beside this file, so that the comparison runs everywhere; where a library
is installed, the slow tests check that the record is still what it gives.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble_assets.retrieval.fusion import METHODS, fuse
from ensemble_assets_tests.retrieval.test_fusion import CHUNK_IDS, N_CHUNKS, QUERIES, as_input


def synthetic_lists(complete):
    """Three lists over three queries with distinct scores; complete ones rank every chunk."""
    generator = np.random.default_rng(5)
    lists = {}
    for name, scale in (("dense", 0.2), ("sparse", 30.0), ("title", 4.0)):
        lists[name] = {}
        for query in QUERIES:
            rows = generator.permutation(N_CHUNKS)[: N_CHUNKS if complete else 7]
            scores = np.sort(generator.random(len(rows)).astype(np.float32) * np.float32(scale))[::-1]
            lists[name][query] = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
    return lists


RECORDED = Path(__file__).with_name("fused_by_other_libraries.json")
EQUAL, UNEQUAL = ({"dense": 1.0, "sparse": 1.0, "title": 1.0}, {"dense": 0.5, "sparse": 0.3, "title": 0.2})
OTHERS = {  # fusion method: library, its method, its normalisation, weights, whether every list ranks every chunk
    "rrf": ("ranx", "rrf", None, EQUAL, False),
    "minmax": ("ranx", "wsum", "min-max", UNEQUAL, False),
    "zscore": ("ranx", "wsum", "zmuv", UNEQUAL, True),
    "dbsf": ("qdrant_client", "dbsf", None, EQUAL, False),
}


def fused_by_ranx(method):
    ranx = pytest.importorskip("ranx", reason="ranx is not installed; its recorded results are still compared with")
    _, ranx_method, norm, weights, complete = OTHERS[method]
    runs = [
        ranx.Run({query: {str(row): score for row, score in entries} for query, entries in per_query.items()})
        for per_query in synthetic_lists(complete).values()
    ]
    parameters = {"k": 60} if method == "rrf" else {"weights": list(weights.values())}
    return ranx.fuse(runs, norm=norm, method=ranx_method, params=parameters).to_dict()


def fused_by_qdrant(method):
    reason = "qdrant-client is not installed; its recorded results are still compared with"
    fusion = pytest.importorskip("qdrant_client.hybrid.fusion", reason=reason)
    models = pytest.importorskip("qdrant_client.models", reason=reason)
    lists = synthetic_lists(OTHERS[method][-1])
    fused = {}
    for query in QUERIES:
        responses = [
            [models.ScoredPoint(id=row, version=0, score=score) for row, score in lists[name][query]] for name in lists
        ]
        found = fusion.distribution_based_score_fusion(responses, limit=N_CHUNKS)
        fused[query] = {str(point.id): point.score for point in found}
    return fused


def fused_by_other_library(method):
    """What the independent library makes of the synthetic lists: ``{query: {row: score}}``."""
    return {"ranx": fused_by_ranx, "qdrant_client": fused_by_qdrant}[OTHERS[method][0]](method)


@pytest.mark.parametrize("method", OTHERS)
def test_it_agrees_with_what_an_independent_library_made_of_the_same_lists(method):
    _, _, _, weights, complete = OTHERS[method]
    fused = fuse(as_input(synthetic_lists(complete), weights), CHUNK_IDS, METHODS[method]())
    recorded = json.loads(RECORDED.read_text())[method]["fused"]
    for query in QUERIES:
        theirs = recorded[query]
        mine = fused.filter(pl.col("public_id") == query)
        scores = {str(row): score for row, score in mine.select("row", "score").iter_rows()}
        if method == "zscore":  # ours is shifted by each list's lowest z-score, the same for every chunk
            shift = min(theirs.values()) - min(scores.values())
            scores = {row: score + shift for row, score in scores.items()}
        if method == "dbsf":  # Qdrant sums; ours are convex
            scores = {row: score * 3 for row, score in scores.items()}
        assert scores == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        in_my_order = [theirs[str(row)] for row in mine["row"]]  # the others leave the order of ties open
        assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(in_my_order))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64:Warning")
@pytest.mark.parametrize("method", OTHERS)
def test_the_recorded_results_are_what_the_independent_library_gives(method):
    recorded = json.loads(RECORDED.read_text())[method]["fused"]
    given_now = fused_by_other_library(method)
    assert set(given_now) == set(recorded)
    for query, scores in recorded.items():
        assert given_now[query] == pytest.approx(scores, rel=1e-12)
