"""Marked are the words that a question is about."""

from __future__ import annotations

import pytest

from ensemble_assets.asking.marking import word_places


@pytest.mark.parametrize(
    ("question", "text", "marked"),
    [
        (
            "can a list be the key of a dictionary?",
            "A list of the keys in a dictionary",
            ["list", "keys", "dictionary"],
        ),
        ("to be or not to be", "not to be", ["not", "to", "be"]),
        ("wie ist das Wetter", "das Wetter ist heiter", ["Wetter"]),
    ],
)
def test_function_words_are_not_marked_unless_there_are_no_others(question: str, text: str, marked: list[str]) -> None:
    assert [text[start:end] for start, end in word_places(text, question)] == marked
