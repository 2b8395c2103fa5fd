"""Texts that are not in English are recognised by script and frequent words; English, code and tables are not."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from ensemble_assets.collection import languages
from ensemble_assets.collection.languages import foreign_texts, foreign_writing

TEXTS: dict[str, str] = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("writing", TEXTS)
def test_a_sentence_is_recognised_as_what_it_is(writing: str) -> None:
    assert foreign_writing(TEXTS[writing]) == ("" if writing == "English" else writing)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "Zürich, Ångström, naïve café",
        "See R\u00f6ntgen and Poincar\u00e9: the coefficient \u03b1 is greater than \u03b2 for all \u03b3.",
        "la = [1, 2]\nfor el in la:\n    print(el, los=el)\n",
        "| de | la | per |\n| 1 | 2 | 3 |",
        inspect.getsource(foreign_texts),
    ],
)
def test_english_names_formulas_code_and_tables_are_not_taken_for_another_language(text: str) -> None:
    assert foreign_writing(text) == ""


def test_most_of_a_sample_and_its_most_frequent_writing() -> None:
    sample = [TEXTS["English"], TEXTS["Cyrillic"], TEXTS["Cyrillic"], TEXTS["German"], TEXTS["English"]]
    counted = foreign_texts(sample)
    assert (counted.texts, counted.of, counted.writing, counted.are_most) == (3, 5, "Cyrillic", True)
    assert not foreign_texts(sample[:2]).are_most
    assert foreign_texts([]).as_json() == {"texts": 0, "of": 0, "writing": ""}


def test_no_list_holds_a_word_that_makes_english_text_another_language() -> None:
    for language, words in languages._FUNCTION_WORDS.items():
        assert len(words & languages._ENGLISH) <= 2, language
