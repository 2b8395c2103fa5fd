"""Read relevance judgements (TREC qrels, BEIR TSV) and match them with the queries and chunks of a collection."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

import polars as pl

from ensemble_assets.collection.readers.chunk_ids import as_id, plain_id
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.collection.readers.table_rows import (
    LINES,
    ending_of,
    line_fields,
    object_rows,
    places_of,
    value_of,
)
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import QRELS, conform

JUDGEMENTS = {"query_id": pl.String(), "chunk_id": pl.String(), "relevance": pl.Int32(), "line": pl.UInt32()}
"""Columns of a qrels file: query ids as given, chunk ids changed by ``plain_id``, 0-based line."""

_LIMITS = ReadLimits(record_bytes=65_536, remedy="A judgement has at most 64 kB")
_INT32 = range(-(2**31), 2**31)
_REMEDY = (
    "A line is 'query-id 0 chunk-id relevance' (TREC), or query id, chunk id and relevance (BEIR) between tabs, blanks "
    "or commas; a first line may name the columns"
)

_NAMES = {
    "query": ("query_id", "qid", "query", "q_id", "topic", "topic_id"),
    "chunk": ("corpus_id", "doc_id", "docid", "chunk_id", "document_id", "passage_id", "pid", "docno", "document"),
    "relevance": ("relevance", "rel", "rating", "label", "grade", "judgement", "judgment", "relevance_score", "score"),
}
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,10}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


def read_qrels(file: InputFile, tally: Tally, *more: InputFile) -> pl.DataFrame:
    """Read qrels files, shards of one table, into the columns ``JUDGEMENTS``.

    Accepted are TREC (four columns) and BEIR (three), between tabs, blanks or commas, with or without a header of any
    names; JSONL and Parquet with named columns. A decimal relevance is rounded to the nearest grade, halves upwards,
    and counted. A repeated judgement is counted and dropped.

    Raises:
        InputError: for a file or line that cannot be read, and for a pair judged twice with different relevance; names
            the line.
    """
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for each in (file, *more):
        tally.files += 1
        for (query_id, given_id, relevance), number in _judgements(each, tally):
            where = f"{each.source}, line {number + 1}"
            tally.records += 1
            if not query_id or not given_id:
                raise InputError(where, "has an empty id", _REMEDY)
            grade = _grade(relevance, where)
            tally.note("decimal_relevance", each.source, number, int(grade != float(relevance)))
            earlier = seen.setdefault((query_id, plain_id(given_id)), (grade, number))
            if earlier[0] != grade:
                problem = f"judges the same pair as line {earlier[1] + 1}, with another relevance"
                raise InputError(where, problem, "Keep one of the two")
            if earlier[1] != number:
                tally.note("duplicate_record", each.source, number)
    if not seen:
        tally.note("empty_file", file.source)
    rows = [(*pair, *judgement) for pair, judgement in seen.items()]
    return pl.DataFrame(rows, schema=JUDGEMENTS, orient="row")


def _judgements(file: InputFile, tally: Tally) -> Iterator[tuple[tuple[str, str, str], int]]:
    """Yield query id, chunk id and relevance as text, with the 0-based line."""
    if ending_of(file) not in LINES:
        for row, number in object_rows(file, _LIMITS, tally):
            values = [as_id(value_of(row, names)) for names in _NAMES.values()]
            if not all(isinstance(value, str) for value in values):
                names = ", ".join(row) or "nothing"
                where = f"{file.source}, line {number + 1}"
                raise InputError(where, f"lacks a query id, a chunk id or a relevance (it has {names})", _REMEDY)
            query, chunk, relevance = (str(value).strip() for value in values)
            yield (query, chunk, relevance), number
        return
    places: dict[str, int] = {}
    columns = 0
    for place, (fields, number) in enumerate(line_fields(file, _LIMITS, 3)):
        where = f"{file.source}, line {number + 1}"
        if not place and not any(map(_NUMBER.fullmatch, fields)):
            places = places_of(fields, _NAMES)
            if places or (len(fields) in (3, 4) and not any(map(str.isdigit, "".join(fields)))):
                continue
        if not columns and len(fields) not in (3, 4) and len(places) < len(_NAMES):
            raise InputError(where, "is no judgement", _REMEDY)
        columns = columns or len(fields)
        if len(fields) != columns:
            raise InputError(where, f"has {len(fields)} columns where the first line has {columns}", _REMEDY)
        if len(places) == len(_NAMES):
            yield (fields[places["query"]], fields[places["chunk"]], fields[places["relevance"]]), number
        else:
            yield (fields[0], fields[-2], fields[-1]), number


def _grade(field: str, where: str) -> int:
    if _NUMBER.fullmatch(field) and math.floor(float(field) + 0.5) in _INT32:
        return math.floor(float(field) + 0.5)
    raise InputError(where, "has a relevance that is not a number", _REMEDY)


def same_ids(
    judgements: pl.DataFrame, query_ids: pl.Series, chunk_ids: pl.Series, source: str, tally: Tally
) -> pl.DataFrame:
    """Replace ids that the collection has in another Unicode form, or as a whole number without ``.0``; count them.

    File names of macOS and tables of numbers make such ids. An id that fits two ids stays as it is.
    """
    for column, ids in (("query_id", query_ids), ("chunk_id", chunk_ids)):
        missing = judgements.filter(~pl.col(column).is_in(ids.implode()))
        forms = {given: _form(given) for given in missing[column].unique()}
        wanted = {form for given, form in forms.items() if form != given or not given.isascii()}
        there: dict[str, list[str]] = {}
        for each in ids if wanted else ():
            there.setdefault(_form(each), []).append(each)
        own = {
            given: there[form][0] for given, form in forms.items() if form in wanted and len(there.get(form, ())) == 1
        }
        for line in missing.filter(pl.col(column).is_in(list(own)))["line"]:
            tally.note("id_form", source, line)
        judgements = judgements.with_columns(pl.col(column).replace(own))
    return judgements.unique(["query_id", "chunk_id"], keep="first", maintain_order=True)


_WHOLE = re.compile(r"(\d+)\.0+")


def _form(given: str) -> str:
    whole = _WHOLE.fullmatch(given)
    return whole[1] if whole else given if given.isascii() else unicodedata.normalize("NFC", given)


def fit_qrels(
    judgements: pl.DataFrame, queries: pl.DataFrame, chunks: pl.DataFrame, source: str, tally: Tally
) -> pl.DataFrame:
    """Keep the judgements of existing queries as ``QRELS``, in the order of the file; count those of others.

    Judgements of chunks that are not here are counted too, and stay: no list can have these chunks, which are missed.

    ``judgements`` has the columns ``JUDGEMENTS``, ``queries`` has ``query_id`` and ``public_id``, ``chunks`` has
    ``chunk_id``.
    """
    matched = judgements.join(queries.select("query_id", "public_id"), on="query_id", how="left", maintain_order="left")
    present = chunks.select("chunk_id", pl.lit(True).alias("present"))
    matched = matched.join(present, on="chunk_id", how="left", maintain_order="left")
    lost = {
        "unknown_query": matched.filter(pl.col("public_id").is_null()),
        "unknown_chunk": matched.filter(pl.col("public_id").is_not_null() & pl.col("present").is_null()),
    }
    for code, rows in lost.items():
        for line in rows["line"]:
            tally.note(code, source, line)
    usable = matched.filter(pl.col("public_id").is_not_null())
    return conform(usable, QRELS, "qrels")
