"""Weight fitting against trying every grid point by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.common.frame_schemas import QRELS, RUN
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.fitted_weights import fit_share, fit_weights
from ensemble_assets.retrieval.fusion import METHODS, RankedList, fuse

N_CHUNKS, N_QUERIES = 40, 12
CHUNK_IDS = pl.Series([f"c{row}" for row in range(N_CHUNKS)])


def noisy_list(name, noise, seed):
    """A search that finds chunk ``i`` for query ``i``, the better the less noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for query in range(N_QUERIES):
        scores = generator.normal(0, noise, N_CHUNKS).astype(np.float32)
        scores[query] += 1
        order = np.argsort(-scores, kind="stable")[:20]
        rows += [(f"q{query}", rank, int(row), float(scores[row])) for rank, row in enumerate(order, start=1)]
    return RankedList(name, pl.DataFrame(rows, schema=dict(RUN), orient="row"))


QRELS_FRAME = pl.DataFrame([(f"q{i}", f"c{i}", 1) for i in range(N_QUERIES)], schema=dict(QRELS), orient="row")
GOOD, BAD = noisy_list("dense", 0.45, seed=0), noisy_list("sparse", 1.5, seed=1)


def ndcg(lists, weights, method):
    weighted = [RankedList(each.name, each.run, weight) for each, weight in zip(lists, weights, strict=True)]
    return evaluate({"r": fuse(weighted, CHUNK_IDS, method)}, QRELS_FRAME).values("r")["value"].mean()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_grid_holds_every_point_and_the_best_one_is_chosen(method):
    fit = fit_weights([GOOD, BAD], CHUNK_IDS, QRELS_FRAME, METHODS[method](), steps=5)
    assert fit.method == method
    assert fit.grid.columns == ["weight_dense", "weight_sparse", "nDCG@10"]
    assert fit.grid["weight_dense"].to_list() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for dense, sparse, quality in fit.grid.iter_rows():
        assert quality == pytest.approx(ndcg([GOOD, BAD], (dense, sparse), METHODS[method]()))
    assert fit.quality == fit.grid["nDCG@10"].max()
    assert fit.quality == pytest.approx(ndcg([GOOD, BAD], fit.weights.values(), METHODS[method]()))
    assert fit.equal_quality == pytest.approx(ndcg([GOOD, BAD], (0.5, 0.5), METHODS[method]()))
    assert fit.queries == N_QUERIES


def test_the_better_list_gets_more_weight_than_noise():
    fit = fit_weights([BAD, GOOD], CHUNK_IDS, QRELS_FRAME, METHODS["minmax"]())
    assert list(fit.weights) == ["dense", "sparse"]
    assert fit.weights["dense"] > 0.6
    assert fit.quality >= fit.equal_quality
    assert sum(fit.weights.values()) == pytest.approx(1)


def test_the_order_of_lists_and_their_own_weights_do_not_matter():
    once = fit_weights([GOOD, BAD], CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=5)
    reweighted = [RankedList(each.name, each.run, 7.0) for each in (BAD, GOOD)]
    again = fit_weights(reweighted, CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=5)
    assert again.weights == once.weights
    assert again.grid.equals(once.grid)


def test_of_equally_good_weights_the_most_even_ones_are_chosen():
    copies = [RankedList(name, GOOD.run) for name in ("dense", "sparse")]
    assert fit_weights(copies, CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=4).weights == {
        "dense": 0.5,
        "sparse": 0.5,
    }
    mirrored = fit_weights(copies, CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=5).weights
    assert mirrored == pytest.approx({"dense": 0.6, "sparse": 0.4})


def test_three_lists_are_tried_on_the_whole_simplex():
    third = noisy_list("title", 0.8, seed=2)
    fit = fit_weights([GOOD, BAD, third], CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=4)
    assert len(fit.grid) == math.comb(4 + 2, 2)
    weights = fit.grid.select("weight_dense", "weight_sparse", "weight_title")
    np.testing.assert_allclose(weights.sum_horizontal(), 1)
    assert weights.n_unique() == len(weights)


def test_queries_without_training_judgements_do_not_take_part():
    half = QRELS_FRAME.head(6)
    judged_only = [
        RankedList(each.name, each.run.filter(pl.col("public_id").is_in(half["public_id"].implode())))
        for each in (GOOD, BAD)
    ]
    fit = fit_weights([GOOD, BAD], CHUNK_IDS, half, METHODS["rrf"](), steps=4)
    assert fit.queries == 6
    assert fit.grid.equals(fit_weights(judged_only, CHUNK_IDS, half, METHODS["rrf"](), steps=4).grid)


def test_one_list_or_no_steps_are_refused():
    with pytest.raises(SettingsError, match="for 1 lists in 20 steps; expected at least 2 lists"):
        fit_weights([GOOD], CHUNK_IDS, QRELS_FRAME, METHODS["minmax"]())
    with pytest.raises(SettingsError, match="in 0 steps"):
        fit_weights([GOOD, BAD], CHUNK_IDS, QRELS_FRAME, METHODS["minmax"](), steps=0)


def test_training_judgements_without_a_relevant_chunk_are_refused():
    with pytest.raises(ArtefactError, match="no training query has a relevant judgement"):
        fit_weights(
            [GOOD, BAD], CHUNK_IDS, QRELS_FRAME.with_columns(relevance=pl.lit(0, pl.Int32)), METHODS["minmax"]()
        )


def final_lists(rerank_noise, share):
    """The first stage's candidates, mixed with the scores of a reranker that knows the answer but for its noise."""
    generator = np.random.default_rng(7)
    fused = fuse([GOOD], CHUNK_IDS, METHODS["zscore"]())
    right = (fused["public_id"].str.slice(1) == fused["chunk_id"].str.slice(1)).to_numpy()
    scores = (right + generator.normal(0, rerank_noise, len(right))).astype(np.float32)
    return final_order(fused.with_columns(pl.Series("rerank_score", scores)), share)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
def test_the_best_share_of_a_reranker_is_that_of_trying_all(noise):
    shares = [step / 10 for step in range(11)]
    tried = [
        evaluate({"final": final_lists(noise, share)}, QRELS_FRAME).values("final")["value"].mean() for share in shares
    ]
    assert fit_share(lambda share: final_lists(noise, share), QRELS_FRAME, steps=10) == shares[int(np.argmax(tried))]


def test_a_reranker_that_knows_the_answer_gets_a_share_and_one_that_is_noise_gets_none():
    knows, guesses = (
        fit_share(lambda share, noise=noise: final_lists(noise, share), QRELS_FRAME) for noise in (0.1, 50.0)
    )
    assert knows >= 0.3
    assert guesses == 0.0
