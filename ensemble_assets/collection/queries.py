"""Load the queries of a collection and their judgements: from files, or derived from the chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ensemble_assets.collection.derived_queries import derive_probes
from ensemble_assets.collection.qrels import fit_qrels, read_qrels
from ensemble_assets.collection.query_privacy import public_ids, query_hash
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, printable, read_lines
from ensemble_assets.collection.readers.json_values import replace_surrogates, text_value
from ensemble_assets.collection.readers.keyed_records import read_objects
from ensemble_assets.collection.readers.read_report import ReadReport, Tally, usable_text
from ensemble_assets.common.defaults import DERIVED_QUERIES
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import QRELS, QUERIES, conform

QuerySource = Literal["file", "derived"]

QUERY_FILES = ("queries.jsonl", "queries.tsv")
"""Names of a queries file in a collection's folder. Having both is an error."""

QRELS_FILES = ("qrels/test.tsv", "qrels.tsv", "qrels.txt")
"""Names of a qrels file in a collection's folder. Having several is an error."""

ID_KEYS = ("query_id", "_id", "id")
_TSV_HEADERS = {(first, second) for first in (*ID_KEYS, "qid", "query-id") for second in ("text", "query")}
_LIMITS = ReadLimits(record_bytes=1_000_000)


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


def load_queries(
    folder: Path,
    chunks: pl.DataFrame,
    key: bytes,
    *,
    queries_file: Path | None = None,
    qrels_file: Path | None = None,
    judged_only: bool = True,
    derived_limit: int = DERIVED_QUERIES,
    ids_are_public: bool = False,
) -> QuerySet:
    """Load the queries and judgements of one collection, whose ``CHUNKS`` frame is ``chunks``.

    Without ``queries_file``, one of ``QUERY_FILES`` in ``folder`` is read, and one of ``QRELS_FILES`` with it. With
    ``queries_file``, only the given ``qrels_file`` is read. Without any queries file, at most ``derived_limit`` probes
    are derived from the chunks.

    With ``judged_only``, queries without a judgement are counted and left out, if there are judgements: BEIR's
    ``queries.jsonl`` has the queries of all splits. With ``ids_are_public`` the operator vouches that query ids are not
    personal (``query_privacy.public_id``).

    Raises:
        InputError: for files that cannot be used, ambiguous names, and if no query is left.
    """
    if queries_file is None:
        queries_file = _only_one(folder, QUERY_FILES)
        if queries_file is not None and qrels_file is None:
            qrels_file = _only_one(folder, QRELS_FILES)
    if queries_file is None:
        if qrels_file is not None:
            problem = "judges queries, but there is no queries file"
            raise InputError(printable(qrels_file.name), problem, "Give the queries file too, or leave the qrels out")
        return _derived(chunks, key, derived_limit)
    tally = Tally()
    given = read_queries(InputFile(queries_file, printable(queries_file.name)), tally)
    if qrels_file is None:
        queries = _with_privacy(given, key, queries_file, ids_are_public)
        return QuerySet(queries, QRELS_EMPTY, "file", False, tally.report(queries.height), None)
    qrels_tally = Tally()
    file = InputFile(qrels_file, printable(qrels_file.name))
    judgements = read_qrels(file, qrels_tally)
    if judged_only:
        given = _judged(given, judgements, queries_file, file, tally)
    queries = _with_privacy(given, key, queries_file, ids_are_public)
    qrels = fit_qrels(judgements, queries, chunks, file.source, qrels_tally)
    return QuerySet(queries, qrels, "file", True, tally.report(queries.height), qrels_tally.report(qrels.height))


QRELS_EMPTY = pl.DataFrame(schema=dict(QRELS))


def _only_one(folder: Path, names: tuple[str, ...]) -> Path | None:
    present = [name for name in names if (folder / name).is_file()]
    if len(present) > 1:
        raise InputError(folder.name, f"has {' and '.join(present)}", "Keep one, or give the file to use")
    return folder / present[0] if present else None


def _judged(
    queries: pl.DataFrame, judgements: pl.DataFrame, queries_file: Path, qrels_file: InputFile, tally: Tally
) -> pl.DataFrame:
    judged = queries["query_id"].is_in(judgements["query_id"].unique().to_list())
    source = printable(queries_file.name)
    for line in queries.filter(~judged)["line"]:
        tally.note("unjudged_query", source, line)
    if not judged.any():
        raise InputError(
            qrels_file.source,
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


def read_queries(file: InputFile, tally: Tally) -> pl.DataFrame:
    """Read a queries file into the columns ``query_id`` (unique), ``text`` and ``line`` (0-based).

    The suffix decides the format: ``.jsonl`` or ``.ndjson`` is lines of JSON, ``.tsv`` or ``.txt`` is tab-separated
    with an optional header ``query_id<TAB>text``. Surrounding blanks are dropped. Lone surrogates and NUL are replaced
    and counted. Blank queries and repeated identical lines are skipped and counted. A line that cannot be read, another
    suffix, and one id with two texts are an ``InputError``.
    """
    read = _READERS.get(file.path.suffix.lower())
    if read is None:
        raise InputError(file.source, "is not a queries file", f"Accepted are {', '.join(_READERS)}")
    tally.files += 1
    seen: dict[str, tuple[str, int]] = {}
    for query_id, raw, number in read(file, tally):
        tally.records += 1
        text = usable_text(raw, tally, file.source, number).strip()
        if not text:
            tally.note("empty_text", file.source, number)
            continue
        earlier = seen.setdefault(query_id, (text, number))
        if earlier[0] != text:
            raise InputError(
                f"{file.source}, line {number + 1}",
                f"has the same id as line {earlier[1] + 1}, with another text",
                "Give one of them another id",
            )
        if earlier[1] != number:
            tally.note("duplicate_record", file.source, number)
    rows = [(query_id, text, number) for query_id, (text, number) in seen.items()]
    frame = pl.DataFrame(rows, schema={"query_id": pl.String(), "text": pl.String(), "line": pl.UInt32()}, orient="row")
    if frame.is_empty():
        raise InputError(file.source, "holds no query", "Add queries, or remove the file to have probes derived")
    return frame


def _jsonl(file: InputFile, tally: Tally) -> Iterator[tuple[str, str, int]]:
    for item, number in read_objects(file, _LIMITS, tally):
        where = f"{file.source}, line {number + 1}"
        key = next((name for name in ID_KEYS if item.get(name) is not None), None)
        query_id = item[key] if key else None
        if isinstance(query_id, int) and not isinstance(query_id, bool):
            query_id = str(query_id)
        if not isinstance(query_id, str) or not query_id.strip():
            raise InputError(where, "has no usable id", "Give it a 'query_id' or '_id' that is text or a whole number")
        if "text" not in item:
            raise InputError(where, "has no 'text'", "Give every query a 'text'")
        yield replace_surrogates(query_id.strip())[0], text_value(item["text"], "text", where), number


def _tsv(file: InputFile, tally: Tally) -> Iterator[tuple[str, str, int]]:
    del tally
    for place, (number, line) in enumerate(read_lines(file, _LIMITS)):
        query_id, tab, text = line.rstrip("\r\n").partition("\t")
        query_id = query_id.strip()
        if not place and (query_id.casefold(), text.strip().casefold()) in _TSV_HEADERS:
            continue
        if not tab or not query_id:
            raise InputError(f"{file.source}, line {number + 1}", "is not an id, a tab and a text", "Correct the line")
        yield query_id, text, number


_READERS: dict[str, Callable[[InputFile, Tally], Iterator[tuple[str, str, int]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".tsv": _tsv,
    ".txt": _tsv,
}


def _with_privacy(queries: pl.DataFrame, key: bytes, path: Path, ids_are_public: bool) -> pl.DataFrame:
    pairs = list(zip(queries["query_id"], queries["text"], strict=True))
    try:
        shown = public_ids(key, pairs, ids_are_public=ids_are_public)
    except InputError as error:
        raise InputError(f"{printable(path.name)}, {error.where}", error.problem, error.remedy) from None
    return queries.with_columns(
        pl.Series("public_id", shown, dtype=pl.String),
        pl.Series("query_hash", [query_hash(key, text) for _, text in pairs], dtype=pl.String),
    ).pipe(conform, QUERIES, "queries")
