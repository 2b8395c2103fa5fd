"""``docs/telemetry.md`` and what a run reports are the same set of names, in both directions."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.metrics import METRICS, full_name
from ensemble_assets_tests.telemetry.documented import PAGE, TABLES, block
from ensemble_assets_tests.telemetry.full_run import report_everything, telemetry


def _first_column(name: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", block(PAGE.read_text(), name).group(2), re.MULTILINE))


@pytest.mark.parametrize("name", TABLES)
def test_the_page_says_what_the_allow_list_says(name):
    assert block(PAGE.read_text(), name).group(2) == TABLES[name](), "run the module ``documented`` to write it anew"


def test_the_page_documents_exactly_the_names_on_the_list():
    assert _first_column("spans") == SPANS.keys()
    assert _first_column("names") == FIELDS.keys()
    assert _first_column("events") == EVENTS.keys()
    assert _first_column("metrics") == {full_name("rag", name) for name in METRICS}


def test_a_run_that_reports_everything_emits_each_documented_name_and_no_other(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path, textfile_folder=tmp_path))
    report_everything(run)
    lines = [json.loads(line) for line in run.journal_path.read_text().splitlines()]
    ended = [line for line in lines if line["kind"] == "span"]
    happened = [line for line in lines if line["kind"] == "event"]
    assert {line["name"] for line in ended} == _first_column("spans")
    assert {line["name"] for line in happened} == _first_column("events")
    used = {name for line in ended for name in line["attributes"]} | {
        name for line in happened for name in line["facts"]
    }
    assert used == _first_column("names")
    families = text_string_to_metric_families((tmp_path / "ensemble_assets_docling.prom").read_text())
    typed = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert typed == _first_column("metrics")


def test_pictures_that_the_pages_show_are_there_and_small():
    root = PAGE.parents[1]
    shown = {
        (page.parent / name).resolve()
        for page in (root / "README.md", *root.glob("docs/**/*.md"))
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", page.read_text())
    }
    assert {path.name for path in shown} >= {"asset-graph.png", "materialisation.png", "checks.png", "report-light.png"}
    assert all(path.stat().st_size < 200_000 for path in shown)
    assert set((root / "docs" / "pictures").glob("*.png")) <= shown, "a picture that no page shows"
