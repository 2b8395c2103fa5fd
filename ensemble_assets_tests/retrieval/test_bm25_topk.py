"""BM25 over the queries' words equals the textbook formula over all words, whatever the slices."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.asking.marking import word_places
from ensemble_assets.retrieval.bm25_topk import K1, B, LexicalIndex, bm25_rows, lexical_topk, words
from ensemble_assets.retrieval.topk import NO_ROW

WORDS = st.sampled_from(["river", "Rivers", "engine", "berries", "glass", "boxes", "über", "2024", "the", "THE"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(", ".join), min_size=1, max_size=8)


def singular(word: str) -> str:
    """Harman's S-stemmer, first rule that applies."""
    if word.endswith("ies"):
        return re.sub("([^ae])ies$", r"\1y", word)
    if word.endswith("es"):
        return re.sub("([^aeo])es$", r"\1e", word)
    return re.sub("([^us])s$", r"\1", word)


def split(text: str) -> list[str]:
    return [singular(word) for word in re.findall(r"[^\W_]+", text.lower())]


def reference(chunks: list[str], query: str) -> list[float]:
    """BM25 of every chunk, straight from the formula."""
    documents = [Counter(split(chunk)) for chunk in chunks]
    lengths = [sum(document.values()) for document in documents]
    mean = max(1.0, sum(lengths) / len(lengths))
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for word in split(query):
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(chunks) - holding + 0.5) / (holding + 0.5))
            tf = document[word]
            score += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / mean)) if tf else 0.0
        scores.append(score)
    return scores


@given(TEXTS, TEXTS, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_scores_are_those_of_the_formula_and_slices_do_not_matter(chunks, queries, size):
    slices = [pl.Series(chunks[i : i + size], dtype=pl.String) for i in range(0, len(chunks), size)]
    documents, asked = bm25_rows(slices, pl.Series(queries, dtype=pl.String))
    for number, query in enumerate(queries):
        mine = np.zeros(len(chunks))
        for at in range(asked.indptr[number], asked.indptr[number + 1]):
            for row in range(len(chunks)):
                part = slice(documents.indptr[row], documents.indptr[row + 1])
                mine[row] += (
                    asked.values[at] * documents.values[part][documents.indices[part] == asked.indices[at]].sum()
                )
        assert mine == pytest.approx(reference(chunks, query), rel=1e-5, abs=1e-6)


@given(TEXTS, TEXTS, st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_the_search_returns_the_best_chunks_that_share_a_word(chunks, queries, k):
    found = lexical_topk([pl.Series(chunks, dtype=pl.String)], pl.Series(queries, dtype=pl.String), k)
    for number, query in enumerate(queries):
        scores = np.array(reference(chunks, query), dtype=np.float32)
        expected = [row for row in np.argsort(-scores, kind="stable")[:k] if scores[row] > 0]
        got = [int(row) for row in found.rows[number] if row != NO_ROW]
        assert len(got) == len(expected)
        assert scores[got] == pytest.approx(scores[expected], rel=1e-5)


def test_words_are_lower_case_without_punctuation_and_plural():
    assert words(pl.Series(["The boxes, 12 Berries: glass!", ""])).to_list() == [
        ["the", "boxe", "12", "berry", "glass"],
        [],
    ]


def test_a_query_without_words_finds_nothing():
    found = lexical_topk([pl.Series(["some text"])], pl.Series(["?!", "text"]), 3)
    assert [int((rows != NO_ROW).sum()) for rows in found.rows] == [0, 1]


UNSPACED_TEXTS = {
    "备份任务每天凌晨两点自动执行。": [
        "备份",
        "份任",
        "任务",
        "务每",
        "每天",
        "天凌",
        "凌晨",
        "晨两",
        "两点",
        "点自",
        "自动",
        "动执",
        "执行",
    ],
    "人": ["人"],
    "Qdrant备份 v2": ["qdrant", "备份", "v2"],
    "バックアップ": ["バッ", "ック", "クア", "アッ", "ップ"],
    "ภาษาไทย": ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"],
    "백업 작업": ["백업", "작업"],
}


@pytest.mark.parametrize("text", UNSPACED_TEXTS)
def test_every_two_characters_of_a_script_without_blanks_are_a_word(text: str) -> None:
    assert words(pl.Series(["plain words", text])).to_list() == [["plain", "word"], UNSPACED_TEXTS[text]]


MARKED = {
    "हिन्दी में खोज": ["हिन्दी", "में", "खोज"],
    "கணினி நிரல்": ["கணினி", "நிரல்"],
    "שָׁלוֹם עולם": ["שָׁלוֹם", "עולם"],
    "u\u0308ber Straße": ["über", "straße"],
    "\uff21\uff30\uff29\u3000\uff4b\uff45\uff59 \uff12\uff10\uff12\uff14": ["api", "key", "2024"],
    "I ❤\ufe0f boats": ["i", "boat"],
}


@pytest.mark.parametrize("text", MARKED)
def test_a_mark_belongs_to_its_letter_in_whatever_form_it_is_written(text: str) -> None:
    expected = [unicodedata.normalize("NFKC", word) for word in MARKED[text]]
    for form in ("NFC", "NFD"):
        assert words(pl.Series(["plain words", unicodedata.normalize(form, text)])).to_list()[1] == expected


def test_a_question_in_hindi_finds_its_words_and_no_single_letters() -> None:
    chunks = pl.Series(["प्रतिदिन बैकअप होता है", "पासवर्ड फिर से सेट करें"])
    found = lexical_topk([chunks], pl.Series(["बैकअप", "पा से"]), 2)
    assert found.rows.tolist() == [[0, NO_ROW], [1, NO_ROW]]
    assert word_places("प्रतिदिन बैकअप", "बैकअप कब") == [(9, 14)]


def test_a_question_in_chinese_finds_the_chunk_that_answers_it() -> None:
    chunks = pl.Series(
        ["系统安装步骤包括下载安装包并运行脚本。", "备份任务每天凌晨两点自动执行。", "忘记密码时请联系管理员重置。"]
    )
    found = lexical_topk([chunks], pl.Series(["备份什么时候执行", "怎么重置密码"]), 3)
    assert found.rows[:, 0].tolist() == [1, 2]


@settings(max_examples=100)
@given(st.text(alphabet="备份任务 ab\u0e01\u0e32。", max_size=30))
def test_pairs_agree_with_a_plain_walk_over_the_characters(text: str) -> None:
    expected, run = [], ""
    for character in [*text, " "]:
        spaced = character in "ab"
        if run and (not (character.isalnum() or character == "\u0e32") or spaced != (run[-1] in "ab")):
            pairs = [run] if run[0] in "ab" or len(run) == 1 else [run[n : n + 2] for n in range(len(run) - 1)]
            expected += pairs
            run = ""
        run += character if character.isalnum() or character == "\u0e32" else ""
    found = words(pl.Series([text])).to_list()[0]
    assert [w for w in found if not w.isascii()] == [w for w in expected if not w.isascii()]


@given(TEXTS, TEXTS, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_an_index_of_all_words_gives_the_same_bits(chunks, queries, size):
    slices = [pl.Series(chunks[i : i + size], dtype=pl.String) for i in range(0, len(chunks), size)]
    asked = pl.Series(queries, dtype=pl.String)
    index, once = LexicalIndex(iter(slices)).topk(asked, 3), lexical_topk(slices, asked, 3)
    np.testing.assert_array_equal(index.rows, once.rows)
    np.testing.assert_array_equal(index.scores, once.scores)
    assert LexicalIndex([]).topk(asked, 3).filled.tolist() == [0] * len(queries)
