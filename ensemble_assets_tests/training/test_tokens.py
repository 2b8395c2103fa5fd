"""Batches hold exactly what the model's own tokenizer would make of texts and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.tokens import load_tokenizer, pad_pairs, pad_singles, row, tokenise

_QUERIES = ["what is a moraine?", "naïve café", "bees"]
_PASSAGES = ["A moraine is debris left by a glacier. " * 6, "", "Honey! 蜂蜜 and pollen."]


@pytest.mark.models
@pytest.mark.usefixtures("work")
def test_pairs_equal_the_transformers_tokenizer_of_the_embedded_model() -> None:
    folder = locate(MODELS["splade-tiny"]).folder
    tokenizer, special = load_tokenizer(folder)
    queries, passages = (tokenise(tokenizer, texts, 40) for texts in (_QUERIES, _PASSAGES))
    got = pad_pairs([row(queries, i) for i in range(3)], [row(passages, i) for i in range(3)], special, 32)
    expected = AutoTokenizer.from_pretrained(folder)(
        _QUERIES, _PASSAGES, truncation="only_second", max_length=32, padding="longest", return_tensors="pt"
    )
    assert got.ids.tolist() == expected["input_ids"].tolist()
    assert got.attention.tolist() == expected["attention_mask"].tolist()
    assert got.segments.tolist() == expected["token_type_ids"].tolist()


def test_single_texts_are_framed_and_cut(body: Path) -> None:
    tokenizer, special = load_tokenizer(body)
    table = tokenise(tokenizer, ["ice ice ice", "bee"], 2)
    batch = pad_singles(table, np.array([1, 0]), special)
    ice, bee = tokenizer.token_to_id("ice"), tokenizer.token_to_id("bee")
    assert batch.ids.tolist() == [[2, bee, 3, 0], [2, ice, ice, 3]]
    assert batch.attention.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert table.truncated.tolist() == [True, False]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=6), st.integers(12, 40))
def test_no_pair_is_longer_than_allowed_and_segments_follow_the_parts(sizes: list[tuple[int, int]], limit: int) -> None:
    from ensemble_assets.training.tokens import SpecialTokens

    queries = [np.full(query, 7, dtype=np.int32) for query, _ in sizes]
    passages = [np.full(passage, 9, dtype=np.int32) for _, passage in sizes]
    batch = pad_pairs(queries, passages, SpecialTokens(1, 2, 0), limit)
    for index, (query, passage) in enumerate(sizes):
        kept = min(passage, limit - query - 3)
        expected = [1, *[7] * query, 2, *[9] * kept, 2]
        length = int(batch.attention[index].sum())
        assert batch.ids[index, :length].tolist() == expected
        assert length <= limit
        assert batch.segments[index, :length].tolist() == [0] * (query + 2) + [1] * (kept + 1)
        assert int(batch.ids[index, length:].abs().sum()) == 0


def test_a_tokenizer_without_berts_special_tokens_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelUnavailableError, match="lacks"):
        load_tokenizer(tmp_path)
