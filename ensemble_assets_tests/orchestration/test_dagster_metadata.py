"""Metadata follows one rule on values: texts are dropped and counted, whatever their key."""

from __future__ import annotations

import base64
import math
import re
import xml.etree.ElementTree as ET

import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common import stages
from ensemble_assets.orchestration.dagster_metadata import (
    DROPPED,
    NAMES,
    _fixed_words,
    admitted_metadata,
    bars,
    histogram,
    table,
)
from ensemble_assets.telemetry.allowed_names import FIELDS
from ensemble_assets.telemetry.allowed_values import is_slug
from ensemble_assets_tests.telemetry.canaries import CANARIES

KEYS = (
    "items",
    "status",
    "unit",
    "device",
    "content",
    "nDCG@10",
    "dense nDCG@10",
    "dagster/row_count",
    "query",
    *NAMES,
)


def test_numbers_booleans_words_digests_and_devices_pass():
    facts = {
        "items": 3,
        "wall_seconds": 0.5,
        "judged": True,
        "status": "completed",
        "unit": "chunks and queries",
        "precision": "fp32,bf16",
        "budget": "own_dense",
        "method": "zscore",
        "reason": "out_of_memory",
        "backend_reason": "fastest_on_this_cpu,openvino_not_installed",
        "content": "0123456789abcdef" * 2,
        "index_space": "vocabulary-0123456789abcdef",
        "device": "GPU-8c5a3b7e-2e94-424c-8001-054d624414a6,GPU-8fc48f76-2e94-424c-8001-054d624414a6",
        "dense nDCG@10": np.float64(0.5),
        "lexical MAP": 0.25,
        "dagster/row_count": np.int64(7),
    }
    assert admitted_metadata(facts, {}) == facts


def test_other_strings_are_dropped_and_counted_and_none_is_no_value():
    picture = dg.MetadataValue.md("a table")
    shown = admitted_metadata(
        {"items": 3, "query": "how do I pay", "device": None, "tokens": "many", "seconds": math.nan},
        {"contents": picture, "preview": dg.MetadataValue.text("how do I pay")},
    )
    assert shown == {"items": 3, "contents": picture, DROPPED: 4}


def test_a_list_that_is_added_has_its_measures_shown(monkeypatch):
    facts = {"titles nDCG@10": 0.5}
    assert admitted_metadata(facts, {}) == {DROPPED: 1}
    added = stages.RankedListKind("titles", "Titles alone", "fusion", first_stage=True)
    monkeypatch.setattr(stages, "LISTS", (*stages.LISTS, added))
    assert admitted_metadata(facts, {}) == facts


@pytest.mark.parametrize("canary", CANARIES, ids=range(len(CANARIES)))
def test_no_key_takes_a_canary_and_no_canary_is_a_key(canary):
    shown = admitted_metadata(dict.fromkeys(KEYS, canary), {"notes": dg.MetadataValue.text(canary)})
    assert shown.pop(DROPPED) == len(KEYS) - len(NAMES) + 1
    assert shown.keys() == NAMES
    assert is_slug(canary) or all(re.fullmatch("h-[0-9a-f]{16}", str(value)) for value in shown.values())
    if " " in canary:
        assert admitted_metadata({canary: 1}, {canary: dg.MetadataValue.md("a table")}) == {DROPPED: 2}


@pytest.mark.parametrize("sentence", ["how do i pay", "river", "where is my money", "", "cafe", "cpu please"])
def test_no_key_takes_plain_words_that_are_in_no_table(sentence):
    facts = dict.fromkeys(set(KEYS) - NAMES, sentence)
    assert admitted_metadata(facts, {}) == {DROPPED: len(facts)}


WORDS_IN_A_ROW = st.lists(st.sampled_from([*sorted(_fixed_words()), "river", "money", "how", "pay"]), min_size=1)


@given(st.sampled_from(KEYS), st.text() | WORDS_IN_A_ROW.map(" ".join) | WORDS_IN_A_ROW.map(",".join))
def test_no_free_text_can_pass(key, text):
    """What passes is made of words of the tables, hex digits or a device; a name is plain or a hash."""
    shown = admitted_metadata({key: text}, {}).get(key)
    if key in NAMES:
        assert is_slug(shown)
    elif shown is not None:
        words = set(shown.split(",")) <= _fixed_words()
        assert words or re.fullmatch("(vocabulary-)?[0-9a-f]{16,64}", shown) or FIELDS["device"].check(shown, {})


def test_the_tables_hold_short_words_only():
    """A word of a table can be shown, so none may be long enough to say something about a text."""
    assert all(re.fullmatch(r"[A-Za-z0-9_. -]{2,32}", word) for word in _fixed_words())


def test_a_histogram_leaves_out_what_is_not_finite_and_says_when_nothing_is_left():
    drawn = histogram(np.array([1.0, np.nan, 3.0, np.inf]), "Scores", "points")
    words, encoded = re.fullmatch(r"!\[(.+)\]\(data:image/svg\+xml;base64,(.+)\)", drawn.value).groups()
    assert words == "Scores: 2 values from 1 to 3 points, median 2, tallest bar 1"
    drawing = ET.fromstring(base64.b64decode(encoded))
    assert sum(element.tag.endswith("rect") for element in drawing.iter()) == 3
    assert not any(element.tag.endswith("title") for element in drawing.iter()), "an <img> shows no tooltips"
    assert histogram(np.array([np.nan]), "Scores", "points").value == "Scores: no values"


def test_a_table_without_rows_is_a_sentence_and_a_long_one_is_cut():
    assert table([]).value == "nothing to report"
    assert len(table([{"file": str(number)} for number in range(30)]).records) == 20


def test_bars_have_their_names_and_values_in_words():
    assert bars(["a", "b"], [1.0, 2.5], "Seconds per model", "s").value.startswith(
        "![Seconds per model: a 1 s; b 2.5 s]("
    )
