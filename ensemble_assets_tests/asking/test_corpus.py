"""A bundle's arrays are read for a search, and a damaged one is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.asking.corpus import read_corpus
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets_tests.export.checks.bundles import everything

MODELS = ({"slug": "mini"}, {"slug": "other-1.5b"})


def test_the_norms_of_a_model_whose_dot_products_rank_come_with_its_vectors(tmp_path: Path) -> None:
    made = everything(tmp_path)
    corpus = replace(read_corpus(open_bundle(made.folder)), dense_models=MODELS)
    vectors, norms = corpus.dense(1)
    assert made.inputs is not None
    np.testing.assert_array_equal(vectors, made.inputs.dense[1].vectors)
    np.testing.assert_array_equal(norms, made.inputs.dense[1].norms)
    assert corpus.dense(0)[1] is None


@pytest.mark.parametrize("file", ["norms", "embeddings"])
@pytest.mark.parametrize("content", [b"none", b""])
def test_an_array_that_cannot_be_read_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    made = everything(tmp_path)
    corpus = replace(read_corpus(open_bundle(made.folder)), dense_models=MODELS)
    (path,) = made.folder.glob(f"*other_1.5b*{file}.npy")
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{path.name}: cannot be read as an array\. Export the bundle again"):
        corpus.dense(1)
