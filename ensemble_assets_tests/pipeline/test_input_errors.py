"""Errors about inputs name the collection's folder, whichever of many it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets.collection.folders import Collection
from ensemble_assets.common.errors import InputError
from ensemble_assets.pipeline.from_settings import collection_chunks, collection_queries
from ensemble_assets.settings import resolve
from ensemble_assets_tests.orchestration.pipeline import write_collection


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    monkeypatch.setenv("EMBEDDER_KEY_FILE", str(tmp_path / "key"))
    folder = tmp_path / "corpora" / "my notes"
    write_collection(folder)
    return Collection("my_notes", "my notes", folder)


def test_a_broken_file_of_chunks(notes: Collection) -> None:
    (notes.folder / "sub").mkdir()
    (notes.folder / "sub" / "b_chunks.json").write_text('[\n{"text": }]')
    with pytest.raises(InputError, match=r"^my notes/sub/b_chunks\.json, line 2, column 10: is not valid JSON"):
        collection_chunks(resolve().settings, notes)
    (notes.folder / "a_chunks.json").write_text("[")
    with pytest.raises(InputError, match=r"^my notes: .*a_chunks\.json.*b_chunks\.json"):
        collection_chunks(resolve().settings, notes)


def test_broken_queries_beside_the_chunks_and_elsewhere(notes: Collection, tmp_path: Path) -> None:
    chunks, _ = collection_chunks(resolve().settings, notes)
    given = tmp_path / "queries.jsonl"
    for path, where in ((notes.folder / "queries.jsonl", "my notes/queries"), (given, "my notes: queries")):
        path.write_text("{")
        settings = resolve({"queries.file": str(given) if path == given else ""}).settings
        with pytest.raises(InputError, match=rf"^{where}\.jsonl, line 1"):
            collection_queries(settings, notes, chunks)
