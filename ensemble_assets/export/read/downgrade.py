"""Takes a bundle back to v4.0: without what v4.1 adds, and with the metadata echo where live sparse vectors stand.

What comes out is, byte for byte, what the v4.0 writer makes of the same chunks and vectors; a check compares the two.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from ensemble_assets.collection.legacy_sparse_vector import sparse_echo
from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.write.json_bytes import JsonList, compact, indented
from ensemble_assets.export.write.names import BundleNames
from ensemble_assets.export.write.sparse_section import NO_VECTOR, vector_of

_ADDED_STATISTICS = {"sparse_vector_stats": ("live",)}
_VECTORS_KEY = ', "vectors": {'
_BLOCK = 1 << 18
_ITEM_BORDER = re.compile(rb",\n  (?! )")


def project_to_v40(bundle: Path, out: Path) -> None:
    """Write the v4.0 bundle that is in ``bundle`` to the folder ``out``, streaming.

    Files that v4.0 does not have are left out, other people's among them.

    Args:
        bundle: folder of a v4.0 or v4.1 bundle.
        out: folder to write; replaced whole.

    Raises:
        ArtefactError: if ``bundle`` holds no bundle or a file of it is not laid out as bundles are.
    """
    names = bundle_names(bundle)
    points, sparse = names.of("qdrant.jsonl"), names.of("sparse.jsonl")
    rewritten: dict[str, Callable[[Path, Path], None]] = {
        names.of("metadata.json"): _project_metadata,
        names.of("stats.json"): _project_statistics,
    }
    with atomic_folder(out, keep=lambda name: False) as folder:
        _project_points(bundle / points, folder / points, folder / sparse)
        for file in sorted(bundle.iterdir()):
            if names.is_v40(file.name) and file.name not in (points, sparse):
                rewritten.get(file.name, _copy)(file, folder / file.name)


def bundle_names(bundle: Path) -> BundleNames:
    """The file names in a bundle folder.

    Raises:
        ArtefactError: if there is not exactly one points file.
    """
    ending = "_qdrant.jsonl"
    found = sorted(file.name for file in bundle.glob(f"*{ending}")) if bundle.is_dir() else []
    if len(found) != 1:
        raise ArtefactError(
            f"{bundle.name}: expected a bundle folder with one *{ending}, found {len(found)}. "
            "Name the folder of a collection"
        )
    return BundleNames(found[0].removesuffix(ending))


def read_points(lines: IO[str], what: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Row, payload and the unparsed text of ``vectors`` of every point.

    Raises:
        ArtefactError: naming the line that is no point.
    """
    for number, line in enumerate(lines, start=1):
        cut = line.rfind(_VECTORS_KEY)  # inside a string the quotes would be escaped; after it there are only numbers
        try:
            head: Any = json.loads(line[:cut] + "}") if cut > 0 and line.endswith("}}\n") else None
            point = (head["id"], head["payload"], line[cut + len(_VECTORS_KEY) - 1 : -2])
        except (ValueError, KeyError, TypeError):
            raise ArtefactError(f"{what}, line {number}: is no point of a bundle. Export the bundle again") from None
        yield point


def read_list_items(file: IO[bytes], what: str) -> Iterator[bytes]:
    """The items of a JSON list that was written with indent 2, as they stand in the file, one at a time.

    Raises:
        ArtefactError: if the file is not laid out so.
    """
    opening, rest = file.read(4), b""
    if opening.rstrip() == b"[]" and not file.read().strip():
        return
    if opening == b"[\n  ":
        while block := file.read(_BLOCK):
            *whole, rest = _split_items(rest + block)
            yield from whole
    rest = rest.rstrip()
    if not rest.endswith(b"\n]"):
        raise ArtefactError(f"{what}: is no JSON list with indent 2. Export the bundle again")
    yield from _split_items(rest[:-2], complete=True)


def _split_items(text: bytes, *, complete: bool = False) -> list[bytes]:
    """The items in ``text``, which begins with one; unless ``complete`` is set, the last may go on.

    Items begin two blanks in, what is inside them further in; strings hold no line end. Objects are told apart by a
    plain search, because a bundle has gigabytes of them.
    """
    if text[:1] != b"{":
        return _ITEM_BORDER.split(text)
    first, *others = text.split(b",\n  {")
    parts = [first, *(b"{" + part for part in others)]
    if all(part.find(b"\n  }") == len(part) - 4 for part in parts[: None if complete else -1]):
        return parts
    return _ITEM_BORDER.split(text)  # empty objects, or items of other types between


def restore_echo(metadata: dict[str, Any]) -> dict[str, Any]:
    """``metadata`` (or a payload) with the v4.0 echo in place of a live ``sparse_vector``, or without the key.

    A live vector is known by the keys that v4.1 adds to its ``stats``; anything else stays as it is.
    """
    vector = metadata.get("sparse_vector")
    stats = vector.get("stats") if isinstance(vector, dict) else None
    if not isinstance(stats, dict) or "index_space" not in stats:
        return metadata
    echo = sparse_echo(metadata.get("sparse_features"))
    if echo is None:
        del metadata["sparse_vector"]
    else:
        metadata["sparse_vector"] = echo.as_json()
    return metadata


def _project_points(source: Path, target: Path, sparse: Path) -> None:
    available = False
    with ExitStack() as stack:
        lines = stack.enter_context(source.open(encoding="utf-8", newline="\n"))
        points = stack.enter_context(target.open("w", encoding="utf-8", newline="\n"))
        records = stack.enter_context(sparse.open("w", encoding="utf-8", newline="\n"))
        for row, payload, vectors in read_points(lines, source.name):
            echo = restore_echo(payload).get("sparse_vector")
            available = available or echo is not None
            points.write(f'{{"id": {row}, "payload": {compact(payload)}, "vectors": {vectors}}}\n')
            records.write((vector_of(echo) if echo else NO_VECTOR).record(row) + "\n")
    if not available:
        sparse.unlink()


def _project_metadata(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as out:
        items = JsonList(out)
        for item in read_list_items(file, source.name):
            metadata = restore_echo(json.loads(item))
            items.add(indented(metadata, compact(metadata)).replace(b"\n", b"\n  "))
        items.end()


def _project_statistics(source: Path, target: Path) -> None:
    statistics = json.loads(source.read_text(encoding="utf-8"))
    for section, added in _ADDED_STATISTICS.items():
        for key in added:
            statistics.get(section, {}).pop(key, None)
    target.write_bytes(indented(statistics, compact(statistics)))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
