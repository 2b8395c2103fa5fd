"""The searches of the tests see through base64 and into databases."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.export.query_leaks.gate import no_raw_queries, text_place
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets_tests.orchestration.stored_text import run_places, with_base64, written_places

QUERY = Query("q1", "Where did my late mother's credit-card charges go — Zürich?")


def base64_at(offset: int) -> Callable[[str], str]:
    return lambda text: base64.b64encode(b"x" * offset + text.encode() + b"tail").decode()


FORMS: dict[str, Callable[[str], str]] = {
    "base64": base64_at(0),
    "base64, one byte on": base64_at(1),
    "base64, two bytes on": base64_at(2),
    "base64, glued to a word": lambda text: "abc" + base64_at(0)(text),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(("ÿþ?>" + text).encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes((text * 3).encode()).decode(),
    "base64 of six words": lambda text: base64_at(1)(" ".join(text.split()[1:7])),
    "base64 of base64": lambda text: base64_at(1)(base64_at(2)(text)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_base64_is_undone(form: str) -> None:
    place = text_place("log", [f"2026-01-02 INFO start {FORMS[form](QUERY.text)} end"])
    assert no_raw_queries([QUERY], [place]).passed
    assert no_raw_queries([QUERY], with_base64(place)).failed


def test_a_query_whose_base64_is_nothing_but_digits_is_found() -> None:
    text = "獴獵獶獷獸獹"
    encoded = base64.b64encode(text.encode()).decode()
    assert encoded.isdigit()
    place = text_place("numbers", [f'{{"score": 0.{encoded}}}'])
    assert no_raw_queries([Query("q1", text)], with_base64(place)).failed


def test_cells_that_are_spread_over_pages_of_a_database_are_found(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "runs.db") as database:
        database.execute("create table event_logs (id integer, body text)")
        said = json.dumps(json.dumps({"q": QUERY.text}))
        database.execute("insert into event_logs values (1, ?)", ("filler " * 3000 + said,))
    database.close()
    found = no_raw_queries([QUERY], written_places(tmp_path.parent, [tmp_path.name]))
    assert any(sentence.startswith("cells of runs.db") for sentence in found.problems)


def test_events_and_captured_output_of_a_run_are_searched(tmp_path: Path) -> None:
    @dg.op
    def leaks(context) -> None:
        context.log.info(f"asked for {QUERY.text}")
        print(f"printed: {QUERY.text}")

    @dg.job
    def job() -> None:
        leaks()

    overrides = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        result = job.execute_in_process(instance=instance)
        found = no_raw_queries([QUERY], run_places(instance, result.run_id))
    places = " ".join(sentence.split(": ")[0] for sentence in found.problems)
    assert "event storage" in places
    assert "compute logs" in places
