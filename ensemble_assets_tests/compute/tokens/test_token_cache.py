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


def test_models_that_share_a_vocabulary_tokenise_once(tmp_path, monkeypatch):
    first, second = (load_vocabulary(locate(model_folder(tmp_path / name))) for name in ("one", "two"))
    cache, texts = TokenCache(), pl.Series(["alpha beta", "storm"])
    made = []
    monkeypatch.setattr(module, "tokenise_bodies", lambda *args: made.append(args) or tokenise_bodies(*args))
    assert cache.bodies(texts, first, 16) is cache.bodies(texts, second, 8)
    assert len(made) == 1
    assert cache.cached_bodies(texts, second, 16) is not None
    assert cache.cached_bodies(texts, second, 17) is None
    assert cache.bodies(texts, first, 16, prefix="query ") is not cache.bodies(texts, first, 16)
    assert cache.bodies(pl.Series(["alpha beta", "storms"]), first, 16) is not cache.bodies(texts, first, 16)
    cache.bodies(texts, first, 20)
    assert cache.bodies(texts, first, 20).cap == 20


def test_the_cache_lets_go_of_the_oldest_column(tmp_path):
    known = load_vocabulary(locate(model_folder(tmp_path / "m")))
    cache = TokenCache(most_ids=5)
    first, second, third = (pl.Series([text]) for text in ("alpha beta", "storm flood wind", "a b c d e f"))
    cache.bodies(first, known, 16)
    cache.bodies(second, known, 16)
    assert cache.cached_bodies(first, known, 16) is not None
    cache.bodies(third, known, 16)
    assert cache.cached_bodies(first, known, 16) is None
    assert cache.cached_bodies(second, known, 16) is None
    assert cache.cached_bodies(third, known, 16) is not None


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
    assert [row[: caps[1]] for row in rows_of(found)] == rows_of(expected)
    np.testing.assert_array_equal(found.full_lengths, expected.full_lengths)
    assert found.cap >= caps[1]


def test_only_the_texts_that_differ_are_tokenised_again(known, monkeypatch):
    cache, made = TokenCache(), []
    monkeypatch.setattr(module, "tokenise_bodies", lambda *args: made.append(list(args[0])) or tokenise_bodies(*args))
    cut, whole = pl.Series(["alpha", "storm...", "rain"]), pl.Series(["alpha", "storm and flood", "rain"])
    cache.bodies(cut, known, 16)
    cache.bodies(whole, known, 16)
    assert made == [["alpha", "storm...", "rain"], ["storm and flood"]]
    cache.bodies(whole, known, 17)  # what is here was cut shorter
    assert made[2:] == [["alpha", "storm and flood", "rain"]]


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
