"""Preparation of chunk texts, and whole texts made from the prepared text and the rest."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.chunk_text import WHOLE_TEXT_COLUMNS, modal_hint_of, prepare_text, whole_text
from ensemble_assets.collection.readers.read_report import RawRecord
from ensemble_assets_tests.collection.built import build_chunks
from ensemble_assets_tests.export import reference

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
MANY_TEXTS = st.lists(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60), max_size=8
)


@given(TEXTS, st.integers(1, 30))
def test_text_is_what_the_reference_makes_of_it(raw: str, max_tokens: int) -> None:
    prepared = prepare_text(raw, max_tokens)
    assert prepared.text == reference.prepare(raw, max_tokens)
    assert prepared.cut == (len(" ".join(raw.split())) > 4 * max_tokens) == bool(prepared.rest)
    assert prepared.original_length == len(raw)
    assert prepared.sha1 == hashlib.sha1(raw.encode()).hexdigest()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a\t\n b \r\n c  ", "a b c"),
        ("a\u00a0b\u2003c\u2028d\x1ce\x85f", "a b c d e f"),  # whatever Unicode or ASCII calls white space
        ("a\u200bb", "a\u200bb"),  # a zero-width space is none
        ("", ""),
    ],
)
def test_every_whitespace_run_becomes_one_space(raw: str, expected: str) -> None:
    assert prepare_text(raw, 100).text == expected


def test_text_is_cut_after_four_characters_per_token() -> None:
    assert prepare_text("abcd efg", 2).text == "abcd efg"
    cut = prepare_text("abcd  efgh", 2)
    assert (cut.text, cut.rest, cut.cut, cut.original_length) == ("abcd efg...", "h", True, 10)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ("see\n```\nx\n```", "code"),
        ("x" * 1000 + "```", "code"),
        ("  DEF f(): pass", "code"),
        ("a class of its own", "code"),
        ("x" * 400 + " def f", "prose"),
        ("Sizes\n| a | b |\n|---|---|", "table"),
        ("| a | b |", "prose"),
        ("a | b", "prose"),
        (' \n {"a": 1}', "json"),
        ("[1, 2]", "json"),
        ("Plain words.", "prose"),
        (" \n\t ", ""),
    ],
)
def test_modal_hint_follows_the_original_text(raw: str, hint: str) -> None:
    assert modal_hint_of(raw) == hint


@given(TEXTS.filter(lambda raw: bool(raw.strip())))
def test_modal_hint_is_the_reference_hint(raw: str) -> None:
    assert modal_hint_of(raw) == reference.hint_by_text(raw)


def records(texts: list[str]) -> list[RawRecord]:
    return [RawRecord(text, {}, "a_chunks.json", position) for position, text in enumerate(texts)]


@given(MANY_TEXTS, st.integers(1, 6))
def test_a_whole_text_is_the_original_with_its_white_space_collapsed(texts: list[str], max_tokens: int) -> None:
    frame, _ = build_chunks(records(texts), max_tokens)
    collapsed = [" ".join(text.split()) for text in texts]
    assert frame.select(WHOLE_TEXT_COLUMNS).select(whole_text())["text"].to_list() == [
        text for text in collapsed if text
    ]


@given(MANY_TEXTS, st.integers(1, 6))
def test_without_the_rest_it_is_what_is_exported_mark_and_all(texts: list[str], max_tokens: int) -> None:
    frame, _ = build_chunks(records(texts), max_tokens, keep_rest=False)
    assert set(frame["rest"]) <= {""}
    assert frame.select(whole_text())["text"].to_list() == frame["text"].to_list()


def test_a_text_that_ends_like_a_cut_one_is_left_alone() -> None:
    frame, _ = build_chunks(records(["and so on..."]), 256)
    assert frame.select(whole_text())["text"].to_list() == ["and so on..."]
