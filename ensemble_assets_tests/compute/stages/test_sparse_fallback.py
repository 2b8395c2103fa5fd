"""Metadata terms land in the model's vocabulary, weighted and scaled as the rules say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.stages.sparse_fallback import (
    Rarity,
    TermSpace,
    collection_space,
    metadata_rows,
    metadata_terms,
    text_rows,
    vocabulary_space,
)
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, load_vocabulary
from ensemble_assets.models.model_files import locate
from ensemble_assets_tests.compute.running.doubles import IDS, model_folder, tokenizer

TERMS = st.dictionaries(
    st.sampled_from(["storm", "storms", "wind", "alpha", "xyz", "Wind", "漢", "abc", ""]),
    st.floats(0.001, 10.0),
    max_size=5,
)


def metadata(terms: dict[str, float]) -> str:
    entries = [{"term": term, "tf": 1, "weight": weight} for term, weight in terms.items()]
    return json.dumps({"heading_text": "x", "sparse_features": {"term_weights": entries}})


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    return load_vocabulary(locate(model_folder(tmp_path_factory.mktemp("models") / "m")))


@pytest.fixture(scope="module")
def space(vocabulary: Vocabulary) -> TermSpace:
    return vocabulary_space(vocabulary)


def reference_row(terms: dict[str, float], collection: list[dict[str, float]], norm: float) -> dict[int, float]:
    """The rules of the module, one after another."""
    weights: dict[int, float] = {}
    for term, weight in terms.items():
        having = sum(term in other for other in collection)
        idf = math.log(1 + (len(collection) - having + 0.5) / (having + 0.5))
        pieces = [i for i in tokenizer().encode(term, add_special_tokens=False).ids if i != IDS["[UNK]"]]
        for piece in pieces:
            weights[piece] = max(weights.get(piece, 0), math.sqrt(weight) * idf / math.sqrt(len(pieces)))
    length = math.sqrt(sum(value**2 for value in weights.values()))
    return {index: value * norm / length for index, value in weights.items()}


@given(collection=st.lists(TERMS, min_size=1, max_size=5), norm=st.floats(0.5, 20))
def test_rows_follow_the_rules(space, collection, norm):
    texts = [metadata(terms) for terms in collection]
    rows = metadata_rows(texts, space, Rarity.from_metadata(texts), norm)
    for row, terms in zip(rows, collection, strict=True):
        expected = reference_row(terms, collection, norm)
        assert row.indices.tolist() == sorted(expected)
        np.testing.assert_allclose(row.values, [expected[index] for index in sorted(expected)], rtol=1e-5)
        if expected:
            assert np.linalg.norm(row.values) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        '{"sparse_features": 3}',
        '{"sparse_features": {"term_weights": {"a": 1}}}',
        metadata({}),
    ],
)
def test_metadata_without_usable_terms_gives_an_empty_row(space, text):
    assert metadata_terms(text) == []
    (row,) = metadata_rows([text], space, Rarity.from_metadata([text]), 1.0)
    assert (len(row.indices), row.indices.dtype, row.values.dtype) == (0, np.int32, np.float32)


def test_terms_that_weigh_nothing_or_less_are_left_out():
    entries = [{"term": "a", "weight": 0}, {"term": "b", "weight": -1}, {"term": 3, "weight": 1}, {"term": "c"}]
    entries += [{"term": "d", "weight": True}, {"term": "e", "weight": 0.5}]
    kept = metadata_terms(json.dumps({"sparse_features": {"term_weights": entries}}))
    assert ("e", 0.5) in kept
    assert not {"a", "b", 3, "c"} & {term for term, _ in kept}


def test_a_common_term_weighs_less_than_a_rare_one(space):
    texts = [metadata({"wind": 1.0, "storm": 1.0}), metadata({"wind": 1.0}), metadata({"wind": 1.0})]
    row = metadata_rows(texts, space, Rarity.from_metadata(texts), 1.0)[0]
    weights = dict(zip(row.indices.tolist(), row.values.tolist(), strict=True))
    assert weights[IDS["storm"]] > 3 * weights[IDS["wind"]] > 0


def test_a_query_that_falls_back_is_its_own_words_with_weight_one(space):
    first, second, third = text_rows(["storm wind storm", "漢", ""], space)
    assert first.indices.tolist() == sorted([IDS["storm"], IDS["wind"]])
    assert first.values.tolist() == [1.0, 1.0]
    assert len(second.indices) == len(third.indices) == 0


def test_without_a_tokenizer_the_collections_own_terms_are_the_space():
    texts = [metadata({"Storm": 2.0, "wind": 1.0}), metadata({"alpha": 1.0}), None]
    space = collection_space(texts)
    assert space.words == ("alpha", "storm", "wind")
    rows = metadata_rows(texts, space, Rarity.from_metadata(texts), 1.0)
    assert [row.indices.tolist() for row in rows] == [[1, 2], [0], []]
    (query,) = text_rows(["Wind, rain: alpha"], space)
    assert query.indices.tolist() == [0, 2]


def test_the_space_is_named_after_the_vocabulary(space, vocabulary):
    assert space.name == f"vocabulary-{vocabulary.fingerprint}"
    assert collection_space([]).name != space.name
