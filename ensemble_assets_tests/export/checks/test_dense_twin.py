"""``dense_twin`` finds a vector that differs from the dense-only run's, and says why it compared nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.export.checks.dense_twin import LEAST_COSINE, dense_twin
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.read.bundle_reader import open_bundle

PREFIX = "ultimate_embeddings_v4"


def write(folder: Path, vectors: np.ndarray, texts: tuple[str, ...] = ("a", "b"), fingerprint: str = "1f") -> Path:
    folder.mkdir(parents=True)
    models = [{"slug": "mini", "fingerprint": fingerprint}, {"slug": "big-one", "fingerprint": "2f"}]
    (folder / "processing_summary.json").write_text(json.dumps({"dense_run": {"models": models}}))
    (folder / f"{PREFIX}_texts.json").write_text(json.dumps(texts))
    (folder / f"{PREFIX}_qdrant.jsonl").touch()
    for name in ("embeddings", "big_one_embeddings"):
        np.save(folder / f"{PREFIX}_{name}.npy", vectors.astype(np.float32))
    return folder


def rows(seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((9000, 8))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def judged(one: Path, twin: Path | None) -> GateResult:
    return dense_twin(open_bundle(one), twin)


def test_equal_and_nearly_equal_vectors_pass(tmp_path: Path) -> None:
    vectors = rows()
    bundle = write(tmp_path / "full", vectors)
    same = judged(bundle, write(tmp_path / "same", vectors))
    assert (same.passed, dict(same.numbers)) == (
        True,
        {"rows": 9000, "arrays": 2, "identical_arrays": 2, "least_cosine": 1.0, "problems": 0},
    )
    near = judged(bundle, write(tmp_path / "near", vectors + 1e-4))
    assert near.passed
    assert near.numbers["identical_arrays"] == 0
    assert LEAST_COSINE < near.numbers["least_cosine"] < 1.0


@pytest.mark.parametrize("value", ["other", "nan", "zero"])
def test_one_row_that_differs_is_named(tmp_path: Path, value: str) -> None:
    vectors = rows()
    bundle = write(tmp_path / "full", vectors)
    vectors = vectors.copy()
    vectors[8500] = {"other": rows(1)[8500], "nan": np.nan, "zero": 0.0}[value]
    result = judged(bundle, write(tmp_path / "twin", vectors))
    assert (result.passed, result.severity) == (False, "ERROR")
    assert f"{PREFIX}_embeddings.npy, row 8500: " in result.problems[0]
    assert f"{PREFIX}_big_one_embeddings.npy, row 8500: " in result.problems[1]
    assert "encoding.reuse" in result.problems[0]


def test_other_shapes_and_missing_arrays_fail(tmp_path: Path) -> None:
    bundle = write(tmp_path / "full", rows())
    short = judged(bundle, write(tmp_path / "short", rows()[:-1]))
    assert [sentence.split(": ")[1].split(" than")[0] for sentence in short.problems] == ["has another shape"] * 2
    twin = write(tmp_path / "twin", rows())
    (twin / f"{PREFIX}_embeddings.npy").unlink()
    assert judged(bundle, twin).problems[0].startswith(f"twin/{PREFIX}_embeddings.npy: is missing")


def test_what_is_not_comparable_is_noted(tmp_path: Path) -> None:
    bundle = write(tmp_path / "full", rows())
    broken = write(tmp_path / "broken", rows(1))
    (broken / "processing_summary.json").write_text("{")
    for twin, words in (
        (broken, "cannot be read"),
        (None, "there is no dense-only bundle"),
        (tmp_path / "absent", "there is no dense-only bundle"),
        (write(tmp_path / "texts", rows(1), texts=("a", "c")), "of other chunks"),
        (write(tmp_path / "models", rows(1), fingerprint="9f"), "of other models"),
    ):
        result = judged(bundle, twin)
        assert result.passed
        assert words in result.notes[0]
        assert result.numbers["rows"] == 0
