"""The collections of the benchmark are what it says, and its picture has a line for every stage."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets_tests.benchmarks.scale.__main__ import saved
from ensemble_assets_tests.benchmarks.scale.picture import draw
from ensemble_assets_tests.benchmarks.scale.table import tables
from ensemble_assets_tests.benchmarks.scale.texts import add_chunks, change_collection, write_collection

DOCS = Path(__file__).resolve().parents[3] / "docs"


def records(folder: Path) -> list[dict[str, Any]]:
    return [record for path in sorted(folder.glob("*_chunks.json")) for record in json.loads(path.read_text())]


@pytest.mark.nightly  # every installed package is walked through
def test_chunks_are_distinct_and_a_change_is_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_collection(folder, 1200, 100)
    made = records(folder)
    assert len({record["text"] for record in made}) == len({record["metadata"]["chunk_id"] for record in made}) == 1200
    queries = (folder / "queries.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in queries]
    assert len(set(texts)) == 100
    assert not any(query in record["text"] for query in texts for record in made), "no query is a part of a chunk"
    assert change_collection(folder, 0.01) == 12
    assert sum(old["text"] != new["text"] for old, new in zip(made, records(folder), strict=True)) == 12
    assert add_chunks(folder, 50) == 50
    again = records(folder)
    assert len(again) == 1250
    assert len({record["metadata"]["chunk_id"] for record in again}) == 1250


def test_the_picture_has_a_line_for_every_stage_in_both_panels() -> None:
    def result(chunks: int) -> dict[str, Any]:
        stages = {name: {"processor_seconds": chunks / 100, "peak_mb": 300.0} for name in ("dense", "export")}
        return {"chunks": chunks, "stages": stages}

    root = ET.fromstring(draw([result(10_000), result(1000)]))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    (x, y), (later_x, later_y) = (map(float, point.split(",")) for point in lines[0].attrib["points"].split(" "))
    assert later_x > x
    assert later_y < y, "ten times the chunks are higher up"


@pytest.mark.parametrize("name", ["scale.json", "scale-avx2.json"])
def test_the_tables_of_the_page_are_those_of_the_saved_results(name: str) -> None:
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    for table in tables(saved([DOCS / name])).strip().split("\n\n"):
        assert table in page


def test_the_picture_of_the_page_is_that_of_the_saved_results() -> None:
    drawn = (DOCS / "pictures" / "scale.svg").read_text(encoding="utf-8")
    assert drawn == draw(saved([DOCS / "scale.json"]))
