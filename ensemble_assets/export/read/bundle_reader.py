"""Reads the files of a bundle a record at a time for the gates, and goes on where a record is broken.

Parsing only: what a record must hold is the gates' business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.downgrade import bundle_names, read_list_items
from ensemble_assets.export.write.manifest import read_manifest
from ensemble_assets.export.write.names import MANIFEST_NAME, BundleNames

EXPORT_AGAIN = "Export the bundle again"
_VECTORS_KEY = b', "vectors": {'
_NAME = re.compile(rb'"((?:[^"\\]|\\.)*)": ')


@dataclass(frozen=True)
class Bundle:
    """A bundle folder.

    Attributes:
        folder: where its files are.
        names: of its files.
        manifest: with empty sections where it has none; empty where there is no manifest.
    """

    folder: Path
    names: BundleNames
    manifest: dict[str, Any]

    @property
    def version(self) -> str:
        """``v4.1`` where the manifest says so, else ``v4.0``."""
        return str(self.manifest.get("schema_version", "v4.0"))

    @property
    def sparse_on(self) -> bool:
        """Whether the sparse stage was on."""
        return self._toggle("sparse")

    @property
    def rerank_on(self) -> bool:
        """Whether the rerank stage was on."""
        return self._toggle("rerank")

    def path(self, content: str) -> Path:
        """The file for ``content``, such as ``qdrant.jsonl``."""
        return self.folder / self.names.of(content)

    def _toggle(self, stage: str) -> bool:
        toggles = self.manifest.get("feature_toggles")
        stated = toggles.get(f"enable_{stage}") if isinstance(toggles, dict) else None
        return bool(stated) if stated is not None else f"{stage}_run" in self.manifest


@dataclass(frozen=True)
class Point:
    """One line of the points file.

    Attributes:
        keys: of the object, in order.
        row: its ``id``, whatever that is.
        payload: an object, or None where it is none.
        vectors: the text of the object of vectors, in UTF-8.
    """

    keys: tuple[str, ...]
    row: Any
    payload: dict[str, Any] | None
    vectors: bytes

    @property
    def vector_names(self) -> list[str]:
        """Keys of ``vectors``, in order."""
        return [str(json.loads(b'"' + name + b'"')) for name in _NAME.findall(self.vectors)]

    def parsed_vectors(self) -> dict[str, Any]:
        """The vectors as lists; numbers that are not finite among them.

        Raises:
            ValueError: if the text is no JSON object.
        """
        try:
            parsed: Any = orjson.loads(self.vectors)
        except orjson.JSONDecodeError:
            parsed = json.loads(self.vectors)
        if not isinstance(parsed, dict):
            raise ValueError("no object")
        return parsed


def open_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``.

    Raises:
        ArtefactError: if it is no bundle folder, or its manifest cannot be read.
    """
    manifest = folder / MANIFEST_NAME
    return Bundle(folder, bundle_names(folder), read_manifest(manifest) if manifest.is_file() else {})


def points(bundle: Bundle) -> Iterator[Point | None]:
    """Every point in file order; None for a line that is none."""
    with bundle.path("qdrant.jsonl").open("rb") as lines:
        for line in lines:
            yield parse_point(line)


def parse_point(line: bytes) -> Point | None:
    """A line of the points file; None if it is no JSON object."""
    cut = line.rfind(_VECTORS_KEY)  # inside a string the quotes would be escaped; after it there are only numbers
    if cut > 0 and line.endswith(b"}}\n"):
        head = parse_object(line[:cut] + b"}")
        if head is not None:
            vectors = line[cut + len(_VECTORS_KEY) - 1 : -2]
            return Point((*head, "vectors"), head.get("id"), _dict(head.get("payload")), vectors)
    whole = parse_object(line)
    if whole is None:
        return None
    vectors = json.dumps(whole.get("vectors")).encode()
    return Point(tuple(whole), whole.get("id"), _dict(whole.get("payload")), vectors)


def metadata_items(bundle: Bundle) -> Iterator[dict[str, Any] | None]:
    """Every item of the metadata file; None for one that is no object.

    Raises:
        ArtefactError: if the file is missing or is not laid out as bundles are.
    """
    return map(parse_object, list_items(bundle, "metadata.json"))


def records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Every line of a JSONL file; None for one that is no object."""
    with path.open("rb") as lines:
        yield from map(parse_object, lines)


def list_items(bundle: Bundle, content: str) -> Iterator[bytes]:
    """Every item of an indented list, such as ``metadata.json``, as it stands in the file.

    Raises:
        ArtefactError: if the file is missing or is not laid out as bundles are.
    """
    path = bundle.path(content)
    if not path.is_file():
        raise ArtefactError(f"{path.name}: is missing. {EXPORT_AGAIN}")
    with path.open("rb") as file:
        yield from read_list_items(file, path.name)


def open_vectors(path: Path) -> NDArray[Any]:
    """A ``.npy`` file, mapped.

    Raises:
        ArtefactError: if it cannot be read as an array.
    """
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        try:
            mapped = np.load(path, allow_pickle=False)  # an array without rows cannot be mapped
        except (OSError, ValueError):
            raise ArtefactError(f"{path.name}: cannot be read as an array. {EXPORT_AGAIN}") from None
    return mapped


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ArtefactError: if it does not.
    """
    try:
        content = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if content is None:
        raise ArtefactError(f"{path.name}: expected a JSON object. {EXPORT_AGAIN}")
    return content


def parse_object(text: str | bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    return _dict(parse_value(text))


def parse_value(text: str | bytes) -> Any:
    """A JSON value; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dict(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
