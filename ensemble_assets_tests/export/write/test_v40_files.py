"""The v4.0 writer against the slow reference, and what it refuses."""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.artefacts.array_files import save_array
from ensemble_assets.collection.legacy_metadata import ChunkRow
from ensemble_assets.common.errors import ContractError, SettingsError
from ensemble_assets.export.write.inputs import BundleInputs, DeviceFacts, chunk_rows
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export import reference
from ensemble_assets_tests.export.bundles import CLOCK, PREFIX, Chunk, bundle_of, contents, dense, rows_of, unit_rows
from ensemble_assets_tests.export.strategies import metadata, texts

CHUNKS = [
    Chunk("One  text.", {"chunk_id": "a", "sparse_features": {"term_weights": [{"term": "one", "weight": 0.5}]}}),
    Chunk("| x |\n| y |", {"text_preview": "own", "vectors": {"m": [1]}, "model_info": 3}),
    Chunk("```\ncode\n```", {"note": 'café — 中文 😀 \u2028 " \\ \x01', "huge": 10**30, "tiny": 1e-7}),
]


def expected_files(bundle: BundleInputs, chunks: list[Chunk]) -> dict[str, bytes]:
    models = [(m.slug, m.hf_model_id, m.max_tokens, np.asarray(m.vectors)) for m in bundle.dense]
    facts = {"collection": bundle.collection, "priority": bundle.priority, "clock": bundle.clock}
    return reference.files([(c.text, c.metadata, c.source) for c in chunks], models, facts, bundle.prefix)


def text_files(folder: Path) -> dict[str, bytes]:
    return {n: b for n, b in contents(folder).items() if n.endswith((".json", ".jsonl"))}


@given(st.lists(st.tuples(texts.filter(lambda text: bool(text.strip())), metadata()), max_size=3))
def test_every_file_is_what_the_reference_writes(pairs: list[tuple[str, dict[str, Any]]]) -> None:
    chunks = [Chunk(text, own) for text, own in pairs]
    models = (dense("mini", unit_rows(len(chunks), 3), 2), dense("other-1.5", unit_rows(len(chunks), 2, 1)))
    bundle = bundle_of(chunks, *models)
    with tempfile.TemporaryDirectory() as folder:
        write_v40(Path(folder), bundle)
        assert text_files(Path(folder)) == expected_files(bundle, chunks)


def test_keys_that_collide_keep_their_place_and_get_the_later_value(tmp_path: Path) -> None:
    write_v40(tmp_path, bundle_of(CHUNKS))
    point = json.loads((tmp_path / f"{PREFIX}_qdrant.jsonl").read_text().splitlines()[1])
    assert list(point["payload"])[:3] == ["text_preview", "vectors", "model_info"]
    assert point["payload"]["text_preview"] == "| x | | y |"
    assert point["payload"]["vectors"] == {"m": [1]}
    assert point["payload"]["model_info"]["name"] == "mini"
    own = json.loads((tmp_path / f"{PREFIX}_metadata.json").read_text())[1]
    assert (own["text_preview"], own["model_info"]) == ("own", 3)


@pytest.mark.parametrize("own", [{"text_preview": 1e-05}, {"model_info": {"a": [1e-07]}}, {"dense_vector_names": 1e22}])
def test_numbers_under_keys_that_the_point_overrides_are_written_as_python_writes_them(
    own: dict[str, Any], tmp_path: Path
) -> None:
    bundle = bundle_of([Chunk("a", own)])
    write_v40(tmp_path, bundle)
    assert text_files(tmp_path) == expected_files(bundle, [Chunk("a", own)])


def test_an_own_sparse_vector_as_the_first_key_keeps_its_place(tmp_path: Path) -> None:
    own = {"sparse_vector": 1, "sparse_features": {"term_weights": [{"term": "a", "weight": 1}]}}
    bundle = bundle_of([Chunk("a", own), Chunk("b", {"sparse_vector": 1})])
    write_v40(tmp_path, bundle)
    assert text_files(tmp_path) == expected_files(bundle, [Chunk("a", own), Chunk("b", {"sparse_vector": 1})])


def test_vectors_are_written_as_numpy_saves_them(tmp_path: Path) -> None:
    vectors, other = unit_rows(3, 5), unit_rows(3, 2)
    write_v40(tmp_path, bundle_of(CHUNKS, dense("mini", vectors), dense("qwen3-x/0.6b", other)))
    saved = io.BytesIO()
    np.save(saved, vectors)
    assert (tmp_path / f"{PREFIX}_embeddings.npy").read_bytes() == saved.getvalue()
    assert np.array_equal(np.load(tmp_path / f"{PREFIX}_qwen3_x_0.6b_embeddings.npy"), other)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (100_000, 50)])
def test_large_and_empty_arrays_are_written_as_numpy_saves_them(shape: tuple[int, int], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save_array(tmp_path / "a.npy", array)
    saved = io.BytesIO()
    np.save(saved, array)
    assert (tmp_path / "a.npy").read_bytes() == saved.getvalue()


def test_statistics_carry_the_run_facts(tmp_path: Path) -> None:
    devices = DeviceFacts(device_count=2, precision="fp16", total_vram_gb=31.66)
    performance = {"seconds": 1.5}
    write_v40(tmp_path, bundle_of(CHUNKS, devices=devices, performance=performance))
    stats = json.loads((tmp_path / f"{PREFIX}_stats.json").read_text())
    assert stats["kaggle_environment"] is False
    assert stats["gpu_config"] == {
        "device_count": 2,
        "backend": "pytorch",
        "precision": "fp16",
        "total_vram_gb": 31.66,
    }
    assert stats["processing_performance"] == performance
    assert stats["export_timestamp"] == CLOCK


def test_without_any_echo_there_is_no_sparse_file(tmp_path: Path) -> None:
    written = write_v40(tmp_path, bundle_of([Chunk("a"), Chunk("b")]))
    assert not (tmp_path / f"{PREFIX}_sparse.jsonl").exists()
    assert f"{PREFIX}_sparse.jsonl" not in written.files
    stats = json.loads((tmp_path / f"{PREFIX}_stats.json").read_text())
    assert stats["sparse_vector_stats"] == {
        "total_chunks": 2,
        "sparse_vectors_available": 0,
        "coverage_ratio": 0.0,
    }


def test_a_missing_index_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    written = write_v40(tmp_path, bundle_of(CHUNKS))
    assert written.skipped == {f"{PREFIX}_index.faiss": "faiss is not installed (pip install faiss-cpu)"}
    assert not list(tmp_path.glob("*.faiss"))


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_v40(tmp_path / name, bundle_of(CHUNKS))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_prefix_and_the_alias_are_the_callers(tmp_path: Path) -> None:
    write_v40(tmp_path, bundle_of(CHUNKS, prefix="mine", alias="folder", priority=0.8))
    first = json.loads((tmp_path / "mine_metadata.json").read_text())[0]
    names = ("qdrant_collection", "collection_alias", "collection_hints", "collection_priority")
    assert [first[name] for name in names] == ["guide", "folder", ["guide"], 0.8]


@pytest.mark.parametrize("prefix", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_prefix_that_is_no_plain_name_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="export prefix"):
        write_v40(tmp_path, bundle_of(CHUNKS, prefix=prefix))


def _with_rows(rows: list[ChunkRow]) -> BundleInputs:
    return replace(bundle_of(CHUNKS), rows=lambda: iter(rows))


@pytest.mark.parametrize(
    ("order", "found"),
    [([0, 2, 1], "found row 2 at position 1"), ([0, 1], "expected 3 chunks, found 2"), ([0, 1, 2, 3], "found row 3")],
)
def test_chunks_out_of_order_missing_or_too_many_are_refused(order: list[int], found: str, tmp_path: Path) -> None:
    rows = rows_of([*CHUNKS, Chunk("d")], 256)
    with pytest.raises(ContractError, match=found):
        write_v40(tmp_path, _with_rows([rows[i] for i in order]))


def test_arrays_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    wide = dense("mini", unit_rows(2, 4))
    double = replace(dense("other", unit_rows(3, 4)), vectors=unit_rows(3, 4).astype(np.float64))
    with pytest.raises(ContractError, match=r"vectors of mini: expected 3 rows.*; vectors of other.*float64"):
        write_v40(tmp_path, bundle_of(CHUNKS, wide, double))
    with pytest.raises(ContractError, match="the same file"):
        write_v40(tmp_path, bundle_of(CHUNKS, wide, dense("a-b", unit_rows(3, 2)), dense("a_b", unit_rows(3, 2))))


@pytest.mark.parametrize("stored", ['{"secret": "\\ud800"}', '["secret"]', '{"secret"', '"secret"'])
def test_metadata_that_cannot_be_written_is_named_without_its_content(stored: str, tmp_path: Path) -> None:
    rows = rows_of(CHUNKS, 256)
    rows[1] = rows[1]._replace(metadata=stored)
    with pytest.raises(ContractError, match=r"chunk row 1 \(guide_chunks.json\)") as caught:
        write_v40(tmp_path, _with_rows(rows))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("slice_bytes", [1, 300, 1 << 20])
def test_rows_stream_from_a_frame_in_order(slice_bytes: int, tmp_path: Path) -> None:
    rows = [ChunkRow(i, f"t{i}" * (i % 7), "{}", "s", i, "0" * 40, "prose") for i in range(500)]
    frame = pl.DataFrame(rows, schema=list(ChunkRow._fields), orient="row").with_columns(extra=pl.lit(1))
    frame.write_parquet(tmp_path / "chunks.parquet", row_group_size=64)
    stream = chunk_rows(pl.scan_parquet(tmp_path / "chunks.parquet"), slice_bytes)
    assert list(stream()) == rows
    assert list(stream()) == rows


def test_the_name_in_points_may_differ_from_the_collections(tmp_path: Path) -> None:
    named = bundle_of(CHUNKS, collection="my_qdrant", alias="My Qdrant", point_name="qdrant_ecosystem", priority=1.0)
    write_v40(tmp_path, named)
    payload = json.loads((tmp_path / f"{PREFIX}_qdrant.jsonl").read_text().splitlines()[0])["payload"]
    assert payload["qdrant_collection"] == "qdrant_ecosystem"
    assert payload["collection_hints"] == payload["qdrant_collection_hint"] == ["qdrant_ecosystem"]
    assert payload["collection_alias"] == "My Qdrant"
    assert 'COLLECTION = "qdrant_ecosystem_v4_mini"' in (tmp_path / f"{PREFIX}_upload_script.py").read_text()
