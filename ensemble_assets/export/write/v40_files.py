"""Write the v4.0 files of a bundle, in one pass over the chunks, a slice of them in memory at a time.

With the sparse stage on, the same pass writes live vectors where v4.0 has its echo. Everything else stays as it is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.array_files import save_array, write_numbers
from ensemble_assets.artefacts.fast_json import compact
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.collection.legacy_metadata import ChunkRow, enrich
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.inputs import LIVE, METADATA, BundleInputs, own_metadata
from ensemble_assets.export.write.json_bytes import HERE, JsonList, float_rows, item_with
from ensemble_assets.export.write.names import PREVIEW_CHARACTERS, target_collection
from ensemble_assets.export.write.sparse_section import NO_VECTOR, sparse_vectors
from ensemble_assets.export.write.stats import SparseCounts, statistics

_BUFFER_BYTES = 1 << 20
_INDEX_HEADER = struct.Struct("<4siqqq?iQ")
_TEMPLATE = "upload_script.py.txt"
_PLACEHOLDER = re.compile("@([A-Z_]+)@")
_FOR_TOKENS = re.compile("@IF_TOKENS@\n(.*?)@END@\n", re.DOTALL)


@dataclass(frozen=True)
class Written:
    """The files of ``write_v40``, in the order of the contract's table, and the reason for each one left out."""

    files: tuple[str, ...]
    skipped: dict[str, str]
    sparse: SparseCounts


def write_v40(folder: Path, bundle: BundleInputs) -> Written:
    """Write all v4.0 files into ``folder``, which is taken to be empty and private to the caller.

    A ``ContractError`` names the array or the chunk row that does not fit, is no finite unit vector, or cannot be
    expressed in UTF-8 JSON.
    """
    bundle.require_aligned()
    names = bundle.names
    files = [names.vectors() if model is bundle.primary else names.vectors(model.slug) for model in bundle.dense]
    for name, model in zip(files, bundle.dense, strict=True):
        save_array(folder / name, model.vectors)
    counts = _write_records(folder, bundle)
    files += [names.file(content) for content in ("qdrant.jsonl", "metadata.json", "texts.json", "stats.json")]
    if counts.echoed + counts.available:
        files.append(names.file("sparse.jsonl"))
    else:
        (folder / names.file("sparse.jsonl")).unlink()
    stats = json.dumps(statistics(bundle, counts), indent=2, ensure_ascii=False)
    (folder / names.file("stats.json")).write_bytes(stats.encode())
    (folder / names.file("upload_script.py")).write_text(upload_script(bundle), encoding="utf-8", newline="\n")
    files.append(names.file("upload_script.py"))
    reason = why_no_flat_index()
    if reason is None:
        write_index(folder / names.file("index.faiss"), bundle.primary.vectors, bundle.index)
        files.append(names.file("index.faiss"))
    return Written(tuple(files), {names.file("index.faiss"): reason} if reason else {}, counts)


def why_no_flat_index() -> str | None:
    """Say why no faiss index is written; None when one is."""
    return None if importlib.util.find_spec("faiss") else "faiss is not installed (pip install faiss-cpu)"


INDEXES = {"fp16": "SQfp16", "int8": "SQ8", "hnsw": "HNSW32,Flat", "hnsw_int8": "HNSW32_SQ8"}
"""faiss's names of the inner-product indexes beside the flat one. 32 links of a graph's node are faiss's default."""


_SEARCH_DEPTH = 64
"""Nodes that a search of a graph keeps; the reader may set others. Of the ten nearest among 3,000 random vectors of 32
numbers it finds 92 % with faiss's own 16, and more than 99 % with these."""


def write_index(path: Path, vectors: NDArray[np.float32], kind: str) -> None:
    """Write the faiss file, ``flat`` or one of ``INDEXES``; the latter are made in memory as a whole."""
    if kind == "flat":
        write_flat_index(path, vectors)
        return
    import faiss

    rows = np.ascontiguousarray(vectors)
    index = faiss.index_factory(rows.shape[1], INDEXES[kind], faiss.METRIC_INNER_PRODUCT)
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = _SEARCH_DEPTH
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))
    drop_resident_pages(vectors)


def write_flat_index(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write the faiss file, an ``IndexFlatIP`` over ``[n, dim] float32``, a piece at a time.

    ``faiss.write_index`` needs the whole index in memory. The file is a fixed header and the vectors, so the header is
    taken from faiss itself and the vectors are streamed behind it. A faiss that lays such a file out in another way is
    a ``ContractError``; without faiss it is an ``ImportError``.
    """
    import faiss

    empty = bytes(faiss.serialize_index(faiss.IndexFlatIP(vectors.shape[1])))
    if len(empty) != _INDEX_HEADER.size:
        raise ContractError(
            f"faiss {faiss.__version__} writes a flat index in a layout that is not known here. "
            "Install faiss-cpu 1.8 to 1.15, or uninstall faiss to go without the index"
        )
    kind, width, _, unused, unused_too, trained, metric, _ = _INDEX_HEADER.unpack(empty)
    with path.open("wb") as file:
        file.write(_INDEX_HEADER.pack(kind, width, len(vectors), unused, unused_too, trained, metric, vectors.size))
        write_numbers(file, vectors)


def upload_script(bundle: BundleInputs) -> str:
    """Make the text of ``<prefix>_upload_script.py``. It holds names only: no path, address, secret or time."""
    template = resources.files("ensemble_assets.export.write").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    facts = {
        "COLLECTION": target_collection(bundle.facts.name, bundle.primary.slug),
        "POINTS_FILE": bundle.names.file("qdrant.jsonl"),
        "VECTORS": {model.slug: int(model.vectors.shape[1]) for model in bundle.dense},
        "TOKEN_WIDTH": bundle.tokens.vectors.shape[1] if bundle.tokens else 0,
        "TOKEN_FILES": list(bundle.token_arrays),
    }
    template = _FOR_TOKENS.sub(r"\1" if bundle.tokens else "", template)
    return _PLACEHOLDER.sub(lambda match: json.dumps(facts[match[1]], ensure_ascii=False), template)


class _Record(NamedTuple):
    """A chunk's part of every record file, and whether v4.0 gives the chunk a sparse vector."""

    point: bytes
    sparse: bytes
    metadata: bytes
    text: bytes
    echoed: bool


def _write_records(folder: Path, bundle: BundleInputs) -> SparseCounts:
    """Write the four record files; ``ContractError`` if the chunks are not exactly rows 0 to ``count`` - 1."""
    again = "Materialise the chunks and everything that is made of them again"
    vectors = [(compact(model.slug).encode(), float_rows(model.vectors, model.slug)) for model in bundle.dense]
    encoder = _Encoder(bundle)
    row, echoed = -1, 0
    with ExitStack() as stack:

        def opened(content: str) -> IO[bytes]:
            return stack.enter_context((folder / bundle.names.file(content)).open("wb", buffering=_BUFFER_BYTES))

        points, sparse = opened("qdrant.jsonl"), opened("sparse.jsonl")
        metadata, texts = JsonList(opened("metadata.json")), JsonList(opened("texts.json"))
        for row, chunk in enumerate(bundle.rows()):
            if chunk.row != row or row >= bundle.count:
                raise ContractError(
                    f"{bundle.collection}: expected chunk rows 0 to {bundle.count - 1} in order, found row {chunk.row} "
                    f"at position {row}. {again}"
                )
            record = encoder.encode(chunk, b", ".join([b"%b: %b" % (name, next(lists)) for name, lists in vectors]))
            points.write(record.point)
            sparse.write(record.sparse)
            metadata.add(record.metadata)
            texts.add(record.text)
            echoed += record.echoed
        metadata.end()
        texts.end()
    if row + 1 != bundle.count:
        raise ContractError(f"{bundle.collection}: expected {bundle.count} chunks, found {row + 1}. {again}")
    if bundle.sparse is None:
        return SparseCounts(bundle.count, echoed)
    sources = bundle.sparse.source[np.diff(bundle.sparse.indptr) > 0]
    live, mapped = (int(np.count_nonzero(sources == source)) for source in (LIVE, METADATA))
    return SparseCounts(bundle.count, echoed, live, mapped)


class _Encoder:
    """Turns one chunk after another into the lines and list items of the files."""

    def __init__(self, bundle: BundleInputs) -> None:
        self._facts = bundle.facts
        self._sparse_of = sparse_vectors(bundle.sparse)
        self._tail = _payload_tail(bundle)

    def encode(self, chunk: ChunkRow, dense: bytes) -> _Record:
        """Encode everything that files hold of a chunk; ``ContractError`` if UTF-8 JSON cannot express it."""
        try:
            enriched = enrich(own_metadata(chunk), chunk, self._facts)
            vector, metadata, text = self._sparse_of(chunk.row, enriched), enriched.metadata, chunk.text
            preview = {"text_preview": text[:PREVIEW_CHARACTERS], "full_text_length": len(text)}
            payload = {**metadata, **preview, **self._tail}
            overridden = [value for key, value in metadata.items() if payload[key] is not value]
            before, after = _around_vector(payload) if vector is not None else (compact(payload), "")
            if vector is not None:
                metadata["sparse_vector"] = HERE
            return _Record(
                point=b'{"id": %d, "payload": %b%b%b, "vectors": {%b}}\n'
                % (chunk.row, before.encode(), vector.text if vector else b"", after.encode(), dense),
                sparse=(vector or NO_VECTOR).record(chunk.row) + b"\n",
                metadata=item_with(metadata, before + after + compact(overridden), vector.item if vector else b""),
                text=compact(text).encode(),
                echoed=enriched.echo is not None,
            )
        except (ValueError, RecursionError) as error:
            kind = "lone surrogate" if isinstance(error, UnicodeEncodeError) else type(error).__name__
            raise ContractError(
                f"chunk row {chunk.row} ({chunk.source}): its metadata cannot be written as UTF-8 JSON ({kind}). "
                "Repair the chunk in its file"
            ) from None


def _payload_tail(bundle: BundleInputs) -> dict[str, Any]:
    """Make the payload keys after the chunk's own; they are equal for all chunks."""
    widths = {model.slug: int(model.vectors.shape[1]) for model in bundle.dense}
    primary, companions = bundle.primary, bundle.dense[1:]
    tail: dict[str, Any] = {
        "kaggle_export_timestamp": bundle.clock,
        "model_info": {
            "name": primary.slug,
            "hf_model_id": primary.hf_model_id,
            "dimension": widths[primary.slug],
            "version": "v4",
        },
        "primary_vector_name": primary.slug,
        "dense_vector_names": list(widths),
    }
    if companions:
        tail["model_info"]["companions"] = {
            model.slug: {"dimension": widths[model.slug], "hf_model_id": model.hf_model_id} for model in companions
        }
        tail["companion_vector_dimensions"] = {model.slug: widths[model.slug] for model in companions}
    return tail


def _around_vector(payload: dict[str, Any]) -> tuple[str, str]:
    """Encode the payload in two parts, before and after the value of ``sparse_vector``; a missing key goes last."""
    keys = list(payload)
    place = keys.index("sparse_vector") if "sparse_vector" in payload else len(keys)
    before = compact({key: payload[key] for key in keys[:place]})
    after = compact({key: payload[key] for key in keys[place + 1 :]})
    opening = f"{before[:-1]}, " if place else "{"
    return f'{opening}"sparse_vector": ', f", {after[1:]}" if place + 1 < len(keys) else "}"
