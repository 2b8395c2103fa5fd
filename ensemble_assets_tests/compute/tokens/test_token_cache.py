"""Every text is tokenised once for all models that share a vocabulary, and what is kept is what would be made."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.tokens import token_cache as module
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets_tests.compute.running.doubles import model_folder


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return load_vocabulary(locate(model_folder(tmp_path_factory.mktemp("models") / "m")))


@pytest.fixture
def made(monkeypatch):
    """The texts that were tokenised, call by call."""
    made = []
    monkeypatch.setattr(module, "tokenise_bodies", lambda *args: made.append(list(args[0])) or tokenise_bodies(*args))
    return made


def test_models_that_share_a_vocabulary_tokenise_once(tmp_path, made):
    first, second = (load_vocabulary(locate(model_folder(tmp_path / name))) for name in ("one", "two"))
    cache, texts = TokenCache(), pl.Series(["alpha beta", "storm"])
    cache.bodies(texts, first, 16)
    cache.bodies(texts, second, 8)
    assert made == [["alpha beta", "storm"]]
    cache.bodies(texts, first, 16, prefix="query ")
    cache.bodies(pl.Series(["storms", "alpha beta"]), first, 16)
    assert made[1:] == [["alpha beta", "storm"], ["storms"]]


@pytest.mark.parametrize("column", ["searched", None])
def test_of_more_ids_than_it_may_hold_the_cache_holds_those_asked_for(known, made, column):
    cache, texts = TokenCache(most_ids=5), pl.Series(["alpha beta", "storm flood wind", "a b c d e f"])
    for at in (0, 1, 2):
        cache.bodies(texts[at : at + 1], known, 16, column=column)
    cache.bodies(texts[1:], known, 16, column=column)  # more than it may hold: the first one goes
    assert len(made) == 3
    cache.bodies(texts, known, 16, column=column)
    assert made[3:] == [["alpha beta"]]


def rows_of(bodies):
    kept = np.minimum(bodies.full_lengths, bodies.cap)
    return [bodies.ids[at : at + n].tolist() for at, n in zip(bodies.starts, kept, strict=True)]


TEXTS = st.lists(st.sampled_from(["", "alpha beta", "storm", "storms and rain", "x y z " * 5]), min_size=1, max_size=6)


@given(first=TEXTS, second=TEXTS, caps=st.tuples(st.integers(1, 20), st.integers(1, 20)), prefix=st.booleans())
def test_a_column_that_shares_texts_with_another_is_as_if_made_anew(known, first, second, caps, prefix):
    cache, before = TokenCache(), "query " if prefix else ""
    cache.bodies(pl.Series(first), known, caps[0], before)
    found = cache.bodies(pl.Series(second), known, caps[1], before)
    expected = tokenise_bodies(second, known, caps[1], before)
    assert rows_of(found) == rows_of(expected)
    np.testing.assert_array_equal(found.full_lengths, expected.full_lengths)
    assert found.cap == caps[1]


def test_only_the_texts_that_differ_are_tokenised_again(known, made):
    cache = TokenCache()
    cut, whole = pl.Series(["alpha", "storm...", "rain"]), pl.Series(["storm and flood", "alpha", "rain", "x y z"])
    cache.bodies(cut, known, 2)
    cache.bodies(whole, known, 2)
    assert made == [["alpha", "storm...", "rain"], ["storm and flood", "x y z"]]
    cache.bodies(whole, known, 3)
    assert made[2:] == [["storm and flood", "x y z"]], "they were cut shorter"


def test_a_text_that_fails_is_named_by_its_row_in_its_own_column(known, monkeypatch):
    def failing(texts, *rest):
        rows = [row for row, text in enumerate(texts) if text == "bad"]
        if rows:
            raise StageError(f"the tokenizer failed on text {rows[0]} of its list")
        return tokenise_bodies(texts, *rest)

    cache = TokenCache()
    monkeypatch.setattr(module, "tokenise_bodies", failing)
    cache.bodies(pl.Series(["alpha", "storm", "rain"]), known, 16)
    with pytest.raises(StageError, match="text 2"):
        cache.bodies(pl.Series(["alpha", "storm", "bad"]), known, 16)
