"""A model is described from its own files; what its spec says must fit them, and a shipped description is the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.machine import this_host
from ensemble_assets.compute.backends.choice import sparse_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library import describe as describing
from ensemble_assets.compute.backends.library import probe as probing
from ensemble_assets.compute.backends.library.describe import describe, refusal
from ensemble_assets.compute.backends.library.probe import FP32_TOLERANCE, Probe, probe_model
from ensemble_assets.compute.backends.library.shipped import SHIPPED
from ensemble_assets.compute.batching.batch_outcome import ModelFailedError
from ensemble_assets.models.model_files import locate, weight_bytes
from ensemble_assets.models.registry import MODELS, PROFILES
from ensemble_assets_tests.compute.backends.checkpoints import POSITIONS, WIDTH, checkpoint

pytestmark = pytest.mark.models
EMBEDDED = PROFILES["embedded"]


def described(tmp_path, **spec):
    made = checkpoint(tmp_path / "model", "dense")
    return describe(replace(made, **spec), locate(made), None)


@pytest.mark.parametrize("slug", [*EMBEDDED.dense, *EMBEDDED.sparse, EMBEDDED.rerank])
def test_the_shipped_description_is_what_the_probe_says(slug, monkeypatch):
    spec, files = MODELS[slug], locate(MODELS[slug])
    shipped = describe(spec, files, None)
    monkeypatch.setattr(describing, "SHIPPED", {})
    probed = describe(spec, files, None)
    assert probed.traits.largest_difference <= FP32_TOLERANCE
    assert replace(probed.traits, largest_difference=0.0) == shipped.traits
    assert probed.spec == shipped.spec


def test_late_interaction_has_its_own_limit():
    spec = MODELS["minilm-late-interaction"]
    described = describe(spec, locate(spec), None)
    shipped = SHIPPED[(locate(spec).fingerprint, "mean")]
    assert described.spec.max_tokens == spec.max_tokens
    assert replace(described.traits, max_tokens=shipped.max_tokens) == shipped


def test_dimension_and_limit_are_read_from_the_files(tmp_path):
    complete = described(tmp_path, dimension=0, max_tokens=0).spec
    assert (complete.dimension, complete.max_tokens, complete.pooling) == (WIDTH, POSITIONS - 2, "mean")
    assert (complete.query_prefix, complete.document_prefix) == ("", "")


@pytest.mark.parametrize(("asked", "limit"), [(20, 20), (9_000, POSITIONS - 2)])
def test_a_smaller_limit_counts_and_a_larger_one_does_not(tmp_path, asked, limit):
    assert described(tmp_path, max_tokens=asked).spec.max_tokens == limit


def test_a_smaller_dimension_cuts_and_a_larger_one_is_refused(tmp_path):
    cut = described(tmp_path, dimension=8)
    assert cut.spec.dimension == 8 < cut.traits.dimension
    with pytest.raises(ModelUnavailableError, match=f"dimension {WIDTH + 1}, but its files say {WIDTH}"):
        described(tmp_path, dimension=WIDTH + 1)


def test_a_model_on_which_the_library_itself_fails_is_refused_with_its_limit(tmp_path):
    spec = replace(checkpoint(tmp_path / "model", "dense", pools="mean"), max_tokens=0)
    longer = {"max_seq_length": 4 * POSITIONS}  # than the network has positions
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps(longer))
    with pytest.raises(ModelUnavailableError, match=rf"texts of up to {4 * POSITIONS} tokens .* smaller max_tokens"):
        describe(spec, locate(spec), None)
    assert describe(replace(spec, max_tokens=POSITIONS), locate(spec), None).spec.max_tokens == POSITIONS


def test_a_model_that_fails_in_batches_alone_is_refused_before_the_first_stage(tmp_path, monkeypatch):
    def fails(probe, forward):
        raise ModelFailedError("model", "RuntimeError", 4, 1)

    monkeypatch.setattr(Probe, "judge", fails)
    with pytest.raises(ModelUnavailableError, match=r"\(RuntimeError\), but not in .* own call. Report this model"):
        described(tmp_path)


def test_descriptions_and_verdicts_are_of_the_files_the_path_the_versions_and_the_processor(tmp_path, monkeypatch):
    spec = checkpoint(tmp_path / "model", "dense")
    files = locate(spec)
    keys = [describing._key(spec, files), describing._key(spec, files, "fp32"), describing._key(spec, files, "bf16")]
    keys.append(describing._key(spec, replace(files, fingerprint="0" * 16)))
    keys.append(describing._key(replace(spec, max_tokens=17), files))
    monkeypatch.setattr(describing, "library_versions", lambda: {"transformers": "another"})
    keys.append(describing._key(spec, files))
    monkeypatch.setattr(describing, "this_host", lambda: replace(this_host(), cpu="another"))
    keys.append(describing._key(spec, files))
    assert len(set(keys)) == len(keys)
    assert describing._key(replace(spec, slug="other-name", licence="MIT"), files) == keys[-1]


def test_a_description_is_kept_and_read_again_without_loading(tmp_path, monkeypatch):
    spec = checkpoint(tmp_path / "model", "dense")
    first = describe(spec, locate(spec), tmp_path / "cache")
    describing._described.cache_clear()
    monkeypatch.setattr(probing, "probe_model", None)  # would fail
    assert describe(spec, locate(spec), tmp_path / "cache") == first


@pytest.mark.parametrize("agrees", [True, False])
def test_a_fast_path_that_differs_from_the_library_is_not_taken(tmp_path, monkeypatch, agrees):
    spec = checkpoint(tmp_path / "model", "sparse")
    model = describe(spec, locate(spec), None)
    monkeypatch.setattr(Probe, "judge", lambda self, forward: (agrees, 0.0))
    assert refusal(model.asked, locate(spec), "tiled", None) == ("" if agrees else "differs_from_library")
    factory = sparse_factory(spec, locate(spec), Runtime("fp32"))
    assert factory.tiled == agrees


def test_a_verdict_on_a_fast_path_is_kept(tmp_path, monkeypatch):
    spec, caches = checkpoint(tmp_path / "model", "sparse"), tmp_path / "cache"
    model = describe(spec, locate(spec), caches)
    first = refusal(model.asked, locate(spec), "tiled", caches)
    describing.refusal.cache_clear()
    monkeypatch.setattr(probing, "probe_model", None)  # would fail
    assert refusal(model.asked, locate(spec), "tiled", caches) == first


@pytest.mark.parametrize("kind", ["dense", "sparse", "rerank"])
def test_a_large_model_is_probed_in_half_the_memory(tmp_path, monkeypatch, kind):
    spec = checkpoint(tmp_path / "model", kind)
    monkeypatch.setattr(probing, "LARGE", weight_bytes(tmp_path / "model"))
    traits, probe = probe_model.__wrapped__(spec, locate(spec))
    assert probe.precision == "bf16"
    assert traits.largest_difference < 0.2
    monkeypatch.setattr(probing, "LARGE", weight_bytes(tmp_path / "model") + 1)
    whole, exact = probe_model.__wrapped__(spec, locate(spec))
    assert exact.precision == "fp32"
    assert replace(whole, largest_difference=0.0) == replace(traits, largest_difference=0.0)
