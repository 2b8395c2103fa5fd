"""The models file of profile ``custom`` is checked field by field, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.custom_models import read_catalogue
from ensemble_assets.models.spec import FolderSource, HubSource

MODEL = {
    "slug": "my-encoder",
    "kind": "dense",
    "hf_model_id": "owner/name",
    "source": {"path": "models/my-encoder"},
    "dimension": 8,
    "max_tokens": 64,
    "pooling": "mean",
    "licence": "MIT",
}
PROFILE = {"dense": ["my-encoder"], "sparse": ["splade-tiny"], "rerank": "ensemble-reranker-tiny"}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_folder_model_and_registered_ones_together(tmp_path: Path) -> None:
    catalogue = read_catalogue(write(tmp_path, {"models": [MODEL], "profile": PROFILE}))
    assert catalogue.spec("my-encoder", "dense").source == FolderSource("models/my-encoder")
    assert catalogue.spec("splade-tiny", "sparse").kind == "sparse"
    assert catalogue.profile.dense == ("my-encoder",)


def test_any_encoder_can_rerank_by_its_token_states(tmp_path: Path) -> None:
    model = {**MODEL, "kind": "rerank", "pooling": "late_interaction", "dimension": 1, "share": 0.35}
    catalogue = read_catalogue(write(tmp_path, {"models": [model], "profile": {**PROFILE, "dense": ["bge-m3"]}}))
    assert catalogue.spec("my-encoder", "rerank").share == 0.35


def test_a_hub_model_keeps_its_revision(tmp_path: Path) -> None:
    model = {**MODEL, "source": {"repository": "owner/name", "revision": "a" * 40}, "trust_remote_code": True}
    catalogue = read_catalogue(write(tmp_path, {"models": [model], "profile": PROFILE}))
    assert catalogue.spec("my-encoder", "dense").source == HubSource("owner/name", "a" * 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensoin": 3}, "unknown field 'dimensoin'"),
        ({"kind": "lexical"}, "expected one of dense, sparse, rerank"),
        ({"pooling": "max"}, "expected one of mean"),
        ({"pooling": "splade_max"}, "pooling is 'splade_max', expected one of mean, cls, last_token"),
        ({"kind": "rerank"}, "pooling is 'mean', expected one of cross_encoder, late_interaction"),
        ({"kind": ["dense"]}, "expected one of dense, sparse, rerank"),
        ({"share": 7}, "share is 7, expected a number from 0 to 1"),
        ({"share": float("nan")}, "share is nan"),
        ({"max_tokens": "many"}, "max_tokens is 'many', expected a whole number from 1"),
        ({"dimension": 7.5}, "dimension is 7.5"),
        ({"windows": True}, "windows is True"),
        ({"slug": "My Encoder"}, "lower case letters"),
        ({"slug": "bge-m3"}, "is a registered model's"),
        ({"source": "owner/name"}, "`path`"),
        ({"trust_remote_code": True}, "40-digit"),
        (
            {"trust_remote_code": True, "source": {"repository": "owner/name", "revision": "main"}},
            "40-digit",
        ),
    ],
)
def test_wrong_fields(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, {"models": [{**MODEL, **change}], "profile": PROFILE})
    with pytest.raises(SettingsError, match=message) as caught:
        read_catalogue(path)
    assert "models.yaml, model 1" in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    model = {name: value for name, value in MODEL.items() if name != "licence"}
    with pytest.raises(SettingsError, match="'licence' is missing"):
        read_catalogue(write(tmp_path, {"models": [model], "profile": PROFILE}))


@pytest.mark.parametrize("content", ["just text", [], {"models": []}, {"models": [MODEL], "profile": {"dense": []}}])
def test_a_file_of_the_wrong_shape(tmp_path: Path, content: object) -> None:
    with pytest.raises(SettingsError, match=r"models\.yaml"):
        read_catalogue(write(tmp_path, content))


def test_a_profile_that_names_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no sparse model is called 'nothing'"):
        read_catalogue(write(tmp_path, {"models": [MODEL], "profile": {**PROFILE, "sparse": ["nothing"]}}))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_catalogue(tmp_path / "none.yaml")
