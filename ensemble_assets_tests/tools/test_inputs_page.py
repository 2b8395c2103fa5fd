"""Every example of ``docs/inputs.md`` is read as the page says, and its table is that of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.qrels import read_qrels
from ensemble_assets.collection.queries import read_queries
from ensemble_assets.collection.readers.fields import Fields
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.layouts import Role, named
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets_tests.tools.inputs_page import PAGE, Example, examples, with_table

IDS = {
    "guide_chunks.json": ["t-17", "t-18"],
    "guide.jsonl": ["t-17", "t-18"],
    "export.jsonl": ["export.jsonl:0", "18"],
    "papers.jsonl": ["10.1/a", "10.1/b"],
    "corpus-00000-of-00001.jsonl": ["d1", "d2"],
    "queries.jsonl": ["1", "2"],
    "queries.tsv": ["1", "2"],
    "queries.csv": ["1"],
    "test.tsv": ["t-17", "t-18"],
    "qrels.txt": ["t-17", "t-18"],
}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.path)
def test_an_example_is_read_as_the_page_says(example: Example, tmp_path: Path) -> None:
    path = tmp_path / example.path
    path.parent.mkdir(parents=True)
    path.write_text(example.content, encoding="utf-8")
    role = named(example.path.removeprefix("notes/")).role
    file, tally = InputFile(path, path.name), Tally()
    if role is Role.QUERIES:
        ids = read_queries(file, tally)["query_id"]
    elif role is Role.JUDGEMENTS:
        ids = read_qrels(file, tally)["chunk_id"]
    else:
        given = example.options
        fields = Fields(
            text=tuple(filter(None, given.get("text_field", "").split(","))),
            id=given.get("id_field", ""),
            title=given.get("title_field", ""),
        )
        frame, _ = read_chunks(tmp_path / "notes", 256, limits=ReadLimits(fields=fields))
        ids = frame["chunk_id"]
    assert ids.to_list() == IDS[path.name]


def test_every_example_was_read() -> None:
    assert {Path(example.path).name for example in examples()} == set(IDS)


def test_the_table_is_that_of_the_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: python -m ensemble_assets_tests.tools.inputs_page"
