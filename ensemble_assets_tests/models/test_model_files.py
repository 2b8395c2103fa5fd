"""A model's files are found where users have them, whole or named as incomplete, and fingerprinted as they are read."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError
from ensemble_assets.models import model_files
from ensemble_assets.models.model_files import describe_on_hub, hub_has_weights, locate, weight_bytes
from ensemble_assets.models.registry import MODELS, hub_spec, model_spec
from ensemble_assets.models.spec import FolderSource, HubSource
from ensemble_assets.settings.chosen_models import choose_models
from ensemble_assets.settings.options import Models
from ensemble_assets_tests.model_zoo.registered_layouts import JINA_PROMPTS

COMMIT = "c" * 40


HTTP = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
"""The HTTP library below the hub's client: ``httpx``, or its successor. Its errors are no ``OSError``."""


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def snapshot(cache: Path, repository: str = "owner/enc", **files: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    write(folder, **{"refs/main": COMMIT})
    write(folder / "snapshots" / COMMIT, **files)
    return folder / "snapshots" / COMMIT


def test_a_whole_cached_model_is_found_without_a_network(cache: Path) -> None:
    folder = snapshot(cache, **{"config.json": "{}", "model.safetensors": "weights"})
    files = locate(hub_spec("owner/enc", "dense"))
    assert (files.folder, files.revision, files.weights) == (folder, COMMIT, "safetensors")


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"model.safetensors": "w"}, "config.json"),
        ({"config.json": "{}"}, "model.safetensors"),
        (
            {
                "config.json": "{}",
                "model-00001-of-00002.safetensors": "w",
                "model.safetensors.index.json": json.dumps(
                    {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
                ),
            },
            "model-00002-of-00002.safetensors",
        ),
        (
            {
                "config.json": "{}",
                "model.safetensors": "w",
                "modules.json": json.dumps([{"path": "1_Pooling"}, {"path": "2_Dense"}]),
                "1_Pooling/config.json": "{}",
            },
            "2_Dense",
        ),
    ],
)
def test_an_incomplete_cache_is_named_as_that(cache: Path, files: dict[str, str], missing: str) -> None:
    snapshot(cache, **files)
    with pytest.raises(ModelUnavailableError, match=f"only in part: {missing} is missing.*could not be downloaded"):
        locate(hub_spec("owner/enc", "dense"))


def test_a_partial_cache_is_completed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshot(cache, **{"config.json": "{}"})
    calls: list[bool] = []

    def download(repository: str, *, local_files_only: bool, **wanted: object) -> str:
        calls.append(local_files_only)
        if not local_files_only:
            write(folder, **{"model.safetensors": "w"})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate(hub_spec("owner/enc", "dense")).weights == "safetensors"
    assert calls == [True, False]


@pytest.mark.parametrize("error", [OSError("connection reset"), HTTP.RemoteProtocolError("peer closed connection")])
def test_a_broken_download_is_an_error_of_the_model(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(repository: str, *, local_files_only: bool, **wanted: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelUnavailableError, match=rf"is not in the local Hugging Face cache.*{type(error).__name__}"):
        locate(hub_spec("owner/enc", "dense"))


@pytest.mark.parametrize("error", [HTTP.RemoteProtocolError("peer closed connection"), KeyError("a fault here")])
def test_only_a_network_that_fails_leaves_it_open_what_the_hub_has(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def ask(*arguments: object, **wanted: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    if isinstance(error, KeyError):
        with pytest.raises(KeyError):
            hub_has_weights(HubSource("owner/enc"))
    else:
        assert hub_has_weights(HubSource("owner/enc")) is None


def test_a_fault_of_the_program_is_not_taken_for_a_broken_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, *, local_files_only: bool, **wanted: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise KeyError("a fault here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(KeyError):
        locate(hub_spec("owner/enc", "dense"))


def test_pickled_weights_are_asked_for_only_where_there_is_nothing_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache / "made"
    asked: list[bool] = []

    def download(repository: str, *, local_files_only: bool, allow_patterns: list[str], **wanted: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        asked.append(any("bin" in pattern for pattern in allow_patterns))
        write(folder, **{"config.json": "{}"})
        if asked[-1]:
            write(folder, **{"pytorch_model.bin": "w"})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate(hub_spec("owner/enc", "dense")).weights == "pickle"
    assert asked == [False, True]


def test_only_weights_that_are_read_count(tmp_path: Path) -> None:
    write(tmp_path, **{"pytorch_model.bin": "weights"})
    assert weight_bytes(tmp_path) == 7
    write(tmp_path, **{"model.safetensors": "w", "2_Dense/model.safetensors": "x"})
    assert weight_bytes(tmp_path) == 2


@pytest.mark.parametrize("cached", [True, False])
def test_pickled_weights_can_be_refused_and_are_then_not_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    folder = cache / "made"
    files = {"config.json": "{}"} | ({"pytorch_model.bin": "w"} if cached else {})

    def download(repository: str, *, local_files_only: bool, allow_patterns: list[str], **wanted: object) -> str:
        assert not any("bin" in pattern for pattern in allow_patterns)
        if local_files_only and not cached:
            raise LocalEntryNotFoundError("not here")
        write(folder, **files)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelUnavailableError, match=r"enc: has no \*\.safetensors.*models\.safetensors_only=false"):
        locate(hub_spec("owner/enc", "dense"), safetensors_only=True)
    write(folder, **{"model.safetensors": "w"})
    assert locate(hub_spec("owner/enc", "dense"), safetensors_only=True).weights == "safetensors"


def test_weights_below_the_root_count(tmp_path: Path) -> None:
    write(tmp_path, **{"modules.json": "[]", "0_StaticEmbedding/model.safetensors": "w"})
    assert locate(model_spec(str(tmp_path), "dense")).weights == "safetensors"


def test_a_local_folder_is_a_model_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "My Enc", **{"config.json": "{}", "model.safetensors": "w"})
    monkeypatch.chdir(tmp_path)
    spec = model_spec("./My Enc", "dense")
    assert (spec.slug, spec.hf_model_id, spec.source) == ("my-enc", "local/My Enc", FolderSource("My Enc"))
    assert locate(spec).folder.resolve() == tmp_path / "My Enc"
    with pytest.raises(SettingsError, match="is no folder on this machine"):
        model_spec("./none", "dense")


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "baai/BGE-M3", "bge-m3"])
def test_a_full_id_and_its_slug_are_one_model(name: str) -> None:
    assert model_spec(name, "dense") is MODELS["bge-m3"]


def test_one_model_by_both_names_is_named_twice() -> None:
    with pytest.raises(SettingsError, match="the dense model bge-m3 is named twice"):
        choose_models(Models(ensemble=("bge-m3", "BAAI/bge-m3")))


def test_two_models_with_one_slug_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"a/enc and b/Enc would both be called enc"):
        choose_models(Models(ensemble=("a/enc", "b/Enc")))


def test_the_hub_tells_a_models_configuration_and_the_size_of_the_weights_that_would_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pickled weights beside safetensors, and weights for other backends, are not fetched."""
    sizes = {
        "model.safetensors": 700,
        "2_Dense/model.safetensors": 50,
        "pytorch_model.bin": 701,
        "onnx/model.onnx": 702,
    }

    def model_info(api: object, repository: str, **options: object) -> SimpleNamespace:
        assert options["files_metadata"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=sizes[name]) for name in sizes])

    def download(repository: str, name: str, *, revision: str, local_dir: str) -> str:
        (Path(local_dir) / name).write_text('{"hidden_size": 64}')
        return str(Path(local_dir) / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert describe_on_hub(HubSource("owner/enc", COMMIT)) == ({"hidden_size": 64}, 750)
    del sizes["model.safetensors"], sizes["2_Dense/model.safetensors"]
    assert describe_on_hub(HubSource("owner/enc", COMMIT)) == ({"hidden_size": 64}, 701)


def test_a_hub_that_does_not_answer_tells_nothing() -> None:
    assert describe_on_hub(HubSource("owner/enc", COMMIT)) == ({}, 0)


def test_registered_hub_models_are_pinned_to_full_commits() -> None:
    unpinned = [
        spec.slug
        for spec in MODELS.values()
        if isinstance(spec.source, HubSource) and len(spec.source.revision) != len(COMMIT)
    ]
    assert unpinned == []


def test_jina_is_asked_for_answers_among_documentation_with_the_prompts_that_its_files_name() -> None:
    spec = MODELS["jina-code-embeddings-1.5b"]
    asked = (spec.query_prefix, spec.document_prefix)
    assert asked == (JINA_PROMPTS["qa_query"], JINA_PROMPTS["qa_document"])


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "1_Pooling/config.json", "tokenizer_config.json", "template.jinja"),
        *("artifact.metadata", "colbert_linear.pt"),
    ],
)
def test_the_fingerprint_changes_with_every_file_that_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{"config.json": "{}", "model.safetensors": "w", name: "{}"})
    before = locate(model_spec(str(tmp_path), "dense")).fingerprint
    write(tmp_path, **{name: '{"changed": 1}'})
    assert locate(model_spec(str(tmp_path), "dense")).fingerprint != before


def test_weights_are_hashed_once_for_a_process_until_their_time_changes(tmp_path: Path) -> None:
    weights, spec = tmp_path / "model.safetensors", model_spec(str(tmp_path), "dense")
    write(tmp_path, **{"config.json": "{}", "model.safetensors": "old"})
    before, stat = locate(spec).fingerprint, weights.stat()
    weights.write_text("new")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert locate(spec).fingerprint == before  # as long as size and time are equal, nothing is read
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert locate(spec).fingerprint != before


@pytest.mark.parametrize("name", ["README.md", "onnx/model.json", "pytorch_model.bin", "figure.png"])
def test_the_fingerprint_leaves_out_files_that_are_not_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{"config.json": "{}", "model.safetensors": "w", name: "a"})
    before = locate(model_spec(str(tmp_path), "dense")).fingerprint
    write(tmp_path, **{name: "b"})
    assert locate(model_spec(str(tmp_path), "dense")).fingerprint == before


def test_large_files_of_the_hub_cache_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / "blobs" / ("a" * 64)
    write(tmp_path, **{f"blobs/{'a' * 64}": "weights", "model/config.json": "{}"})
    (tmp_path / "model" / "model.safetensors").symlink_to(blob)
    opened: list[str] = []
    unread = model_files._hash_in_cache
    monkeypatch.setattr(model_files, "_hash_in_cache", lambda path: opened.append(unread(path)) or opened[-1])
    locate(model_spec(str(tmp_path / "model"), "dense"))
    assert opened == ["", "a" * 64]
