"""Writes the v4.0 files of a bundle, in one pass over the chunks, holding a slice of them at a time.

With the sparse stage on the same pass writes live vectors where v4.0 has its echo; everything else stays as it is. How
values become text is ``encode``; the manifest and the files that v4.1 adds are other modules.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.collection.legacy_metadata import ChunkRow, Enriched, enrich
from ensemble_assets.common.errors import ContractError
from ensemble_assets.common.mapped_pages import drop_resident_pages
from ensemble_assets.export.write.faiss_file import write_flat_index
from ensemble_assets.export.write.inputs import LIVE, METADATA, BundleInputs, DenseModel, own_metadata
from ensemble_assets.export.write.json_bytes import JsonList, compact, float_rows, indented
from ensemble_assets.export.write.names import PREVIEW_CHARACTERS
from ensemble_assets.export.write.sparse_section import NO_VECTOR, SparseOf, SparseVector, sparse_vectors
from ensemble_assets.export.write.stats import SparseCounts, statistics
from ensemble_assets.export.write.upload_script import upload_script

_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: names, in the order of the contract's table.
        skipped: files left out, with the reason.
        sparse: how many chunks have which kind of sparse vector.
    """

    files: tuple[str, ...]
    skipped: dict[str, str]
    sparse: SparseCounts


def write_v40(folder: Path, bundle: BundleInputs) -> Written:
    """Write all v4.0 files into ``folder``, which is taken to be empty and private to the caller.

    Raises:
        ContractError: if arrays and chunks do not fit together, a vector is not a finite unit vector, or a chunk's
            metadata cannot be expressed in UTF-8 JSON; names the array or the chunk row.
    """
    bundle.require_aligned()
    names = bundle.names
    files = [names.vectors() if model is bundle.primary else names.vectors(model.slug) for model in bundle.dense]
    for name, model in zip(files, bundle.dense, strict=True):
        write_array(folder / name, model.vectors)
    counts = _write_records(folder, bundle)
    files += [
        names.file("qdrant.jsonl"),
        names.file("metadata.json"),
        names.file("texts.json"),
        names.file("stats.json"),
    ]
    if counts.has_file:
        files.append(names.file("sparse.jsonl"))
    else:
        (folder / names.file("sparse.jsonl")).unlink()
    (folder / names.file("stats.json")).write_bytes(statistics_text(bundle, counts))
    (folder / names.file("upload_script.py")).write_text(upload_script(bundle), encoding="utf-8", newline="\n")
    files.append(names.file("upload_script.py"))
    reason = why_no_flat_index(bundle.flat_index)
    if reason is None:
        write_flat_index(folder / names.file("index.faiss"), bundle.primary.vectors)
        files.append(names.file("index.faiss"))
    return Written(tuple(files), {names.file("index.faiss"): reason} if reason else {}, counts)


def why_no_flat_index(wanted: bool) -> str | None:
    """Why no faiss index is written; None when one is."""
    if not wanted:
        return "switched off"
    return None if importlib.util.find_spec("faiss") else "faiss is not installed (pip install faiss-cpu)"


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write ``array`` as ``np.save`` does, a piece at a time, so that a mapped one does not fill the memory."""
    with path.open("wb") as file:
        for part in array_parts(array):
            file.write(part)


def array_parts(array: NDArray[Any]) -> Iterator[bytes | memoryview]:
    """The bytes that ``np.save`` writes of ``array``; a piece is gone when the next one is asked for."""
    rows = max(1, _COPY_BYTES // max(1, array.itemsize * int(np.prod(array.shape[1:]))))
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, facts)
    yield header.getvalue()
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data
        drop_resident_pages(array)


class _Record(NamedTuple):
    point: bytes
    sparse: bytes
    metadata: bytes
    text: bytes
    echoed: bool
    vector: SparseVector | None


def _write_records(folder: Path, bundle: BundleInputs) -> SparseCounts:
    names = bundle.names
    counts = SparseCounts(total=bundle.count)
    with ExitStack() as stack:

        def opened(content: str) -> IO[bytes]:
            return stack.enter_context((folder / names.file(content)).open("wb", buffering=_BUFFER_BYTES))

        points, sparse = opened("qdrant.jsonl"), opened("sparse.jsonl")
        metadata, texts = JsonList(opened("metadata.json")), JsonList(opened("texts.json"))
        for row, record in enumerate(_records(bundle)):
            points.write(record.point)
            sparse.write(record.sparse)
            metadata.add(record.metadata)
            texts.add(record.text)
            source = int(bundle.sparse.source[row]) if bundle.sparse and record.vector and record.vector.present else 0
            counts = counts.plus(echoed=record.echoed, live=source == LIVE, from_metadata=source == METADATA)
        metadata.end()
        texts.end()
    return counts


def _records(bundle: BundleInputs) -> Iterator[_Record]:
    """Every chunk's part of every file, in row order.

    Raises:
        ContractError: if the chunks are not exactly rows 0 to ``count`` - 1.
    """
    vectors = [(compact(model.slug), float_rows(model.vectors, model.slug)) for model in bundle.dense]
    encoder = _Encoder(bundle)
    row = -1
    for row, chunk in enumerate(bundle.rows()):
        if chunk.row != row or row >= bundle.count:
            raise ContractError(
                f"{bundle.collection}: expected chunk rows 0 to {bundle.count - 1} in order, found row {chunk.row} at "
                f"position {row}. Materialise the chunks and everything that is made of them again"
            )
        dense = ", ".join(f"{name}: {next(lists)}" for name, lists in vectors)
        yield encoder.record(chunk, dense)
    if row + 1 != bundle.count:
        raise ContractError(
            f"{bundle.collection}: expected {bundle.count} chunks, found {row + 1}. "
            "Materialise the chunks and everything that is made of them again"
        )


class _Encoder:
    """Turns one chunk after another into the lines and list items of the files."""

    def __init__(self, bundle: BundleInputs) -> None:
        self._facts = bundle.facts
        self._sparse_of: SparseOf = sparse_vectors(bundle.sparse)
        self._tail = payload_tail(bundle)

    def record(self, chunk: ChunkRow, dense: str) -> _Record:
        """All there is to write of a chunk.

        Raises:
            ContractError: if it cannot be expressed in UTF-8 JSON.
        """
        try:
            enriched = enrich(own_metadata(chunk), chunk, self._facts)
            return self._encoded(chunk, enriched, self._sparse_of(chunk.row, enriched), dense)
        except (ValueError, RecursionError) as error:
            kind = "lone surrogate" if isinstance(error, UnicodeEncodeError) else type(error).__name__
            raise ContractError(
                f"chunk row {chunk.row} ({chunk.source}): its metadata cannot be written as UTF-8 JSON ({kind}). "
                "Repair the chunk in its file"
            ) from None

    def _encoded(self, chunk: ChunkRow, enriched: Enriched, vector: SparseVector | None, dense: str) -> _Record:
        metadata, text = enriched.metadata, chunk.text
        payload = payload_of(metadata, text, self._tail)
        overridden = [value for key, value in metadata.items() if payload[key] is not value]
        encoded = _with_vector(payload, vector)
        if vector is not None:
            metadata["sparse_vector"] = vector.plain
        return _Record(
            point=f'{{"id": {chunk.row}, "payload": {encoded}, "vectors": {{{dense}}}}}\n'.encode(),
            sparse=f"{(vector or NO_VECTOR).record(chunk.row)}\n".encode(),
            metadata=indented(metadata, encoded + compact(overridden)).replace(b"\n", b"\n  "),
            text=compact(text).encode(),
            echoed=enriched.echo is not None,
            vector=vector,
        )


def payload_of(metadata: dict[str, Any], text: str, tail: Mapping[str, Any]) -> dict[str, Any]:
    """A point's payload, its sparse vector aside: the chunk's metadata, then the point's keys; a later key wins.

    Args:
        metadata: after enrichment.
        text: as embedded.
        tail: of ``payload_tail``.
    """
    return {**metadata, "text_preview": text[:PREVIEW_CHARACTERS], "full_text_length": len(text), **tail}


def payload_tail(bundle: BundleInputs) -> dict[str, Any]:
    """The payload keys after the chunk's own that are the same for every chunk."""
    primary, companions = bundle.primary, bundle.dense[1:]
    model_info: dict[str, Any] = {
        "name": primary.slug,
        "hf_model_id": primary.hf_model_id,
        "dimension": _width(primary),
        "version": "v4",
    }
    tail: dict[str, Any] = {
        "kaggle_export_timestamp": bundle.clock,
        "model_info": model_info,
        "primary_vector_name": primary.slug,
        "dense_vector_names": [model.slug for model in bundle.dense],
    }
    if companions:
        model_info["companions"] = {
            model.slug: {"dimension": _width(model), "hf_model_id": model.hf_model_id} for model in companions
        }
        tail["companion_vector_dimensions"] = {model.slug: _width(model) for model in companions}
    return tail


def _width(model: DenseModel) -> int:
    return int(model.vectors.shape[1])


def _with_vector(payload: dict[str, Any], vector: SparseVector | None) -> str:
    """The payload as JSON with ``sparse_vector`` set: where the key stands, else last."""
    if vector is None:
        return compact(payload)
    before, after = around_vector(payload)
    return f"{before}{vector.text}{after}"


def around_vector(payload: dict[str, Any]) -> tuple[str, str]:
    """The payload as JSON up to the value of ``sparse_vector``, and from there on: where the key stands, else last."""
    before, after = split_at_vector(payload)
    opening = f"{compact(before)[:-1]}, " if before else "{"
    return f'{opening}"sparse_vector": ', f", {compact(after)[1:]}" if after else "}"


def split_at_vector(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands before the key ``sparse_vector`` and what after it."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    side = before
    for key, item in value.items():
        if key == "sparse_vector":
            side = after
        else:
            side[key] = item
    return before, after


def statistics_text(bundle: BundleInputs, counts: SparseCounts) -> bytes:
    """The text of ``<prefix>_stats.json``."""
    return json.dumps(statistics(bundle, counts), indent=2, ensure_ascii=False).encode()
