"""Layouts that are not run are refused before a run, each with a sentence that says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.library.describe import describe
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import model_spec
from ensemble_assets_tests.model_zoo.cache import hub_cache, publish
from ensemble_assets_tests.model_zoo.layouts import BY_KEY, REFUSED

_SAYS = {
    "dense/colbert": "a vector per token.* name this one as models.rerank",
    "dense/colbert-pylate": "a vector per token",
    "dense/colbert-v2": "a vector per token",
    "dense/splade-as-dense": "is a SparseEncoder by its files, which a dense model is not",
    "dense/reranker-as-dense": "is a CrossEncoder by its files, which a dense model is not",
    "dense/clip": "reads images",
    "dense/clip-in-folder": "reads images",
    "dense/own-code": "runs code of its own, which is not allowed",
    "dense/own-module": "runs code of its own, which is not allowed",
    "dense/adapter": "is a PEFT adapter of zoo/base",
    "dense/adapter-beside": "is a PEFT adapter of zoo/base",
    "dense/onnx-only": "only ONNX, which is not read",
    "dense/gguf-only": "only GGUF, which is not read",
    "dense/without-tokenizer": "has no tokenizer among its files",
    "dense/without-words": "has no vocabulary among its files",
    "sparse/encoder-as-sparse": "is a SentenceTransformer by its files",
    "rerank/colbert-without-head": "cannot load it as a MultiVectorEncoder",
}

_OF_A_CACHE = {
    "dense/onnx-only": "with weights as ONNX only",
    "dense/gguf-only": "with weights as GGUF only",
}
"""What is said of a hub model instead: a cache may lack what the hub has."""


@pytest.mark.parametrize("key", [layout.key for layout in REFUSED])
def test_a_folder_that_is_no_such_model_is_refused_with_what_it_is(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    BY_KEY[key].build(folder)
    spec = model_spec(str(folder), BY_KEY[key].kind)
    with pytest.raises(ModelUnavailableError, match=_SAYS[key]) as refusal:
        describe(spec, locate(spec), None)
    assert str(refusal.value).startswith("model: ")
    assert str(tmp_path) not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "key", [key for key in _SAYS if not key.startswith(("dense/own", "rerank")) and "words" not in key]
)
def test_a_model_in_the_cache_is_refused_in_the_same_words(key: str, tmp_path: Path) -> None:
    layout = BY_KEY[key]
    with hub_cache(tmp_path):
        spec = model_spec(publish(layout, tmp_path), layout.kind)
        with pytest.raises(ModelUnavailableError, match=_OF_A_CACHE.get(key, _SAYS[key])):
            locate(spec)
