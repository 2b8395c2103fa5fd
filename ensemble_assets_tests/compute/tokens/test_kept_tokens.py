"""Token ids of a collection are kept between runs: what is read is what would be made, and nothing else is written."""

from __future__ import annotations

import os
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.tokens import kept_tokens, token_cache
from ensemble_assets.compute.tokens.kept_tokens import digests_of
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets_tests.compute.running.doubles import model_folder

TEXTS = ["alpha beta", "storm flood wind", "engine piston valve", "alpha beta"]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return load_vocabulary(locate(model_folder(tmp_path_factory.mktemp("models") / "m")))


@pytest.fixture(autouse=True)
def keeps_few(monkeypatch):
    """Keep columns of any size."""
    monkeypatch.setattr(kept_tokens, "_WORTH_KEEPING", 1)


@pytest.fixture
def made(monkeypatch):
    """The texts that were tokenised, call by call."""
    made = []
    patched = token_cache
    monkeypatch.setattr(patched, "tokenise_bodies", lambda *args: made.append(list(args[0])) or tokenise_bodies(*args))
    return made


def a_run(folder, known, texts, cap=16, prefix="", column="embedded"):
    """What a run in a new process gives for all chunks."""
    return TokenCache(folder).bodies(pl.Series(texts, dtype=pl.String), known, cap, prefix, column=column)


def rows_of(bodies):
    lengths = np.minimum(bodies.full_lengths, bodies.cap)
    return [bodies.ids[at : at + n].tolist() for at, n in zip(bodies.starts, lengths, strict=True)]


def test_a_run_with_nothing_new_tokenises_nothing(tmp_path, known, made):
    first = a_run(tmp_path, known, TEXTS)
    again = a_run(tmp_path, known, TEXTS)
    assert made == [TEXTS]
    assert rows_of(again) == rows_of(first)
    assert again.full_lengths.tolist() == first.full_lengths.tolist()


def test_of_a_changed_collection_only_the_new_texts_are_tokenised(tmp_path, known, made):
    a_run(tmp_path, known, TEXTS)
    changed = ["rain", *TEXTS[1:], "x y z"]
    assert rows_of(a_run(tmp_path, known, changed)) == rows_of(tokenise_bodies(changed, known, 16))
    assert made == [TEXTS, ["rain", "x y z"]]


COLUMN = st.lists(st.sampled_from(["", "alpha beta", "storm", "storms and rain", "café 人", "x y z " * 5]), max_size=6)
RUN = st.tuples(COLUMN, st.integers(1, 20), st.sampled_from(["", "query "]), st.booleans())


@given(runs=st.lists(RUN, min_size=2, max_size=6))
def test_whatever_ran_before_a_run_gets_what_it_would_make(tmp_path_factory, known, runs):
    folder = tmp_path_factory.mktemp("tokens")
    for texts, cap, prefix, sliced in runs:
        column, expected = pl.Series(texts, dtype=pl.String), tokenise_bodies(texts, known, cap, prefix)
        if sliced:
            places = np.array_split(np.arange(len(texts)), 2)
            parts = TokenCache(folder).slices(column, known, cap, prefix, places, "searched")
            rows = [row for part in parts for row in rows_of(part)]
        else:
            rows = rows_of(a_run(folder, known, texts, cap, prefix))
        assert rows == rows_of(expected)


@pytest.mark.parametrize("then", ["the same again", "another text", "few texts"])
def test_the_ids_of_a_text_that_is_gone_leave_with_the_next_run(tmp_path, known, monkeypatch, then):
    gone, word = "engine piston valve", tokenise_bodies(["engine"], known, 4).ids[0]

    def a_whole_run(texts):
        for column in ("embedded", "searched"):
            a_run(tmp_path, known, texts, column=column)

    def has_gone():
        return any(word in np.load(path)["ids"] for path in tmp_path.iterdir())

    a_whole_run(["alpha", "storm"])
    a_whole_run(["alpha", gone])
    assert has_gone()
    if then == "few texts":
        monkeypatch.setattr(kept_tokens, "_WORTH_KEEPING", 10)
    a_whole_run(["alpha", "storm"] if then != "another text" else ["alpha", "rain"])
    assert len(list(tmp_path.iterdir())) == (0 if then == "few texts" else 2)
    assert not has_gone()


def test_a_text_of_both_columns_is_held_once(tmp_path, known):
    """Texts are cut before they are embedded, and whole where they are searched; most are the same."""
    a_run(tmp_path, known, ["alpha...", *TEXTS[:3]])
    a_run(tmp_path, known, ["alpha beta gamma", *TEXTS[:3]], column="searched")
    assert len(list(tmp_path.iterdir())) == 2
    assert len(kept_tokens.kept_columns(tmp_path, known, "")) == 5


def test_queries_are_not_written(tmp_path, known):
    cache = TokenCache(tmp_path)
    cache.bodies(pl.Series(["storm"]), known, 16)
    assert not list(tmp_path.iterdir())
    cache.bodies(pl.Series(TEXTS), known, 16, column="embedded")
    cache.bodies(pl.Series(["flood piston"]), known, 16)
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(np.load(path)["digests"], digests_of(pl.Series(TEXTS)))


def test_a_candidate_is_taken_from_the_collection(tmp_path, known, made):
    a_run(tmp_path, known, TEXTS)
    picked = TokenCache(tmp_path).bodies(pl.Series(TEXTS), known, 2, rows=np.array([2, 0, 2]))
    assert rows_of(picked) == [rows_of(tokenise_bodies(TEXTS, known, 2))[row] for row in (2, 0, 2)]
    assert made == [TEXTS]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "lengths", "bit", "compression"])
def test_a_damaged_file_counts_as_none_and_is_made_anew(tmp_path, known, made, damage):
    a_run(tmp_path, known, TEXTS)
    (path,) = tmp_path.iterdir()
    content, stored = bytearray(path.read_bytes()), dict(np.load(path))
    if damage == "cut":
        path.write_bytes(content[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        np.savez(path, ids=stored["ids"])
    elif damage == "lengths":
        np.savez(path, **{**stored, "lengths": stored["lengths"] + 1})
    else:
        at = content.rindex(b"PK\x01\x02") + 10 if damage == "compression" else content.index(stored["ids"].tobytes())
        content[at] ^= 1
        path.write_bytes(content)
    assert rows_of(a_run(tmp_path, known, TEXTS)) == rows_of(tokenise_bodies(TEXTS, known, 16))
    a_run(tmp_path, known, TEXTS)
    assert made == [TEXTS, TEXTS]


@pytest.mark.nightly
def test_no_bit_that_is_another_fails_a_run(tmp_path, known):
    a_run(tmp_path, known, TEXTS)
    (path,) = tmp_path.iterdir()
    content, expected = path.read_bytes(), rows_of(tokenise_bodies(TEXTS, known, 16))
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert rows_of(a_run(tmp_path, known, TEXTS)) == expected, place


def test_the_unfinished_file_of_a_killed_run_goes(tmp_path, known):
    a_run(tmp_path, known, TEXTS)
    (path,) = tmp_path.iterdir()
    unfinished = tmp_path / f".{path.name}.0123456789ab.partial"
    unfinished.write_bytes(b"ids")
    a_run(tmp_path, known, TEXTS[1:])
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_fails_no_run(tmp_path, known):
    (tmp_path / "file").write_text("in the way")
    assert rows_of(a_run(tmp_path / "file", known, TEXTS)) == rows_of(tokenise_bodies(TEXTS, known, 16))


def test_a_column_that_no_run_has_had_for_a_month_goes(tmp_path, known):
    a_run(tmp_path, known, TEXTS, prefix="of another model: ")
    (old,) = tmp_path.iterdir()
    os.utime(old, (at := time.time() - 31 * 86_400, at))
    a_run(tmp_path, known, TEXTS)
    assert not old.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_small_column_is_not_kept(tmp_path, known, monkeypatch):
    monkeypatch.undo()
    a_run(tmp_path, known, TEXTS)
    assert not list(tmp_path.iterdir())
