"""Whole texts out of what is exported and what was cut off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import build_chunks
from ensemble_assets.collection.readers.read_report import RawRecord
from ensemble_assets.collection.whole_text import COLUMNS, whole_text

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60), max_size=8)


def records(texts: list[str]) -> list[RawRecord]:
    return [RawRecord(text, {}, "a_chunks.json", position) for position, text in enumerate(texts)]


@given(TEXTS, st.integers(1, 6))
def test_a_whole_text_is_the_original_with_its_white_space_collapsed(texts: list[str], max_tokens: int) -> None:
    frame, _ = build_chunks(records(texts), max_tokens)
    collapsed = [" ".join(text.split()) for text in texts]
    assert frame.select(COLUMNS).select(whole_text())["text"].to_list() == [text for text in collapsed if text]


@given(TEXTS, st.integers(1, 6))
def test_without_the_rest_it_is_what_is_exported_mark_and_all(texts: list[str], max_tokens: int) -> None:
    frame, _ = build_chunks(records(texts), max_tokens, keep_rest=False)
    assert set(frame["rest"]) <= {""}
    assert frame.select(whole_text())["text"].to_list() == frame["text"].to_list()


def test_a_text_that_ends_like_a_cut_one_is_left_alone() -> None:
    frame, _ = build_chunks(records(["and so on..."]), 256)
    assert frame.select(whole_text())["text"].to_list() == ["and so on..."]
