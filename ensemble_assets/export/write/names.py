"""Name the files and folders of a bundle, and state the fixed numbers of its format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.common.defaults import FILE_PREFIX, FILE_PREFIX_WORDS
from ensemble_assets.common.errors import SettingsError

DEFAULT_PREFIX = "ultimate_embeddings_v4"
_UNSAFE = re.compile(r"[\s\x00-\x20\x7f]|%(?=[0-9A-Fa-f]{2})")
MANIFEST_NAME = "processing_summary.json"

PREVIEW_CHARACTERS = 500
"""Length of ``text_preview`` in a point."""

UNIT_TOLERANCE = 1e-3
"""Largest difference between 1 and the L2 norm of an exported vector."""

_PREFIX = re.compile(FILE_PREFIX)
_OUTSIDE_FILE_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
_OUTSIDE_COLLECTION_NAME = re.compile(r"[\s-]")

_ENDINGS = (
    "_embeddings.npy",
    "_qdrant.jsonl",
    "_sparse.jsonl",
    "_index.faiss",
    "_metadata.json",
    "_texts.json",
    "_stats.json",
    "_upload_script.py",
    "_rerank.jsonl",
    "_fused.trec",
    "_reranked.trec",
    "_processing_summary.json",
    "_token_vectors.npy",
    "_token_offsets.npy",
)
"""Endings of a bundle's files; the last six came with v4.1, one more name of the manifest among them."""


def collection_folder(collection: str) -> str:
    """Name the folder of a collection by ``safe_name``, or ``collection`` where nothing is left."""
    from ensemble_assets.collection.folders import safe_name  # here, since commands name files and read no chunks

    return safe_name(collection) or "collection"


def target_collection(collection: str, model: str) -> str:
    """Name the Qdrant collection that a bundle is meant for: ``<collection>_v4_<model, blanks and - as _>``."""
    return f"{collection}_v4_{_OUTSIDE_COLLECTION_NAME.sub('_', model)}"


@dataclass(frozen=True)
class BundleNames:
    """File names of one bundle, by content; ``SettingsError`` if the prefix is no plain piece of a file name."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise SettingsError(f"export prefix {self.prefix!r}: expected {FILE_PREFIX_WORDS}")

    def vectors(self, companion: str | None = None) -> str:
        """Name the file of dense vectors of the primary model, or of a companion by its slug."""
        if companion is None:
            return f"{self.prefix}_embeddings.npy"
        return f"{self.prefix}_{_OUTSIDE_FILE_NAME.sub('_', companion.replace('-', '_'))}_embeddings.npy"

    def norms(self, companion: str | None = None) -> str:
        """Name the file with the lengths of a model's vectors, for a model whose dot products rank."""
        return self.vectors(companion).replace("_embeddings.npy", "_norms.npy")

    def file(self, content: str) -> str:
        """Name the file of a content such as ``qdrant.jsonl`` or ``fused.trec``; ``ValueError`` for any other."""
        if f"_{content}" not in _ENDINGS:
            raise ValueError(f"bundles have no file {self.prefix}_{content}")
        return f"{self.prefix}_{content}"

    @property
    def manifests(self) -> tuple[str, str]:
        """The names of both copies of the manifest."""
        return MANIFEST_NAME, self.file(MANIFEST_NAME)

    def all(self) -> tuple[str, ...]:
        """Name every file of a bundle but the arrays of companions."""
        return (MANIFEST_NAME, *(f"{self.prefix}{ending}" for ending in _ENDINGS))

    def is_written(self, name: str) -> bool:
        """Whether an exporter writes ``name``; such a file of an earlier run is replaced or dropped.

        Every other file in a bundle folder belongs to somebody else and stays.
        """
        is_array = name.startswith(f"{self.prefix}_") and name.endswith(("_embeddings.npy", "_norms.npy"))
        return name in self.all() or is_array


def names_by_manifest(folder: Path) -> BundleNames | None:
    """Name the files of the bundle that the manifest in ``folder`` describes; None where it has no second copy there.

    A folder may have bundles of several prefixes, such as one of version 4.0. The last export wrote the manifest twice.
    """
    manifest = folder / MANIFEST_NAME
    for copy in sorted(folder.glob(f"*_{MANIFEST_NAME}")) if manifest.is_file() else ():
        prefix = copy.name.removesuffix(f"_{MANIFEST_NAME}")
        if _PREFIX.fullmatch(prefix) and copy.read_bytes() == manifest.read_bytes():
            return BundleNames(prefix)
    return None


def trec_id(identifier: str) -> str:
    """Escape ``identifier`` for one TREC column."""
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), identifier)
