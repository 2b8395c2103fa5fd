"""Batches hold exactly what the model's own tokenizer would make of texts and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.tokens.token_tables import pair_table, single_table
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.tokens import pad, read_vocabulary, tokenise

_QUERIES = ["what is a moraine?", "naïve café", "bees"]
_PASSAGES = ["A moraine is debris left by a glacier. " * 6, "", "Honey! 蜂蜜 and pollen."]


@pytest.mark.models
@pytest.mark.usefixtures("work")
def test_pairs_equal_the_transformers_tokenizer_of_the_embedded_model() -> None:
    folder = locate(MODELS["splade-tiny"]).folder
    vocabulary = read_vocabulary(folder)
    queries, passages = (tokenise(vocabulary, texts, 40) for texts in (_QUERIES, _PASSAGES))
    pairs = np.array([[0, 0], [1, 1], [2, 2]])
    got = pad(pair_table(queries, passages, pairs, vocabulary.template, 32), np.arange(3), vocabulary)
    expected = AutoTokenizer.from_pretrained(folder)(
        _QUERIES, _PASSAGES, truncation="only_second", max_length=32, padding="longest", return_tensors="pt"
    )
    assert got.ids.tolist() == expected["input_ids"].tolist()
    assert got.attention.tolist() == expected["attention_mask"].tolist()
    assert got.segments.tolist() == expected["token_type_ids"].tolist()


def test_single_texts_are_framed_and_cut(body: Path) -> None:
    vocabulary = read_vocabulary(body)
    table = single_table(tokenise(vocabulary, ["ice ice ice", "bee"], 4), vocabulary.template, 4)
    batch = pad(table, np.array([1, 0]), vocabulary)
    ice, bee = (vocabulary.tokenizer.token_to_id(word) for word in ("ice", "bee"))
    assert batch.ids.tolist() == [[2, bee, 3, 0], [2, ice, ice, 3]]
    assert batch.attention.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.segments.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert table.truncated.tolist() == [True, False]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=6), limit=st.integers(21, 40)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_pair_is_longer_than_allowed_and_segments_follow_the_parts(
    body: Path, sizes: list[tuple[int, int]], limit: int
) -> None:
    """Only the passage is cut: a query has at most half of the room, as in every recipe."""
    vocabulary = read_vocabulary(body)
    ice, bee = (vocabulary.tokenizer.token_to_id(word) for word in ("ice", "bee"))
    queries = tokenise(vocabulary, ["ice " * query for query, _ in sizes], limit)
    passages = tokenise(vocabulary, ["bee " * passage for _, passage in sizes], limit)
    pairs = np.repeat(np.arange(len(sizes)), 2).reshape(-1, 2)
    batch = pad(pair_table(queries, passages, pairs, vocabulary.template, limit), np.arange(len(sizes)), vocabulary)
    for index, (query, passage) in enumerate(sizes):
        rest = min(passage, limit - query - 3)
        expected = [2, *[ice] * query, 3, *[bee] * rest, 3]
        length = int(batch.attention[index].sum())
        assert batch.ids[index, :length].tolist() == expected
        assert length <= limit
        assert batch.segments[index, :length].tolist() == [0] * (query + 2) + [1] * (rest + 1)
        assert int(batch.ids[index, length:].abs().sum()) == 0


def test_a_query_has_at_most_its_limit_of_tokens(body: Path) -> None:
    assert tokenise(read_vocabulary(body), ["ice ice ice", "bee"], 9, 2).full_lengths.tolist() == [2, 1]


def test_a_tokenizer_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelUnavailableError, match="lacks"):
        read_vocabulary(tmp_path)
