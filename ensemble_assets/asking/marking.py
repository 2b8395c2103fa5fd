"""Mark the words of a question in a passage."""

from __future__ import annotations

import re

import polars as pl

from ensemble_assets.collection.languages import FUNCTION_WORDS
from ensemble_assets.collection.readers.json_values import replace_surrogates
from ensemble_assets.retrieval.bm25_topk import words

_WORD = re.compile("(?:[^\\W_]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])+")
"""A word with its marks: accents, points of Hebrew and Arabic, vowels in the scripts of India."""


def word_places(text: str, question: str) -> list[tuple[int, int]]:
    """Find the words of ``text`` that are words of the question, plurals alike; start and end of each.

    Single letters and function words, such as "the", count only where the question has no other words.
    """
    every = set(words(pl.Series([replace_surrogates(question)[0]])).explode())
    asked = {word for word in every if word not in FUNCTION_WORDS and (len(word) > 1 or not word.isascii())} or every
    places = [match.span() for match in _WORD.finditer(text)]
    alike = words(pl.Series([text[start:end] for start, end in places], dtype=pl.String))
    return [place for place, word in zip(places, alike, strict=True) if set(word) & asked]


def passage(text: str, question: str, characters: int) -> str:
    """Cut the part of ``text`` with the most words of the question, in one line."""
    flat = " ".join(text.split())
    if len(flat) <= characters:
        return flat
    places = word_places(flat, question)
    starts = [start for start, _ in places] or [0]
    best = max(starts, key=lambda at: (sum(at <= start < at + characters - 20 for start, _ in places), -at))
    begin = max(0, min(best - 20, len(flat) - characters))
    begin = flat.rfind(" ", 0, begin) + 1 if begin else 0
    cut = flat[begin : begin + characters]
    return f"{'… ' if begin else ''}{cut}{' …' if begin + characters < len(flat) else ''}"
