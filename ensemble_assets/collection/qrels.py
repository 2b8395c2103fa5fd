"""Read relevance judgements (TREC qrels, BEIR TSV) and match them with the queries and chunks of a collection."""

from __future__ import annotations

import re

import polars as pl

from ensemble_assets.collection.readers.chunk_ids import plain_id
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, read_lines
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import QRELS, conform

JUDGEMENTS = {"query_id": pl.String(), "chunk_id": pl.String(), "relevance": pl.Int32(), "line": pl.UInt32()}
"""Columns of a qrels file: query ids as given, chunk ids changed by ``plain_id``, 0-based line."""

_LINE_BYTES = 65_536
_INT32 = range(-(2**31), 2**31)
_REMEDY = "A line is 'query-id 0 chunk-id relevance' (TREC) or 'query-id<TAB>chunk-id<TAB>relevance' (BEIR)"


_LAYOUTS = (("\t", 3), ("\t", 4), (None, 4), (None, 3))
"""Accepted lines: separator (None: blanks) and number of columns. The last two are the chunk id and the relevance."""

_HEADER = ("query-id", "corpus-id", "score")


def read_qrels(file: InputFile, tally: Tally) -> pl.DataFrame:
    """Read a qrels file into the columns ``JUDGEMENTS``.

    Accepted are TREC (four columns, blanks or tabs) and BEIR (three tab-separated columns, with or without the header
    ``query-id corpus-id score``). The first line decides. A repeated judgement is counted and dropped. A line that
    cannot be read, and a pair judged twice with different relevance, are an ``InputError`` that names the line.
    """
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    columns = 0
    tally.files += 1
    for number, text in read_lines(file, ReadLimits(record_bytes=_LINE_BYTES)):
        where, line = f"{file.source}, line {number + 1}", text.rstrip("\r\n")
        if not columns:
            layouts = (layout for layout in _LAYOUTS if len(line.split(layout[0])) == layout[1])
            separator, columns = next(layouts, (None, 0))
            if not columns:
                raise InputError(where, "is no judgement", _REMEDY)
            if tuple(field.strip().casefold() for field in line.split("\t")) == _HEADER:
                continue
        tally.records += 1
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != columns:
            raise InputError(where, f"has {len(fields)} columns where the first line has {columns}", _REMEDY)
        query_id, chunk_id, relevance = fields[0], plain_id(fields[-2]), _relevance(fields[-1], where)
        if not query_id or not fields[-2]:
            raise InputError(where, "has an empty id", _REMEDY)
        earlier = seen.setdefault((query_id, chunk_id), (relevance, number))
        if earlier[0] != relevance:
            raise InputError(
                where, f"judges the same pair as line {earlier[1] + 1}, with another relevance", "Keep one of the two"
            )
        if earlier[1] != number:
            tally.note("duplicate_record", file.source, number)
    if not seen:
        tally.note("empty_file", file.source)
    rows = [(*pair, *judgement) for pair, judgement in seen.items()]
    return pl.DataFrame(rows, schema=JUDGEMENTS, orient="row")


def _relevance(field: str, where: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,10}(\.0*)?", field):
        relevance = int(field.partition(".")[0])
        if relevance in _INT32:
            return relevance
    raise InputError(where, "has a relevance that is not a whole number", _REMEDY)


def fit_qrels(
    judgements: pl.DataFrame, queries: pl.DataFrame, chunks: pl.DataFrame, source: str, tally: Tally
) -> pl.DataFrame:
    """Keep the judgements of existing queries and chunks as ``QRELS``, in the order of the file; count the others.

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
    return conform(matched.filter(pl.col("public_id").is_not_null(), pl.col("present")), QRELS, "qrels")
