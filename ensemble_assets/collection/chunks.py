"""Read a collection's chunks into the ``CHUNKS`` frame: prepared texts, unique ids, hashes, and a report.

Rows are gathered column-wise in slices, so that a million chunks are never a million Python objects.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.collection.chunk_text import prepare_text
from ensemble_assets.collection.languages import UNSPACED
from ensemble_assets.collection.readers.chunk_ids import MAX_ID_CHARACTERS, own_id, place_id, plain_id, with_unique_ids
from ensemble_assets.collection.readers.file_text import too_large
from ensemble_assets.collection.readers.formats import InputFormat, chunk_files_in
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.json_values import encode_object, given_number, replace_surrogates
from ensemble_assets.collection.readers.read_report import RawRecord, ReadReport, Tally, record_place, usable_text
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import CHUNKS, conform

_SLICE_ROWS = 8192
"""Rows that are Python objects at one time: a few tens of MB with long texts."""

_MOST_NAMED = 20
"""Broken files that an error names; a page holds as many."""

_MOST_SEARCHED = 1_000_000
"""Characters of a chunk's text that are searched: tokenizers take minutes for tens of millions without a blank, and no
model reads as many."""

_MAX_COUNT = 2**32 - 1
"""Largest token count: the column is UInt32."""

_TOKEN = rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"  # a pattern, not a secret
"""A word, one punctuation mark, or one character of a script without blanks, as tokenizers cut it."""

LEGACY_MIN_TOKENS = 50
"""The threshold of version 4.0. It comes with version 4.0's rules for chunk files without a usable count."""

_OF_BUILDER = {"given": pl.Boolean(), "judged_count": pl.UInt32()}
"""Columns beside the frame's: whether the id must be unique, and the count for ``min_tokens`` if it is another one."""

_SCHEMA = {name: dtype for name, dtype in CHUNKS.items() if name != "row"} | _OF_BUILDER


def read_chunks(
    folder: Path,
    max_tokens: int,
    min_tokens: int = 0,
    *,
    keep_rest: bool = True,
    format_name: str | None = None,
    follow_links: bool = False,
    skip_broken: bool = False,
    limits: ReadLimits | None = None,
) -> tuple[pl.DataFrame, ReadReport]:
    """Read a collection's folder into the ``CHUNKS`` frame.

    Args:
        folder: ``<chunked-dir>/<collection>``.
        max_tokens: length limit of the primary dense model. Texts of more than four times as many characters are cut.
        min_tokens: chunks with fewer tokens are skipped and counted. 50 brings version 4.0's rules, see docs/bundle.md.
        keep_rest: whether column ``rest`` has the part that is cut off.
        format_name: read only this format (``readers.formats.FORMATS``); None reads the folder's only format.
        follow_links: also read the targets of links that lead out of the folder.
        skip_broken: leave out and count files that cannot be used, instead of naming them all in an error.
        limits: sizes above which a record or file is an error.

    Raises:
        InputError: for input that cannot be used, and if no usable chunk is left.
    """
    tally = Tally()
    limits = limits or ReadLimits()
    chosen, files = chunk_files_in(folder, tally, format_name=format_name, follow_links=follow_links)
    builder = _Builder(max_tokens, min_tokens, tally, limits, keep_rest)
    errors = [error for file in files if (error := _add_file(builder, chosen, file, limits, skip_broken=skip_broken))]
    if errors and not skip_broken:
        raise errors[0] if len(errors) == 1 else _all_of(folder.name, errors)
    frame, report = builder.finish()
    if frame.is_empty():
        reasons = "; ".join(report.warnings()) or "the files hold no records"
        raise InputError(
            folder.name,
            f"has no usable chunk in {report.files} file(s) with {report.records} record(s) ({reasons})",
            "Add chunks, or leave the collection out",
        )
    return frame, report


def _add_file(
    builder: _Builder, chosen: InputFormat, file: InputFile, limits: ReadLimits, *, skip_broken: bool
) -> InputError | None:
    """Add the records of a file, one at a time in memory; return the error that makes the file unusable.

    With ``skip_broken`` nothing of such a file stays.
    """
    before = builder.mark() if skip_broken else None
    try:
        builder.tally.files += 1
        for record in chosen.read(file, limits, builder.tally):
            builder.add(record)
    except InputError as error:
        if before is not None:
            builder.go_back(before)
            builder.tally.note("unusable_file", file.source)
        return error
    return None


def _all_of(folder: str, errors: Sequence[InputError]) -> InputError:
    named = "; ".join(f"{error.where}: {error.problem}" for error in errors[:_MOST_NAMED])
    more = f"; and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
    return InputError(
        folder,
        f"has {len(errors)} files that cannot be used: {named}{more}",
        "Repair or remove them, or set chunks.on_error to skip",
    )


def _empty_columns() -> dict[str, list[Any]]:
    return {name: [] for name in _SCHEMA}


@dataclass
class _Builder:
    """Columns of the current slice, and the finished slices."""

    max_tokens: int
    min_tokens: int
    tally: Tally
    limits: ReadLimits
    keep_rest: bool
    columns: dict[str, list[Any]] = field(default_factory=_empty_columns)
    slices: list[pl.DataFrame] = field(default_factory=list)

    def add(self, record: RawRecord) -> None:
        self.tally.records += 1
        source, position = record.source, record.position
        raw = usable_text(record.text, self.tally, source, position)
        if not raw.strip():
            self.tally.note("empty_text", source, position)
            return
        if self.limits.prepend_headings:
            raw = usable_text(_with_headings(raw, record.metadata), self.tally, source, position)
        prepared = prepare_text(raw, self.max_tokens)
        metadata = self._metadata(record)
        if len(raw.encode()) + len(metadata.encode()) > self.limits.record_bytes:
            raise too_large(record_place(source, position), self.limits)
        self.tally.note("rest_cut", source, position, int(self.keep_rest and len(prepared.rest) > _MOST_SEARCHED))
        row = {
            "chunk_id": self._chunk_id(record),
            "text": prepared.text,
            "rest": prepared.rest[:_MOST_SEARCHED] if self.keep_rest else "",
            "metadata": metadata,
            "heading": " ".join(replace_surrogates(heading_of(record.metadata))[0].replace("\0", " ").split()) or None,
            "source": source,
            "position": position,
            "original_length": prepared.original_length,
            "token_count": self._token_count(record),
            "text_sha1": prepared.sha1,
            "modal_hint": prepared.modal_hint,
            "content_hash": hashlib.blake2b(prepared.text.encode(), digest_size=16).hexdigest(),
            "cut": prepared.cut,
            "given": record.given_id is not None,
            "judged_count": self._judged_count(record),
        }
        for name, value in row.items():
            self.columns[name].append(value)
        if len(self.columns["text"]) >= _SLICE_ROWS:
            self._close_slice()

    def mark(self) -> tuple[int, Tally]:
        """Return a mark, to forget all later records with ``go_back``."""
        self._close_slice()
        return len(self.slices), copy.deepcopy(self.tally)

    def go_back(self, mark: tuple[int, Tally]) -> None:
        """Forget all records that were added after the mark."""
        self.columns = _empty_columns()
        del self.slices[mark[0] :]
        vars(self.tally).update(vars(mark[1]))

    def finish(self) -> tuple[pl.DataFrame, ReadReport]:
        self._close_slice()
        frame = with_unique_ids(pl.concat(self.slices), self.tally, refuse=self.limits.refuse_repeated_ids)
        for source, position in frame.filter("cut").select("source", "position").iter_rows():
            self.tally.note("text_cut", source, position)
        frame = frame.drop(*_OF_BUILDER).with_row_index("row")
        return conform(frame, CHUNKS, "chunks"), self.tally.report(frame.height)

    def _close_slice(self) -> None:
        part = pl.DataFrame(self.columns, schema=_SCHEMA)
        self.columns = _empty_columns()
        part = part.with_columns(pl.col("token_count").fill_null(estimated_tokens(pl.col("text"))))
        few = pl.coalesce("judged_count", "token_count") < self.min_tokens
        for source, position in part.filter(few).select("source", "position").iter_rows():
            self.tally.note("below_min_tokens", source, position)
        self.slices.append(part.filter(~few))

    def _metadata(self, record: RawRecord) -> str:
        text, changes = encode_object(record.metadata, record_place(record.source, record.position))
        for code, times in changes.items():
            self.tally.note(code, record.source, record.position, times)
        return text

    def _chunk_id(self, record: RawRecord) -> str:
        source, position = record.source, record.position
        given = record.given_id
        if given is None:
            given = own_id(record.metadata)
            if given is None and record.metadata.get("chunk_id") is not None:
                self.tally.note("unusable_chunk_id", source, position)
        elif len(given) > MAX_ID_CHARACTERS:
            problem = f"has an id of more than {MAX_ID_CHARACTERS} characters"
            raise InputError(record_place(source, position), problem, "Shorten it")
        given = given or record.row_id
        if given is None or (record.given_id is None and len(given) > MAX_ID_CHARACTERS):
            return plain_id(place_id(source, position))
        chunk_id = plain_id(given)
        self.tally.note("id_changed", source, position, int(chunk_id != given))
        return chunk_id

    def _token_count(self, record: RawRecord) -> int | None:
        given = record.metadata.get("token_count")
        number = None if isinstance(given, bool) else given_number(given)
        if number is not None and math.isfinite(number) and number >= 0:
            return int(min(number, _MAX_COUNT))
        if given is not None:
            self.tally.note("unusable_token_count", record.source, record.position)
        return None

    def _judged_count(self, record: RawRecord) -> int | None:
        """Give the count that version 4.0 compared: 0 for a missing one, and None for a value that is no number."""
        if self.min_tokens != LEGACY_MIN_TOKENS or record.given_id is not None:
            return None
        if "token_count" not in record.metadata:
            return 0
        number = given_number(record.metadata["token_count"])
        return _MAX_COUNT if number is None or not number < self.min_tokens else 0


def _with_headings(text: str, metadata: Mapping[str, Any]) -> str:
    """Put the headings of a chunk before its text; its own is left out where the text begins with it as a line."""
    path = hierarchy_of(metadata)
    if path:
        begins = text.strip().partition("\n")[0].strip("# \t\r") == path[-1]
        path = path[:-1] if begins else path
    elif (heading := heading_of(metadata).strip()) and not text.startswith(heading):  # readers put titles there too
        path = [heading]
    return "\n\n".join([" > ".join(path), text] if path else [text])


def heading_of(metadata: Mapping[str, Any]) -> str:
    """Return ``heading_text``, ``heading`` or ``title`` of a chunk's metadata, else the last part of its section path.

    Empty if there is none.
    """
    for key in ("heading_text", "heading", "title"):
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            return value
    path = hierarchy_of(metadata)
    return path[-1] if path else ""


def hierarchy_of(metadata: Mapping[str, Any]) -> list[str]:
    """Return the headings above a chunk and its own, outermost first, from ``section_path`` or ``hierarchy_path``."""
    path = metadata.get("section_path") or metadata.get("hierarchy_path")
    if isinstance(path, str):
        path = path.split(" > ")
    if not isinstance(path, list):
        return []
    return [part.strip() for part in path if isinstance(part, str) and part.strip()]


def estimated_tokens(text: pl.Expr) -> pl.Expr:
    """Estimate the token count of a text by its words and punctuation marks, for chunks without a count.

    On the project's reference collection of 738 technical chunks, the chunker's own counts are 0.95 times this estimate
    in the median (0.75 to 1.13 between the 5th and 95th percentile).
    """
    return text.str.count_matches(_TOKEN).cast(pl.UInt32)
