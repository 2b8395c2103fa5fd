"""Whole bundles under their final name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, require_gates
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.names import BundleNames, collection_folder, target_collection
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, contents, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.runs import everything_off, everything_on, lists

TERMS = {"term_weights": [{"term": "alpha", "weight": 0.5}]}
CHUNKS = [Chunk("a", {"chunk_id": "a", "sparse_features": TERMS}), Chunk("b\n\nc"), Chunk('d "}\n', {"x": {"y": []}})]


def off() -> BundleInputs:
    return bundle_of(CHUNKS)


def on() -> BundleInputs:
    return replace(off(), sparse=live_sparse([{"alpha": 1.0}, {}, {"beta": 0.5}], [2, 0, 1]))


def test_stages_off_is_a_v40_bundle_and_a_manifest(tmp_path: Path) -> None:
    exported = write_bundle(tmp_path / "out", off(), lambda written: everything_off())
    (tmp_path / "v40").mkdir()
    write_v40(tmp_path / "v40", off())
    found = contents(exported.folder)
    assert found.pop(f"{PREFIX}_processing_summary.json") == found["processing_summary.json"]
    manifest = json.loads(found.pop("processing_summary.json"))
    assert found == contents(tmp_path / "v40")
    assert not {"rerank_run", "sparse_run"} & set(manifest)
    assert exported.folder == tmp_path / "out" / "guide"


def test_stages_on_adds_the_lists(tmp_path: Path) -> None:
    exported = write_bundle(tmp_path, on(), lambda written: everything_on(), lists())
    assert exported.files == tuple(sorted(file.name for file in exported.folder.iterdir()))
    added = set(exported.files) - set(exported.written.files)
    assert added == {
        "processing_summary.json",
        f"{PREFIX}_processing_summary.json",
        f"{PREFIX}_rerank.jsonl",
        f"{PREFIX}_fused.trec",
        f"{PREFIX}_reranked.trec",
    }
    without = write_bundle(tmp_path, on(), lambda written: everything_on(), replace(lists(), reranked=None))
    assert f"{PREFIX}_rerank.jsonl" not in without.files


def test_norms_are_a_file_of_their_own_where_lists_are_written_and_go_with_the_model(tmp_path: Path) -> None:
    models = (dense("mini", unit_rows(3, 4)), dense("other-1", unit_rows(3, 2)))
    norms = np.array([3, 1, 0.5], np.float32)
    bundle = bundle_of(CHUNKS, *(replace(model, norms=norms) for model in models))
    sparse = replace(bundle, sparse=on().sparse)
    folder = write_bundle(tmp_path, sparse, lambda written: everything_on(), lists()).folder
    for name in (f"{PREFIX}_norms.npy", f"{PREFIX}_other_1_norms.npy"):
        np.testing.assert_array_equal(np.load(folder / name), norms)
    without = replace(sparse, dense=models)
    vectors = {name: data for name, data in contents(folder).items() if not name.endswith("_norms.npy")}
    assert contents(write_bundle(tmp_path, without, lambda written: everything_on(), lists()).folder) == vectors
    write_bundle(tmp_path, bundle, lambda written: everything_off())
    assert not list(folder.glob("*_norms.npy"))
    with pytest.raises(ContractError, match=r"_norms.npy: expected 3 numbers of float32, found \[2\] float32"):
        replace(bundle, dense=(replace(models[0], norms=norms[:2]),)).require_aligned()


def test_the_manifest_can_count_what_was_written(tmp_path: Path) -> None:
    exported = write_bundle(
        tmp_path,
        on(),
        lambda written: everything_on(more={"available": written.sparse.available, "skipped": written.skipped}),
    )
    manifest = json.loads((exported.folder / "processing_summary.json").read_text())
    assert manifest["available"] == 2
    assert manifest["skipped"] == exported.written.skipped


def test_a_new_bundle_drops_our_old_files_and_keeps_everybody_elses(tmp_path: Path) -> None:
    two = bundle_of(CHUNKS, dense("mini", unit_rows(3, 4)), dense("gone", unit_rows(3, 2)))
    folder = write_bundle(tmp_path, two, lambda written: everything_on(), lists()).folder
    (folder / "notes.txt").write_text("mine")
    (folder / "other_prefix_stats.json").write_text("mine")
    write_bundle(tmp_path, off(), lambda written: everything_off())
    left = set(contents(folder))
    assert {"notes.txt", "other_prefix_stats.json"} <= left
    assert not left & {f"{PREFIX}_gone_embeddings.npy", f"{PREFIX}_rerank.jsonl", f"{PREFIX}_fused.trec"}


def test_a_bundle_with_another_prefix_takes_the_place_of_the_one_that_the_manifest_describes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path, on(), lambda written: everything_on(), lists())
    old_program = first.folder / "v40_qdrant.jsonl"
    old_program.write_text("mine")
    again = write_bundle(tmp_path, replace(off(), prefix="other"), lambda written: everything_off())
    assert {path.name for path in again.folder.iterdir()} == {"v40_qdrant.jsonl", *again.files}
    assert not set(again.files) & set(first.files) - {"processing_summary.json"}
    assert open_bundle(again.folder).names.prefix == "other"
    (again.folder / "other_processing_summary.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"expected a bundle folder with one \*_qdrant.jsonl, found 2"):
        open_bundle(again.folder)


def _broken() -> list[tuple[BundleInputs, Any]]:
    vectors = unit_rows(3, 4)
    vectors[2, 0] = np.nan
    return [
        (replace(off(), dense=(dense("mini", vectors),)), everything_off()),
        (replace(off(), count=4), everything_off()),
        (off(), everything_off(dense_run={"latency_ms": float("nan")})),
        (off(), everything_on(rerank_run=None)),
    ]


@pytest.mark.parametrize("case", range(4))
def test_what_does_not_fit_leaves_the_old_bundle_and_nothing_else(case: int, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, off(), lambda written: everything_off()).folder
    before = contents(folder)
    bundle, manifest = _broken()[case]
    with pytest.raises(ContractError):
        write_bundle(tmp_path, bundle, lambda written: manifest)
    assert contents(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["guide"]


def _cut(data: bytes) -> bytes:
    return data[: data.rstrip(b"\n").rfind(b"\n") + 1]


def _swap_lines(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([lines[1], lines[0], *lines[2:]])


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("qdrant.jsonl", _cut, "gate bundle_format: .*line 3: is no point"),
        ("qdrant.jsonl", _swap_lines, "line 1, payload: key 'chunk_id' of the chunk's metadata is missing"),
        ("qdrant.jsonl", lambda data: data[:-2], "line 3: is no point"),
        ("sparse.jsonl", _swap_lines, "line in the sparse file has id 1"),
        ("metadata.json", lambda data: data.replace(b"\n  },\n", b"\n", 1), "item 0: is no object"),
        ("texts.json", lambda data: b'[\n  "a",\n  "b"\n]', "gate row_alignment: chunk row 2 is missing in texts.json"),
        ("texts.json", lambda data: b'[\n  "a"', "is no JSON list"),
        ("embeddings.npy", None, "cannot be read as an array"),
        ("stats.json", None, "expected a JSON object"),
    ],
)
def test_files_that_are_not_whole_are_refused_before_the_swap(
    name: str, spoil: Any, words: str, tmp_path: Path
) -> None:
    def judge(folder: Path) -> None:
        require_gates(folder, off(), Limits(), ())
        path = folder / f"{PREFIX}_{name}"
        if spoil is None:
            path.unlink()
        else:
            path.write_bytes(spoil(path.read_bytes()))
        require_gates(folder, off(), Limits(), ())

    with pytest.raises(ContractError, match=words):
        write_bundle(tmp_path, off(), lambda written: everything_off(), judge=judge)
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_another_shape_is_refused_before_the_swap(tmp_path: Path) -> None:
    def judge(folder: Path) -> None:
        np.save(folder / f"{PREFIX}_embeddings.npy", unit_rows(3, 5))
        require_gates(folder, off(), Limits(), ())

    with pytest.raises(ContractError, match=r"gate row_alignment: chunk row 0: the vector of mini"):
        write_bundle(tmp_path, off(), lambda written: everything_off(), judge=judge)


def test_an_empty_collection_makes_an_empty_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, bundle_of([]), lambda written: everything_off(chunk_count=0)).folder
    assert (folder / f"{PREFIX}_metadata.json").read_bytes() == b"[]"
    assert np.load(folder / f"{PREFIX}_embeddings.npy").shape == (0, 4)


@pytest.mark.parametrize(
    ("collection", "folder"),
    [("docling", "docling"), ("a b/../c", "a_b____c"), ("..", "__"), ("Ünï-1_x", "Ünï-1_x"), ("", "collection")],
)
def test_folder_names_hold_letters_digits_and_two_signs(collection: str, folder: str) -> None:
    assert collection_folder(collection) == folder


def test_target_collection_names_collection_and_model() -> None:
    assert target_collection("docling", "jina-code-embeddings-1.5b") == "docling_v4_jina_code_embeddings_1.5b"


def test_companion_files_keep_dots_and_lose_what_no_file_name_holds() -> None:
    names = BundleNames()
    assert names.vectors("qwen3-embedding-0.6b") == f"{PREFIX}_qwen3_embedding_0.6b_embeddings.npy"
    assert names.vectors("a/b\\c\x00d") == f"{PREFIX}_a_b_c_d_embeddings.npy"
    assert names.is_written(names.vectors("a/b"))
    assert not names.is_written("embeddings.npy")
    with pytest.raises(ValueError, match="no file"):
        names.file("secrets.txt")
