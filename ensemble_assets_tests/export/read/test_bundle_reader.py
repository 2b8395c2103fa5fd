"""Lists are read item by item as the library writes them, folders without a bundle are named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from ensemble_assets.artefacts.fast_json import parse_value
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read import bundle_reader
from ensemble_assets.export.read.bundle_reader import list_items, open_bundle
from ensemble_assets_tests.export.strategies import values


def test_a_folder_without_a_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="missing: there is no such bundle"):
        open_bundle(tmp_path / "missing")
    with pytest.raises(ArtefactError, match="Run a folder of chunks first"):
        open_bundle(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x_qdrant.jsonl").touch()
    with pytest.raises(ArtefactError, match="Name a folder in it, such as notes"):
        open_bundle(tmp_path)


@given(values)
def test_values_are_read_as_the_standard_library_reads_them(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    assert json.dumps(parse_value(text)) == json.dumps(json.loads(text))
    assert parse_value(text[:-1] + b"\xff") is None


@given(values)
def test_list_items_are_found_in_what_the_library_writes(value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    text = json.dumps(items, indent=2, ensure_ascii=False).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_bytes(text)
        for block in (1, 5, bundle_reader.READ_BYTES):  # items that end at any place of a block
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bundle_reader, "READ_BYTES", block)
                read = [json.loads(item) for item in list_items(path)]
            assert json.dumps(read) == json.dumps(items)


@pytest.mark.parametrize("text", [b"", b"[", b"[\n  1,\n", b"[\n  {\n    1\n", b"{}", b"[]x\n]", b'[\n  1\n]\n"more"'])
def test_a_list_that_is_laid_out_differently_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_bytes(text)
    with pytest.raises(ArtefactError, match="is no JSON list with indent 2"):
        list(list_items(tmp_path / "list.json"))


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"list\.json: is missing"):
        list(list_items(tmp_path / "list.json"))
