"""Encoders that the library runs: dot products keep lengths, and a smaller dimension cuts and normalises again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer

from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.models.spec import FolderSource, ModelSpec
from ensemble_assets_tests.model_zoo.families.dense import dense
from ensemble_assets_tests.model_zoo.texts import QUERIES, chunk_texts

pytestmark = pytest.mark.models

CHUNKS = chunk_texts()[:24]


def spec_of(folder: Path, dimension: int) -> ModelSpec:
    return ModelSpec(
        folder.name, "dense", f"local/{folder.name}", FolderSource(str(folder)), dimension, 0, "mean", "MIT"
    )


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_model_meant_for_dot_products_keeps_the_lengths_of_its_vectors(backend: str, tmp_path: Path) -> None:
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    folder = tmp_path / "dot"
    dense("bert", "cls", normalize=False, similarity_fn_name="dot")(folder)
    library = SentenceTransformer(str(folder), device="cpu")
    runtime = Runtime(precision="fp32", backend=backend, cache_folder=tmp_path / "cache")
    (made,) = encode_dense(
        pl.Series(CHUNKS), pl.Series(QUERIES), [spec_of(folder, 0)], ComputeContext(runtime=runtime)
    ).models
    assert made.record.backend == backend
    wanted = library.encode_document(CHUNKS)
    assert made.norms is not None
    np.testing.assert_allclose(made.norms, np.linalg.norm(wanted, axis=1), rtol=1e-4)
    np.testing.assert_allclose(made.chunks * made.norms[:, None], wanted, atol=1e-3)
    ranked = np.argsort(-(made.queries @ made.chunks.T * made.norms), axis=1)
    by_cosine = np.argsort(-(made.queries @ made.chunks.T), axis=1)
    np.testing.assert_array_equal(
        ranked[:, :5],
        library.similarity(library.encode_query(list(QUERIES)), wanted).numpy().argsort(axis=1)[:, ::-1][:, :5],
    )
    assert (ranked[:, :5] != by_cosine[:, :5]).any()


def test_a_model_of_unit_vectors_needs_no_lengths(tmp_path: Path) -> None:
    dense("bert", similarity_fn_name="dot")(tmp_path / "unit")
    runtime = Runtime(precision="fp32")
    (made,) = encode_dense(
        pl.Series(["a chunk"]), pl.Series(["a query"]), [spec_of(tmp_path / "unit", 0)], ComputeContext(runtime=runtime)
    ).models
    assert made.norms is None


@pytest.mark.parametrize(
    ("similarity", "unit", "warns"), [("euclidean", False, True), ("euclidean", True, False), ("manhattan", True, True)]
)
def test_a_model_meant_for_distances_is_ranked_by_cosines_with_a_warning_where_the_order_may_differ(
    similarity: str, unit: bool, warns: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "far"
    dense("bert", normalize=unit, similarity_fn_name=similarity)(folder)
    library = SentenceTransformer(str(folder), device="cpu")
    result = encode_dense(
        pl.Series(CHUNKS), pl.Series(QUERIES), [spec_of(folder, 0)], ComputeContext(runtime=Runtime(precision="fp32"))
    )
    (made,) = result.models
    meant = library.similarity(library.encode_query(list(QUERIES)), library.encode_document(CHUNKS)).numpy()
    same = (meant.argsort(axis=1)[:, ::-1] == (made.queries @ made.chunks.T).argsort(axis=1)[:, ::-1]).all()
    assert bool(same) is not warns
    warning = f"dense: far is meant for {similarity} distances, and is ranked by cosines, which may give another order"
    assert result.record.warnings == ((warning,) if warns else ())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_dimension_below_the_models_width_cuts_and_normalises_again(similarity: str, tmp_path: Path) -> None:
    folder = tmp_path / "matryoshka"
    dense("bert", normalize=False, similarity_fn_name=similarity)(folder)
    wanted = SentenceTransformer(str(folder), device="cpu", truncate_dim=24).encode_document(CHUNKS)
    runtime = Runtime(precision="fp32")
    (made,) = encode_dense(
        pl.Series(CHUNKS), pl.Series(QUERIES), [spec_of(folder, 24)], ComputeContext(runtime=runtime)
    ).models
    norms = np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(made.chunks, wanted / norms[:, None], atol=1e-4)
    assert (made.norms is None) == (similarity == "cosine")
    if made.norms is not None:
        np.testing.assert_allclose(made.norms, norms, rtol=1e-4)
