"""``export.token_vectors``: Qdrant compares tokens over the bundle's vectors as the run did, with real models."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

from qdrant_client import QdrantClient

from ensemble_assets.artefacts.records import DenseRecord
from ensemble_assets.asking import last_asked
from ensemble_assets.asking.searcher import Searcher
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.export.read.bundle_reader import open_bundle, token_vectors
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.pipeline.bundle.manifest import dense_extras
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.settings import resolve
from ensemble_assets_tests.asking.test_qdrant_page import NAME, PAGE, upload
from ensemble_assets_tests.export.checks.schemas import problems
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, fast_factories, write_collection

MODEL = "all-minilm-l6-v2"
ASKED = {"export.token_vectors": True, "rerank.late_interaction": True}


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    write_collection(tmp_path / "corpora" / "notes")
    monkeypatch.chdir(tmp_path)
    return Pipeline(tmp_path, Computing({"sparse": sparse_double(), "rerank": rerank_double()}))


def opened(outcome: Outcome, root: Path) -> Searcher:
    settings = resolve({"paths.cache_dir": str(root / "cache")}).settings
    return Searcher(outcome.bundle, settings, {**fast_factories(), "dense": dense_factory})


def cosines(question: NDArray[np.float32], bundle: Path) -> list[NDArray[np.float64]]:
    """The largest cosine of every token of the question, chunk by chunk, from the bundle's files alone."""
    tokens = token_vectors(open_bundle(bundle))
    assert tokens is not None
    units = tokens.vectors / np.linalg.norm(tokens.vectors.astype(float), axis=1, keepdims=True)
    places = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [(question @ units[first:last].T).max(axis=1) for first, last in places]


def weights(question: str, texts: list[str]) -> list[float]:
    """How rare every token of the question is, counted one text after the other."""
    tokenizer = load_vocabulary(locate(MODELS[MODEL])).tokenizer
    read = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]
    ids = tokenizer.encode(question, add_special_tokens=False).ids
    return [math.log(1 + len(read) / (read.count(token) + 0.5)) for token in ids]


@pytest.mark.models
def test_the_database_does_what_the_bundle_did(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plain = pipeline.run()
    before = plain.artefact("dense_embeddings").array(f"chunks.{MODEL}").copy()
    assert token_vectors(open_bundle(plain.bundle)) is None
    assert "token_vectors" not in plain.manifest()["dense_run"]
    assert opened(plain, pipeline.root).encode("the lantern").tokens is None

    outcome = pipeline.run(ASKED)
    assert outcome.succeeded, outcome.error
    np.testing.assert_array_equal(outcome.artefact("dense_embeddings").array(f"chunks.{MODEL}"), before)
    facts = outcome.manifest()["dense_run"]["token_vectors"]
    tokens = token_vectors(open_bundle(outcome.bundle))
    assert tokens is not None
    assert facts == {"model": MODEL, "width": 384, "tokens": len(tokens.vectors), "chunks_without": 0}
    assert problems(outcome.bundle, "v4.1") == []

    upload()
    client = QdrantClient(path="output/.qdrant")
    asked = opened(outcome, pipeline.root)
    chunks = len(tokens.offsets) - 1
    lists = {line["query_id"]: line for line in map(json.loads, next(outcome.bundle.glob("*_rerank.jsonl")).open())}
    texts = outcome.artefact("chunks").frame("chunks")["text"].to_list()
    agreed = []
    for public_id, text in outcome.artefact("queries").frame("queries").select("public_id", "text").iter_rows():
        question = np.array(asked.encode(text).tokens, np.float32)
        np.testing.assert_allclose(np.linalg.norm(question, axis=1), 1, atol=1e-5)
        best = cosines(question, outcome.bundle)
        points = client.query_points(NAME, query=question.tolist(), using="tokens", limit=chunks).points
        sums = {row: float(each.sum()) for row, each in enumerate(best)}
        assert {point.id: point.score for point in points} == pytest.approx(sums, abs=1e-3)
        rarity = weights(text, texts)
        squares = {row: float(np.average(np.maximum(each, 0) ** 2, weights=rarity)) for row, each in enumerate(best)}
        scored = dict(zip(lists[public_id]["point_ids"], lists[public_id]["late_scores"], strict=True))
        assert scored == pytest.approx({row: squares[row] for row in scored}, abs=2e-3)
        agreed.append(points[0].id == max(squares, key=squares.__getitem__))
    assert np.mean(agreed) >= 0.9, (
        "the sum of cosines and the weighted mean of squares mostly have the same first chunk"
    )
    client.close()

    key = (outcome.bundle.resolve(), (outcome.bundle / MANIFEST_NAME).stat().st_mtime_ns)
    monkeypatch.setattr(last_asked, "_LAST", {key: asked})
    _, example = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    capsys.readouterr()
    exec(compile(example, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(0 < float(line.split()[0]) <= 1 for line in lines)


@pytest.mark.models
def test_with_both_stages_off_only_the_two_files_are_added(pipeline: Pipeline) -> None:
    off = {"enable_sparse": False, "enable_rerank": False}
    names = {path.name for path in pipeline.run(off).bundle.iterdir()}
    more = pipeline.run({**off, "export.token_vectors": True})
    assert more.succeeded, more.error
    added = {path.name for path in more.bundle.iterdir()} - names
    assert sorted(name.removeprefix("ultimate_embeddings_v4_") for name in added) == [
        "token_offsets.npy",
        "token_vectors.npy",
    ]


def test_a_model_without_token_states_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    doubles = Computing({"dense": dense_double(), "sparse": sparse_double(), "rerank": rerank_double()})
    outcome = Pipeline(tmp_path, doubles).run({"export.token_vectors": True})
    assert not outcome.succeeded
    assert "Choose another model, or set export.token_vectors=false" in outcome.error


def test_vectors_of_a_run_that_did_not_ask_cannot_be_exported(tmp_path: Path) -> None:
    """The message names the remedy: materialise the dense vectors again."""
    from ensemble_assets.common.errors import ArtefactError
    from ensemble_assets.pipeline.bundle.inputs import Upstream, bundle_inputs

    write_collection(tmp_path / "corpora" / "notes")
    outcome = Pipeline(tmp_path).run()
    settings = resolve({"export.token_vectors": True}, environment={}).settings
    with pytest.raises(ArtefactError, match=r"token_vectors\.npy.*Materialise the asset again"):
        bundle_inputs(Upstream.load(outcome.store, "notes"), "notes", settings, "2026-01-01T00:00:00")


def test_vectors_that_are_made_and_not_exported_are_not_in_the_manifest() -> None:
    """A later export of the same vectors may not ask for them."""
    facts = {"model": MODEL, "width": 384, "tokens": 9, "chunks_without": 0}
    record = DenseRecord("dense", "completed", token_vectors=facts)
    assert dense_extras(record, with_tokens=True) == {"token_vectors": facts}
    assert dense_extras(record, with_tokens=False) == {}
