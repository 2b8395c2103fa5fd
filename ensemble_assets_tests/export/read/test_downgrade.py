"""From v4.1 back to v4.0."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.downgrade import project_to_v40, read_list_items
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, contents, dense, golden_case, live_sparse, unit_rows
from ensemble_assets_tests.export.strategies import metadata, texts, values


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            texts.filter(lambda text: bool(text.strip())),
            metadata(),
            st.dictionaries(texts, st.floats(-4, 4), max_size=4),
        ),
        max_size=3,
    )
)
def test_projection_of_a_live_bundle_is_the_v40_bundle(
    rows: list[tuple[str, dict[str, Any], dict[str, float]]],
) -> None:
    chunks = [Chunk(text, own) for text, own, _ in rows]
    models = (dense("mini", unit_rows(len(chunks), 3)), dense("other", unit_rows(len(chunks), 2)))
    off = bundle_of(chunks, *models)
    vectors = [vector for _, _, vector in rows]
    on = replace(off, sparse=live_sparse(vectors, [1 if vector else 0 for vector in vectors]))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("off", "on")}
        for name, bundle in (("off", off), ("on", on)):
            folders[name].mkdir()
            write_v40(folders[name], bundle)
        expected = contents(folders["off"])
        for name, folder in folders.items():
            (folder / "processing_summary.json").write_text("{}")
            (folder / "notes.txt").write_text("mine")
            project_to_v40(folder, Path(scratch) / "out")
            assert contents(Path(scratch) / "out") == expected, name


@pytest.mark.shared
@pytest.mark.parametrize("case", ["golden_v4.0/bundle", "bundle_v4.0"])
def test_projection_of_a_v40_bundle_is_itself(case: str, shared: Path, tmp_path: Path) -> None:
    original = shared / "legacy" / case
    project_to_v40(original, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(original)


@pytest.mark.shared
def test_projection_of_the_golden_case_with_live_vectors_is_the_golden_bundle(shared: Path, tmp_path: Path) -> None:
    case = golden_case(shared)
    vectors: list[dict[str, float]] = [{"alpha": 0.5 + row, "beta": 1e-6} for row in range(case.count)]
    vectors[2] = {}
    write_v40(tmp_path, replace(case, sparse=live_sparse(vectors, [1, 1, 0, 2, 2, 1, 1, 1])))
    project_to_v40(tmp_path, tmp_path / "out")
    found = contents(tmp_path / "out")
    found.pop("ultimate_embeddings_v4_upload_script.py")
    assert found == contents(shared / "legacy" / "golden_v4.0" / "bundle")


def test_a_folder_without_a_bundle_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtefactError, match="expected a bundle folder"):
            project_to_v40(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["", "{}", '{"id": 0}', '{"id": 0, "payload": {}'])
def test_a_line_that_is_no_point_is_named(line: str, tmp_path: Path) -> None:
    write_v40(tmp_path, bundle_of([Chunk("a"), Chunk("b")]))
    points = tmp_path / "ultimate_embeddings_v4_qdrant.jsonl"
    points.write_text(points.read_text() + line + "\n")
    with pytest.raises(ArtefactError, match="line 3: is no point"):
        project_to_v40(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.lists(values, max_size=5))
def test_list_items_are_found_in_what_the_library_writes(items: list[Any]) -> None:
    text = json.dumps(items, indent=2, ensure_ascii=False).encode()
    found = [json.loads(item) for item in read_list_items(io.BytesIO(text), "list")]
    assert json.dumps(found) == json.dumps(items)


@pytest.mark.parametrize("text", [b"", b"[", b"[\n  1,\n", b"[\n  {\n    1\n", b"{}", b"[]x\n]", b'[\n  1\n]\n"more"'])
def test_a_list_that_is_laid_out_differently_is_refused(text: bytes) -> None:
    with pytest.raises(ArtefactError, match="is no JSON list with indent 2"):
        list(read_list_items(io.BytesIO(text), "list"))


def test_the_projected_folder_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_v40(tmp_path / "in", bundle_of([Chunk("a")]))
    shutil.copytree(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    project_to_v40(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
