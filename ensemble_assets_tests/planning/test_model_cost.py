"""Operations of a model: its shape as its files say, and the count as adding up every matrix product gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS, PROFILES, FolderSource, ModelSpec
from ensemble_assets.planning.model_cost import PUBLISHED, ModelShape, read_shape, shape_for


@pytest.mark.models
@pytest.mark.parametrize("slug", ["all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny"])
def test_published_shapes_of_the_embedded_models_are_those_of_their_files(slug: str) -> None:
    spec = MODELS[slug]
    assert PUBLISHED[slug] == read_shape(locate(spec).folder, spec.kind)


def test_every_model_of_every_profile_can_be_planned_without_its_files() -> None:
    for profile in PROFILES.values():
        for slug in (*profile.dense, *profile.sparse, profile.rerank):
            assert shape_for(MODELS[slug]) is PUBLISHED[slug]


@pytest.mark.parametrize(
    ("slug", "parameters"),
    [("jina-code-embeddings-1.5b", 1.31e9), ("qwen3-embedding-0.6b", 0.44e9), ("bge-m3", 0.303e9)],
)
def test_published_shapes_give_the_published_number_of_weights(slug: str, parameters: float) -> None:
    """Non-embedding parameters of Qwen2.5-1.5B and Qwen3-0.6B, and the 24 layers of XLM-RoBERTa large."""
    assert PUBLISHED[slug].parameters == pytest.approx(parameters, rel=0.01)


@given(
    st.builds(
        ModelShape,
        layers=st.integers(1, 4),
        hidden=st.integers(1, 64),
        intermediate=st.integers(1, 64),
        matrices=st.sampled_from([2, 3]),
        query_width=st.integers(1, 64),
        key_value_width=st.integers(1, 64),
        vocabulary=st.sampled_from([0, 100]),
    ),
    st.integers(1, 50),
)
def test_operations_are_those_of_every_matrix_product(shape: ModelShape, length: int) -> None:
    def product(rows: int, inner: int, columns: int) -> int:
        return 2 * rows * inner * columns

    h, q, kv = shape.hidden, shape.query_width, shape.key_value_width
    layer = product(length, h, q) + 2 * product(length, h, kv) + product(length, q, h)
    layer += product(length, q, length) + product(length, length, q)  # all heads' scores, and their values
    layer += shape.matrices * product(length, h, shape.intermediate)
    head = product(length, h, h) + product(length, h, shape.vocabulary) if shape.vocabulary else 0
    assert shape.flops(length, length) == shape.layers * layer + head


def test_the_operations_of_scifact_are_those_that_were_counted_for_it() -> None:
    """1,242,380 tokens of up to 256 (240 on average): 29.2 TFLOP."""
    assert PUBLISHED["all-minilm-l6-v2"].flops(1_242_380, 240) == pytest.approx(29.2e12, rel=0.02)


def test_a_model_whose_files_do_not_say_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ModelUnavailableError, match=r"config\.json"):
        read_shape(tmp_path, "dense")
    missing = ModelSpec("own", "dense", "x/own", FolderSource(str(tmp_path / "no")), 0, 8, "mean", "MIT")
    with pytest.raises(ModelUnavailableError, match="own"):
        shape_for(missing)
