"""Read the files of a bundle one record at a time, and go on where a record is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.fast_json import FLOAT_BLOCK, compact, float_lists, parse_object
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.write.names import MANIFEST_NAME, BundleNames, names_by_manifest
from ensemble_assets.export.write.token_vectors import TOKEN_FILES, TokenVectors

EXPORT_AGAIN = "Export the bundle again"

_POINTS = "qdrant.jsonl"
_POINT_KEYS = ("id", "payload", "vectors")
_VECTORS_KEY = b', "vectors": {'
READ_BYTES = 1 << 18
"""Bytes read at once: with 8 kB, as Python has it, reading the lines of points takes seven times as long."""
_ITEM_BORDER = re.compile(rb",\n  (?=[^ ])")

_EMPTY_SECTIONS: dict[str, type[dict[str, Any]] | type[list[Any]]] = {
    "telemetry": dict,
    "feature_toggles": dict,
    "warnings": list,
    "compatibility": dict,
}
"""Manifest sections that a reader may rely on, and the type of each."""


@dataclass(frozen=True)
class Bundle:
    """A bundle folder. The manifest has empty sections where it has none; without a file it is empty."""

    folder: Path
    names: BundleNames
    manifest: dict[str, Any]

    @property
    def version(self) -> str:
        """``v4.1`` where the manifest says so, else ``v4.0``."""
        return str(self.manifest.get("schema_version", "v4.0"))

    def path(self, content: str) -> Path:
        """Give the file for ``content``, such as ``qdrant.jsonl``."""
        return self.folder / self.names.file(content)

    def is_on(self, stage: str) -> bool:
        """Whether the stage, ``sparse`` or ``rerank``, was on."""
        toggles = self.manifest.get("feature_toggles", {})
        return bool(toggles.get(f"enable_{stage}", f"{stage}_run" in self.manifest))


@dataclass(frozen=True)
class Point:
    """One line of the points file: its ``keys`` in order, and ``row``, its ``id``, an integer in a sound bundle.

    ``payload`` is None if it is no object; ``vectors_text`` is the object of vectors, in UTF-8. A sound bundle has no
    ``others``.
    """

    keys: tuple[str, ...]
    row: Any
    payload: dict[str, Any] | None
    vectors_text: bytes
    others: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def vectors(self) -> dict[str, Any] | None:
        """The vectors as lists, by model; None if their text is no JSON object. Numbers may be not finite."""
        return parse_object(self.vectors_text)


def open_bundle(folder: Path) -> Bundle:
    """Open the bundle in ``folder``; of several, the one that the manifest describes.

    It is an ``ArtefactError`` if there is none, or the manifest cannot be read.
    """
    if not folder.is_dir():
        raise ArtefactError(f"{folder.name}: there is no such bundle. Name its folder, or a collection that was run")
    matches = sorted(file.name for file in folder.glob(f"*_{_POINTS}"))
    if len(matches) > 1 and (described := names_by_manifest(folder)) and described.file(_POINTS) in matches:
        matches = [described.file(_POINTS)]
    if len(matches) != 1:
        within = next((file.parent.name for file in sorted(folder.glob(f"*/*_{_POINTS}"))), "")
        remedy = (
            f"Name a folder in it, such as {within}" if within else "Run a folder of chunks first, and name its bundle"
        )
        raise ArtefactError(
            f"{folder.name}: expected a bundle folder with one *_{_POINTS}, found {len(matches)}. {remedy}"
        )
    names = BundleNames(matches[0].removesuffix(f"_{_POINTS}"))
    manifest = next((name for name in names.manifests if (folder / name).is_file()), None)
    return Bundle(folder, names, read_manifest(folder, manifest) if manifest else {})


def read_manifest(folder: Path, name: str = MANIFEST_NAME) -> dict[str, Any]:
    """Read the manifest of a v4.0 or v4.1 bundle, with empty sections where it has none.

    ``schema_version`` is ``v4.0`` where it is missing. A file that is no JSON object is an ``ArtefactError``.
    """
    path = folder / name
    if not folder.is_dir():
        raise ArtefactError(f"{folder.name}: there is no such bundle. Name its folder, or a collection that was run")
    if not path.is_file():
        raise ArtefactError(f"{folder.name}: there is no {name} in it. Name a bundle folder that has one")
    return with_all_sections(read_object(path))


def with_all_sections(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give the manifest with empty sections where it has none, as every reader sees it."""
    content = dict(manifest)
    content["schema_version"] = str(content.get("schema_version") or "v4.0")
    for section, kind in _EMPTY_SECTIONS.items():
        if not isinstance(content.get(section), kind):
            content[section] = kind()
    return content


def points(bundle: Bundle) -> Iterator[Point | None]:
    """Read every point in file order; None for a line that is no point."""
    with bundle.path(_POINTS).open("rb") as lines:
        for line in lines:
            yield parse_point(line)


def parse_point(line: bytes) -> Point | None:
    """Parse a line of the points file; None if it is no JSON object."""
    cut = line.rfind(_VECTORS_KEY)  # inside a string the quotes would be escaped; after it there are only numbers
    content = parse_object(line[:cut] + b"}") if cut > 0 and line.endswith(b"}}\n") else None
    if content is not None:
        keys, vectors = (*content, "vectors"), line[cut + len(_VECTORS_KEY) - 1 : -2]
    else:
        content = parse_object(line)
        if content is None:
            return None
        keys, vectors = tuple(content), json.dumps(content.get("vectors")).encode()
    payload = content.get("payload")
    others = {key: value for key, value in content.items() if key not in _POINT_KEYS}
    return Point(keys, content.get("id"), payload if isinstance(payload, dict) else None, vectors, others)


def records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Read every line of a JSONL file; None for a line that is no object."""
    with path.open("rb", buffering=READ_BYTES) as lines:
        yield from map(parse_object, lines)


def list_items(path: Path) -> Iterator[bytes]:
    """Read the items of a JSON list that was written with indent 2, as they stand in the file, one at a time.

    A missing file, or another layout, is an ``ArtefactError``.
    """
    if not path.is_file():
        raise ArtefactError(f"{path.name}: is missing. {EXPORT_AGAIN}")
    with path.open("rb") as file:
        opening, rest = file.read(4), b""
        if opening.rstrip() == b"[]" and not file.read().strip():
            return
        if opening == b"[\n  ":
            while block := file.read(READ_BYTES):
                *whole, rest = _split_items(rest + block)
                yield from whole
    rest = rest.rstrip()
    if not rest.endswith(b"\n]"):
        raise ArtefactError(f"{path.name}: is no JSON list with indent 2. {EXPORT_AGAIN}")
    yield from _split_items(rest[:-2], complete=True)


def _split_items(text: bytes, *, complete: bool = False) -> list[bytes]:
    """Split ``text``, which begins with an item, into items; unless ``complete`` is set, the last may go on.

    Items begin two blanks in, their content further in; strings hold no line end. Objects end at a brace two blanks in.
    Braces are few, so that most of the gigabytes of a bundle are passed by at the speed of memory.
    """
    parts, start = list[bytes](), 0
    for end in _ends_of_objects(text):
        if text[start : start + 2] != b"{\n":
            break
        if text[end : end + 5] != b",\n  {":
            if end == len(text) if complete else len(text) - end < 5:
                return [*parts, text[start:]]
            break
        parts.append(text[start:end])
        start = end + 4
    else:
        if text[start : start + 1] == b"{" and not complete:
            return [*parts, text[start:]]
    return _ITEM_BORDER.split(text)  # empty objects, or items of other types


def _ends_of_objects(text: bytes) -> Iterator[int]:
    """Find the places after a brace that stands two blanks in on its line."""
    brace = text.find(b"}")
    while brace >= 0:
        if text[brace - 3 : brace] == b"\n  ":
            yield brace + 1
        brace = text.find(b"}", brace + 1)


def open_array(path: Path) -> NDArray[Any]:
    """Map a ``.npy`` file; ``ArtefactError`` if it is no array."""
    modes: tuple[Literal["r"] | None, ...] = ("r", None)  # an array without rows cannot be mapped
    for mode in modes:
        with suppress(OSError, ValueError, EOFError):
            mapped: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
            return mapped
    raise ArtefactError(f"{path.name}: cannot be read as an array. {EXPORT_AGAIN}")


def open_vectors(path: Path) -> NDArray[Any]:
    """Map a ``.npy`` file of dense vectors, ``[n, dim]``; ``ArtefactError`` if it is no array of two dimensions."""
    mapped = open_array(path)
    if mapped.ndim != 2:
        raise ArtefactError(f"{path.name}: expected two dimensions, found {mapped.ndim}. {EXPORT_AGAIN}")
    return mapped


def token_vectors(bundle: Bundle) -> TokenVectors | None:
    """Map the vectors of the chunks' tokens; None if the bundle has none, ``ArtefactError`` if they cannot be read."""
    vectors, offsets = map(bundle.path, TOKEN_FILES)
    if not (vectors.is_file() or offsets.is_file()):
        return None
    return TokenVectors(open_vectors(vectors), open_array(offsets))


class DenseArrays:
    """The dense arrays of a bundle; each is mapped when a model is first asked for, or is None if it cannot be read."""

    def __init__(self, bundle: Bundle) -> None:
        self.by_model: dict[str, NDArray[Any] | None] = {}
        self.problems: list[str] = []
        self._bundle = bundle
        self._texts: dict[str, tuple[int, list[bytes]]] = {}

    def text_of(self, row: int, models: tuple[str, ...]) -> bytes:
        """Give the JSON object of a row's vectors, the primary model first; empty where an array lacks the row."""
        lists = []
        for number, model in enumerate(models):
            array = self.vectors(model, primary=number == 0)
            if array is None or array.dtype != np.float32 or row >= len(array) or not array.shape[1]:
                return b""
            start, texts = self._texts.get(model, (-1, []))
            if not start <= row < start + len(texts):
                start = row
                block = np.asarray(array[start : start + FLOAT_BLOCK], dtype=np.float64, order="C")
                texts = float_lists(block) if np.isfinite(block).all() else [b""] * len(block)
                self._texts[model] = start, texts
                drop_resident_pages(array)
            lists.append(b"%b: %b" % (compact(model).encode("utf-8", "surrogatepass"), texts[row - start]))
        return b"{%b}" % b", ".join(lists)

    def vectors(self, model: str, *, primary: bool) -> NDArray[Any] | None:
        """Give the array of a model; None if it cannot be read."""
        if model not in self.by_model:
            self.by_model[model] = None
            try:
                file = self._bundle.names.vectors(None if primary else model)
                self.by_model[model] = open_vectors(self._bundle.folder / file)
            except ArtefactError as error:
                self.problems.append(str(error))
        return self.by_model[model]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; ``ArtefactError`` if it holds anything else."""
    try:
        content = parse_object(path.read_bytes())
    except OSError:
        content = None
    if content is None:
        raise ArtefactError(f"{path.name}: expected a JSON object. {EXPORT_AGAIN}")
    return content
