"""A ColBERT model is described and probed as it is run: its own tokens, its own length limits, its own comparison."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library import multi_vectors
from ensemble_assets.compute.backends.library.describe import describe
from ensemble_assets.compute.backends.library.loading import load_row_maker
from ensemble_assets.compute.backends.library.probe import probe_model
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import model_spec
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.model_zoo.families.multi_vector import MARKS, multi_vector
from ensemble_assets_tests.model_zoo.texts import QUERIES, chunk_texts


@pytest.fixture(scope="module")
def colbert(tmp_path_factory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("models") / "colbert"
    folder.mkdir()
    multi_vector(prompts=MARKS, similarity_fn_name="meanmaxsim")(folder)
    return model_spec(str(folder), "rerank")


def test_its_files_say_how_it_is_run(colbert):
    described = describe(colbert, locate(colbert), None)
    traits = described.traits
    assert (traits.similarity, traits.width, traits.max_tokens, traits.tokens) == ("meanmaxsim", 48, 180, "library")
    assert (described.spec.pooling, described.spec.dimension, described.spec.max_tokens) == ("multi_vector", 48, 180)
    factory = rerank_factory(colbert, locate(colbert), Runtime("fp32"))
    assert factory.states == "alone"
    assert {name: spec.dtype for name, spec in factory.outputs.items()} == {STATE: "float16", SCALE: "float32"}


def test_each_task_has_its_own_limit_and_what_lies_beyond_is_counted(colbert):
    made = load_row_maker(describe(colbert, locate(colbert), None).spec, locate(colbert))
    chunks, queries = made.rows(chunk_texts(), "document"), made.rows(QUERIES, "query")
    whole = made.model.tokenizer([MARKS["document"] + text for text in chunk_texts()])["input_ids"]
    np.testing.assert_array_equal(chunks.lengths + chunks.tokens_lost, list(map(len, whole)))
    assert (chunks.lengths.max(), set(queries.lengths.tolist())) == (180, {32})
    asked = made.model.tokenizer([MARKS["query"] + text for text in QUERIES])["input_ids"]
    np.testing.assert_array_equal(queries.tokens_lost, [max(0, len(ids) - 32) for ids in asked])
    assert queries.tokens_lost.any()


def test_a_forward_that_compares_other_tokens_than_the_library_is_refused(colbert, monkeypatch):
    run = multi_vectors.MultiVectorForward.run

    def with_all_tokens(self, features, task):
        made = run(self, features, task)
        return made | {SCALE: made[SCALE].abs()}

    monkeypatch.setattr(multi_vectors.MultiVectorForward, "run", with_all_tokens)
    asked = describe(colbert, locate(colbert), None).asked
    with pytest.raises(ModelUnavailableError, match="differ from sentence-transformers' own call by inf"):
        probe_model.__wrapped__(asked, locate(colbert))
