"""The registry: unique slugs, complete profiles, and the promises that docs/models.md makes about both."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.custom_models import read_catalogue
from ensemble_assets.models.registry import MODELS, PROFILES, model_spec
from ensemble_assets.models.spec import HubSource, PackageSource

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_profiles_name_models_of_the_right_kind(profile) -> None:
    assert [model_spec(slug, "dense").kind for slug in profile.dense]
    assert [model_spec(slug, "sparse").kind for slug in profile.sparse]
    assert model_spec(profile.rerank, "rerank").kind == "rerank"


def test_the_embedded_profile_needs_no_network() -> None:
    profile = PROFILES["embedded"]
    for slug in (*profile.dense, *profile.sparse, profile.rerank):
        assert isinstance(MODELS[slug].source, PackageSource)


def test_no_registered_model_runs_remote_code() -> None:
    assert not any(spec.trust_remote_code for spec in MODELS.values())


def test_a_hugging_face_id_is_a_model() -> None:
    spec = model_spec("Owner/Some-Model", "dense")
    assert (spec.slug, spec.source) == ("some-model", HubSource("Owner/Some-Model"))


def test_the_full_id_of_a_registered_model_is_that_model_also_where_it_ships_with_a_package() -> None:
    for spec in MODELS.values():
        if spec.pooling != "late_interaction":
            assert model_spec(spec.hf_model_id, spec.kind) is spec
            assert model_spec(spec.hf_model_id.upper(), spec.kind) is spec


def test_a_model_of_another_kind_is_refused_with_the_ones_that_fit() -> None:
    with pytest.raises(SettingsError, match=r"known dense models: all-minilm-l6-v2"):
        model_spec("splade-tiny", "dense")


def test_the_documentation_names_every_profile_model() -> None:
    page = (DOCS / "models.md").read_text()
    for profile in PROFILES.values():
        for slug in (*profile.dense, *profile.sparse, profile.rerank):
            assert slug in page


def test_the_documented_yaml_example_is_accepted(tmp_path: Path) -> None:
    example = (DOCS / "models.md").read_text().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "models.yaml"
    path.write_text(example)
    assert read_catalogue(path).profile.dense == ("my-encoder", "all-minilm-l6-v2")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("all-miniLM-l6", "all-minilm-l6-v2"),
        ("all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("Qwen3_Embedding_0.6B", "qwen3-embedding-0.6b"),
        ("JINA-code-embeddings-1.5b", "jina-code-embeddings-1.5b"),
    ],
)
def test_spellings_of_version_4_name_the_registered_model(name: str, slug: str) -> None:
    assert model_spec(name, "dense").slug == slug
    with pytest.raises(SettingsError, match=f"no rerank model is called '{name}'"):
        model_spec(name, "rerank")
