"""Shards that ran as collections of their own become one collection, whose run computes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets_tests.orchestration.pipeline import PREFIX, Pipeline, fast_factories, write_collection

ENCODED = ("dense_embeddings", "sparse_vectors")
RERANKED = f"{PREFIX}_rerank.jsonl"
LISTS = ("candidates", "run.dense", "run.sparse", "run.lexical")


@pytest.fixture
def sharded(tmp_path: Path) -> Pipeline:
    """Collections ``left`` and ``right`` with ten chunks each, and ``both`` with links to their files."""
    corpora = tmp_path / "corpora"
    write_collection(corpora / "both")
    chunks = json.loads((corpora / "both" / "notes_chunks.json").read_text())
    (corpora / "both" / "notes_chunks.json").unlink()
    for name, part in (("left", chunks[:10]), ("right", chunks[10:])):
        write_collection(corpora / name, 1)
        (corpora / name / "qrels.tsv").unlink()
        (corpora / name / "notes_chunks.json").write_text(json.dumps(part))
        (corpora / "both" / f"{name}_chunks.json").symlink_to(corpora / name / "notes_chunks.json")
    return Pipeline(tmp_path, Computing(fast_factories()))


def test_shards_become_one_bundle_whose_lists_are_those_of_a_run_without_shards(sharded: Pipeline) -> None:
    for name in ("left", "right"):
        assert (outcome := sharded.run(collection=name)).succeeded, outcome.error
    options = {"chunks.follow_links": True}
    merged = sharded.run({**options, "encoding.rows_from": ["left", "right"]}, collection="both")
    assert merged.succeeded, merged.error
    for asset in ENCODED:
        record = merged.artefact(asset).record
        assert record.reused == record.items > 20
    assert merged.artefact("chunks").record.items == 20
    lists = {name: merged.artefact("fused_candidates").frame(name) for name in LISTS}
    files = {file.name: file.read_bytes() for file in merged.bundle.iterdir() if file.suffix in {".npy", ".trec"}}
    files[RERANKED] = (merged.bundle / RERANKED).read_bytes()

    alone = sharded.run({**options, "encoding.reuse": False}, collection="both")
    assert alone.succeeded, alone.error
    assert alone.artefact("dense_embeddings").record.reused == 0
    for name, frame in lists.items():
        assert frame.equals(alone.artefact("fused_candidates").frame(name)), name
    assert len(files) > 3
    for name, content in files.items():
        assert (alone.bundle / name).read_bytes() == content, name


def test_a_collection_without_stored_rows_is_named(sharded: Pipeline) -> None:
    assert sharded.run(collection="left").succeeded
    options = {"chunks.follow_links": True, "encoding.rows_from": ["left", "rihgt"]}
    outcome = sharded.run(options, collection="both")
    assert not outcome.succeeded
    assert "encoding.rows_from: no rows of 'rihgt' are stored in" in outcome.error
    assert "Run that collection first" in outcome.error


def test_rows_of_others_are_not_left_out_without_a_word(sharded: Pipeline) -> None:
    outcome = sharded.run({"encoding.rows_from": ["right"], "encoding.reuse": False}, collection="left")
    assert not outcome.succeeded
    assert "encoding.rows_from takes rows, and encoding.reuse is off" in outcome.error
