"""The example of docs/qdrant.md runs as it stands, and a question's vectors are those that a run gives it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

from qdrant_client import QdrantClient, models

from ensemble_assets import encode_query
from ensemble_assets.asking import last_asked
from ensemble_assets.asking.searcher import Searcher
from ensemble_assets.cli.main import main
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.settings import resolve
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, fast_factories

PAGE = Path(__file__).resolve().parents[2] / "docs" / "qdrant.md"
NAME = "notes_v4_all_minilm_l6_v2"


@pytest.fixture
def bundle(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """A bundle of fast models that is open already, in the folder that the page names."""
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    monkeypatch.chdir(pipeline.root)
    opened = (outcome.bundle.resolve(), (outcome.bundle / MANIFEST_NAME).stat().st_mtime_ns)
    asked = Searcher(
        outcome.bundle, resolve({"paths.cache_dir": str(pipeline.root / "cache")}).settings, fast_factories()
    )
    monkeypatch.setattr(last_asked, "_LAST", {opened: asked})
    return outcome


def upload(*more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upload", "output/notes", *more])
    assert not ended.value.code


def test_the_example_runs_and_finds(bundle: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    example, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (command,) = re.findall(
        r"^ensemble-assets upload output/notes (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    upload(*command.split())
    capsys.readouterr()
    exec(compile(example, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "river 0: The river number 0 lies behind the violin." in lines[0]


def test_every_list_in_qdrant_ranks_as_search_does(bundle: Outcome) -> None:
    upload()
    question = "the lantern by the harbour"
    vectors = encode_query("output/notes", question)
    ranks = {hit.chunk_id: hit.ranks for hit in last_asked.searcher_of("output/notes").ask(question, top=20)}
    client = QdrantClient(path="output/.qdrant")
    (dense,) = vectors.dense.values()
    assert np.linalg.norm(dense) == pytest.approx(1, abs=1e-5)
    assert vectors.sparse is not None
    for name, using, query in (
        ("dense", next(iter(vectors.dense)), dense),
        ("sparse", "sparse", models.SparseVector(**vectors.sparse)),
    ):
        points = client.query_points(NAME, query=query, using=using, limit=20, with_payload=["chunk_id"]).points
        scores = {point.payload["chunk_id"]: point.score for point in points}
        ordered = sorted(
            (place[name], scores[chunk]) for chunk, place in ranks.items() if place[name] and chunk in scores
        )
        assert len(ordered) > 5
        assert all(second[1] <= first[1] + 1e-5 for first, second in pairwise(ordered))
    client.close()


def test_a_bundle_without_sparse_vectors_gives_none(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"enable_sparse": False})
    settings = resolve({"paths.cache_dir": str(pipeline.root / "cache")}).settings
    vectors = Searcher(outcome.bundle, settings, fast_factories()).encode("the lantern")
    assert vectors.sparse is None
    assert len(vectors.dense) == 1
