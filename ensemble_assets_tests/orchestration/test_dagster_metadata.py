"""Asset and check metadata follow the allow-list: what is not on it is dropped and counted, texts above all."""

from __future__ import annotations

import re

import dagster as dg
import pytest

from ensemble_assets.orchestration.dagster_metadata import DROPPED, METADATA, PICTURES, admitted_metadata
from ensemble_assets.telemetry.allowed_values import is_slug
from ensemble_assets_tests.telemetry.canaries import CANARIES
from ensemble_assets_tests.telemetry.documented import PAGE, block


def test_what_is_on_the_list_passes_and_the_rest_is_dropped_and_counted():
    picture = dg.MetadataValue.md("a table")
    shown = admitted_metadata(
        {"items": 3, "status": "completed", "query": "how do I pay", "device": None, "tokens": "many"},
        {"contents": picture, "preview": picture},
    )
    assert shown == {"items": 3, "status": "completed", "contents": picture, DROPPED: 3}


NAMES = {"alias", "model", "collection_in_qdrant"}
"""Names that the operator chose: they leave as they are if they are plain names, else as hashes."""


@pytest.mark.parametrize("canary", CANARIES, ids=range(len(CANARIES)))
def test_no_key_takes_a_text(canary):
    shown = admitted_metadata({**dict.fromkeys(METADATA, canary), canary: 1}, {canary: dg.MetadataValue.text(canary)})
    assert shown.pop(DROPPED) == len(METADATA) - len(NAMES) + 2
    assert shown.keys() == NAMES
    assert is_slug(canary) or all(re.fullmatch("h-[0-9a-f]{16}", str(value)) for value in shown.values())


@pytest.mark.parametrize("sentence", ["how do i pay", "river", "where is my money", ""])
def test_no_key_takes_plain_words_that_are_not_on_its_list(sentence):
    shown = admitted_metadata(dict.fromkeys(METADATA.keys() - NAMES, sentence), {})
    assert shown == {DROPPED: len(METADATA) - len(NAMES)}


def test_the_page_lists_every_key():
    listed = set(re.findall(r"^\| `([^`]+)` \|", block(PAGE.read_text(), "metadata").group(2), re.MULTILINE))
    assert listed == METADATA.keys() | PICTURES.keys()
