"""Load the queries of a collection and their judgements: from files, or derived from the chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from ensemble_assets.collection.derived_queries import derive_probes
from ensemble_assets.collection.qrels import fit_qrels, read_qrels, same_ids
from ensemble_assets.collection.query_privacy import public_ids, query_hash
from ensemble_assets.collection.readers.chunk_ids import as_id
from ensemble_assets.collection.readers.file_text import read_lines
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.json_values import replace_surrogates, typed_value
from ensemble_assets.collection.readers.layouts import Role
from ensemble_assets.collection.readers.query_files import ChosenFiles, choose_files, given_file
from ensemble_assets.collection.readers.read_report import ReadReport, Tally, usable_text
from ensemble_assets.collection.readers.table_rows import (
    LINES,
    ending_of,
    line_fields,
    object_rows,
    places_of,
    unquoted,
    value_of,
)
from ensemble_assets.common.defaults import DERIVED_QUERIES
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import QRELS, QUERIES, conform

QuerySource = Literal["file", "derived"]

_NAMES = {
    "id": ("query_id", "_id", "id", "qid", "q_id", "queryid", "topic", "topic_id", "number", "query_number"),
    "text": ("text", "query", "question", "title", "query_text", "querytext"),
}
"""Columns of a table of queries, case and ``-`` for ``_`` aside; the first that is there counts."""

_LIMITS = ReadLimits(record_bytes=1_000_000, remedy="A query has at most a megabyte")


@dataclass(frozen=True)
class QuerySet:
    """The queries of a collection and their judgements.

    Attributes:
        queries: ``QUERIES`` frame, in file order (probes: in chunk order).
        qrels: ``QRELS`` frame; without rows if there are no judgements.
        source: whether the queries were read or derived (manifest: ``query_source``).
        judged: whether the judgements come from a file. Derived probes have pseudo-judgements.
    """

    queries: pl.DataFrame
    qrels: pl.DataFrame
    source: QuerySource
    judged: bool
    report: ReadReport
    qrels_report: ReadReport | None
    files: tuple[str, ...] = ()


def load_queries(  # noqa: PLR0913 - one per option
    folder: Path,
    chunks: pl.DataFrame,
    key: bytes,
    *,
    queries_file: Path | None = None,
    qrels_file: Path | None = None,
    judged_only: bool = True,
    derived_limit: int = DERIVED_QUERIES,
    ids_are_public: bool = False,
    split: str = "",
) -> QuerySet:
    """Load the queries and judgements of one collection, whose ``CHUNKS`` frame is ``chunks``.

    Without ``queries_file``, those in ``folder`` are read, and the judgements of ``split`` with them
    (``readers.query_files.choose_files``). With ``queries_file``, only the given ``qrels_file`` is read. Without
    any queries, at most ``derived_limit`` probes are derived from the chunks.

    With ``judged_only``, queries without a judgement are counted and left out, if there are judgements: BEIR's
    ``queries.jsonl`` has the queries of all splits. With ``ids_are_public`` the operator vouches that query ids are not
    personal (``query_privacy.public_id``).

    Raises:
        InputError: for files that cannot be used, ambiguous names, and if no query is left.
    """
    asked = given_file(queries_file) if queries_file else choose_files(folder, Role.QUERIES, split)
    judged = ChosenFiles()
    if qrels_file is not None:
        judged = given_file(qrels_file)
    elif queries_file is None and asked.chosen:
        judged = choose_files(folder, Role.JUDGEMENTS, split)
    if not asked.chosen:
        if judged.chosen:
            problem = "judges queries, but there is no queries file"
            raise InputError(judged.name, problem, "Give the queries file too, or leave the qrels out")
        return _derived(chunks, key, derived_limit)
    tally, qrels_tally = Tally(), Tally()
    for place in (*asked.others, *judged.others):
        tally.note("split_not_read", place)
    given = read_queries(asked.chosen[0], tally, *asked.chosen[1:])
    if not judged.chosen:
        queries = _with_privacy(given, key, asked.name, ids_are_public)
        return QuerySet(queries, QRELS_EMPTY, "file", False, tally.report(queries.height), None, (asked.name,))
    judgements = read_qrels(judged.chosen[0], qrels_tally, *judged.chosen[1:])
    judgements = same_ids(judgements, given["query_id"], chunks["chunk_id"], judged.name, qrels_tally)
    if judged_only:
        given = _judged(given, judgements, asked.name, judged.name, tally)
    queries = _with_privacy(given, key, asked.name, ids_are_public)
    qrels = fit_qrels(judgements, queries, chunks, judged.name, qrels_tally)
    documents = int(queries["query_id"].is_in(chunks["chunk_id"].implode()).sum())
    tally.note("query_is_document", asked.name, times=documents)
    reports = tally.report(queries.height), qrels_tally.report(qrels.height)
    return QuerySet(queries, qrels, "file", True, *reports, (asked.name, judged.name))


QRELS_EMPTY = pl.DataFrame(schema=dict(QRELS))


def _judged(
    queries: pl.DataFrame, judgements: pl.DataFrame, source: str, qrels_source: str, tally: Tally
) -> pl.DataFrame:
    judged = queries["query_id"].is_in(judgements["query_id"].unique().to_list())
    for line in queries.filter(~judged)["line"]:
        tally.note("unjudged_query", source, line)
    if not judged.any():
        raise InputError(
            qrels_source,
            f"judges none of the {queries.height} queries in {source}",
            "Check that both belong together, or set queries.judged_only to false",
        )
    return queries.filter(judged)


def _derived(chunks: pl.DataFrame, key: bytes, limit: int) -> QuerySet:
    probes = derive_probes(chunks, limit)
    queries = probes.select(
        "query_id",
        "text",
        pl.col("query_id").alias("public_id"),  # made from a hash of the chunk id, so it holds no text
        pl.Series("query_hash", [query_hash(key, text) for text in probes["text"]], dtype=pl.String),
    )
    qrels = probes.select(pl.col("query_id").alias("public_id"), "chunk_id", pl.lit(1, pl.Int32()).alias("relevance"))
    report = ReadReport(records=queries.height, rows=queries.height)
    return QuerySet(
        conform(queries, QUERIES, "queries"), conform(qrels, QRELS, "qrels"), "derived", False, report, None
    )


def read_queries(file: InputFile, tally: Tally, *more: InputFile) -> pl.DataFrame:
    """Read queries files, shards of one table, into the columns ``query_id`` (unique), ``text`` and ``line`` (0-based).

    Read are JSONL, Parquet and CSV with named columns, and TSV with an id, a tab and a text, with or without a header.
    Surrounding blanks are dropped. Lone surrogates and NUL are replaced and counted. Blank queries and repeated
    identical lines are skipped and counted.

    Raises:
        InputError: for a line that cannot be read, another suffix, and one id with two texts; names file and line.
    """
    seen: dict[str, tuple[str, int]] = {}
    for each in (file, *more):
        tally.files += 1
        for query_id, raw, number in _rows(each, tally):
            tally.records += 1
            text = usable_text(raw, tally, each.source, number).strip()
            if not text:
                tally.note("empty_text", each.source, number)
                continue
            earlier = seen.setdefault(query_id, (text, number))
            if earlier[0] != text:
                raise InputError(
                    f"{each.source}, line {number + 1}",
                    f"has the same id as line {earlier[1] + 1}, with another text",
                    "Give one of them another id",
                )
            if earlier[1] != number:
                tally.note("duplicate_record", each.source, number)
    rows = [(query_id, text, number) for query_id, (text, number) in seen.items()]
    frame = pl.DataFrame(rows, schema={"query_id": pl.String(), "text": pl.String(), "line": pl.UInt32()}, orient="row")
    if frame.is_empty():
        raise InputError(file.source, "holds no query", "Add queries, or remove the file to have probes derived")
    return frame


def _rows(file: InputFile, tally: Tally) -> Iterator[tuple[str, str, int]]:
    """Yield id, text and 0-based line."""
    ending = ending_of(file)
    if ending not in LINES:
        for row, number in object_rows(file, _LIMITS, tally):
            yield _named_row(row, f"{file.source}, line {number + 1}", number)
    elif ending == ".csv":
        header: list[str] = []
        for fields, number in line_fields(file, _LIMITS, 2):
            where = f"{file.source}, line {number + 1}"
            if not header and _is_header(fields):
                header = fields if "text" in places_of(fields, _NAMES) else ["id", "text"]
                continue
            if not header and len(fields) != 2:
                raise InputError(where, "is not an id, a comma and a text", "Name the columns in the first line")
            header = header or ["id", "text"]
            if any(fields[len(header) :]):
                problem = f"has {len(fields)} fields where {len(header)} are expected"
                raise InputError(where, problem, "Put a text that holds the separator in quotes")
            yield _named_row(dict(zip(header, fields, strict=False)), where, number)
    else:
        yield from _tsv(file)


def _named_row(row: Mapping[str, Any], where: str, number: int) -> tuple[str, str, int]:
    query_id, text = as_id(value_of(row, _NAMES["id"])), value_of(row, _NAMES["text"])
    if not isinstance(query_id, str) or not query_id.strip():
        raise InputError(where, "has no usable id", "Give it a 'query_id' or '_id' that is text or a number")
    if text is None and not any(name in row for name in _NAMES["text"]):
        raise InputError(where, f"has no 'text' (it has {', '.join(map(repr, row))})", "Give every query a 'text'")
    return replace_surrogates(query_id.strip())[0], typed_value(as_id(text), str, "text", where), number


def _is_header(fields: list[str]) -> bool:
    """Tell whether a file's first line names the columns: id and text, or an id before a text of any name."""
    places = places_of(fields, _NAMES)
    return len(places) == len(_NAMES) or (len(fields) == 2 and places.get("id") == 0)


def _tsv(file: InputFile) -> Iterator[tuple[str, str, int]]:
    """Yield the id and all that follows, or the columns that the first line calls so."""
    at, text, most = 0, slice(1, None), 0  # most fields of a line where its text is not the last; 0: no limit
    for place, (number, line) in enumerate(read_lines(file, _LIMITS)):
        fields = unquoted([field.strip() for field in line.split("\t")])
        if not place and _is_header(fields):
            places = places_of(fields, _NAMES)
            at, first = places["id"], places.get("text", 1)
            last = first == len(fields) - 1  # then a text may have tabs in it
            text, most = slice(first, None if last else first + 1), 0 if last else len(fields)
            continue
        if most and any(fields[most:]):
            problem = f"has {len(fields)} fields where {most} are expected"
            raise InputError(f"{file.source}, line {number + 1}", problem, "Take the tabs out of the text")
        if not fields[at : at + 1] or not fields[at] or len(fields) == 1:
            raise InputError(f"{file.source}, line {number + 1}", "is not an id, a tab and a text", "Correct the line")
        yield fields[at], "\t".join(fields[text]), number


def _with_privacy(queries: pl.DataFrame, key: bytes, source: str, ids_are_public: bool) -> pl.DataFrame:
    pairs = list(zip(queries["query_id"], queries["text"], strict=True))
    try:
        shown = public_ids(key, pairs, ids_are_public=ids_are_public)
    except InputError as error:
        raise InputError(f"{source}, {error.where}", error.problem, error.remedy) from None
    return queries.with_columns(
        pl.Series("public_id", shown, dtype=pl.String),
        pl.Series("query_hash", [query_hash(key, text) for _, text in pairs], dtype=pl.String),
    ).pipe(conform, QUERIES, "queries")
