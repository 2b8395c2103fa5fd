"""Compare the ranked lists of a bundle with one another and with the chunks that they name, for ``row_alignment``.

``_rerank.jsonl`` has every candidate with its chunk's row, so the TREC files must say the same in their order. Memory
grows with the lists, not with the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.collection.readers.chunk_ids import own_id, plain_id
from ensemble_assets.export.checks.bundle_walk import Row
from ensemble_assets.export.checks.result import shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, records
from ensemble_assets.export.write.names import trec_id

_COLUMNS = {
    "query": pl.String, "Q0": pl.String, "chunk": pl.String, "rank": pl.Int64, "score": pl.Float64, "tag": pl.String
}  # fmt: skip
"""Columns of a TREC run file."""

_LISTS = ("chunk_ids", "point_ids", "ranks", "fused_ranks")


class ListFiles:
    """Reads the lists once, and reports each chunk name that the bundle contradicts."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._problems: list[str] = []
        self._named: dict[int, str] = {}
        reranked = bundle.path("rerank.jsonl")
        self._wanted = self._read_reranked(reranked) if reranked.is_file() else None
        self._trec = {name: self._read_trec(bundle.path(name)) for name in ("fused.trec", "reranked.trec")}
        frames = [frame for frame in self._trec.values() if frame is not None]
        self._unseen = set().union(*(frame["chunk"].unique().to_list() for frame in frames)) if frames else set()
        self._rows, self._all_have_ids = 0, True

    def see(self, row: Row) -> None:
        """Compare the row's own id with the lists that name it; a repeated id has a number appended there."""
        self._rows = row.number + 1
        own = own_id(row.stated or row.metadata or {})
        self._all_have_ids &= own is not None
        if own is None:
            return
        name = plain_id(own)
        if not self._named.get(row.number, name).startswith(name):
            self._problems.append(f"{self._file('rerank.jsonl')}: names chunk row {row.number} by another chunk's id")
        self._unseen.discard(trec_id(name))

    def problems(self) -> Iterator[str]:
        """Give the sentences, after the last row."""
        yield from (f"{sentence}. {EXPORT_AGAIN}" for sentence in (*self._problems, *self._of_files()))

    def _of_files(self) -> Iterator[str]:
        if any(not 0 <= row < self._rows for row in self._named):
            yield f"{self._file('rerank.jsonl')}: names points that are not there"
        for name, order in (("fused.trec", "fused_rank"), ("reranked.trec", "rank")):
            frame = self._trec[name]
            if frame is None:
                continue
            yield from _form_problems(self._file(name), frame)
            if self._wanted is not None:
                wanted = self._wanted.sort("at", order).select("query", "chunk", pl.col(order).alias("rank"))
                yield from _difference(self._file(name), frame, wanted)
            elif self._all_have_ids and (strangers := {name for name in self._unseen if "#" not in name}):
                lines = frame.filter(pl.col("chunk").is_in(strangers)).height
                yield f"{self._file(name)}: {lines} lines name a chunk that is not in the bundle"

    def _file(self, content: str) -> str:
        return self._bundle.names.file(content)

    def _read_reranked(self, path: Path) -> pl.DataFrame:
        """Read the lists as one frame, in file order; each list must have ranks from 1 and integers for points."""
        columns: dict[str, list[Any]] = {"at": [], "query": [], "chunk": [], "rank": [], "fused_rank": []}
        for number, record in enumerate(records(path), start=1):
            lists = [(record or {}).get(name) for name in _LISTS]
            where = f"{path.name}, line {number}"
            if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) > 1:  # type: ignore[arg-type]
                self._problems.append(f"{where}: expected the lists {', '.join(_LISTS)}, equally long")
                continue
            chunks, points, ranks, fused = lists
            count = len(ranks)  # type: ignore[arg-type]
            if ranks != list(range(1, count + 1)) or any(type(row) is not int for row in points or ()):
                self._problems.append(f"{where}: expected ranks from 1 and point_ids of chunks")
                continue
            if sorted(map(str, fused or ())) != sorted(map(str, range(1, count + 1))):
                self._problems.append(f"{where}: expected every rank from 1 once in fused_ranks")
                continue
            for row, chunk in zip(points or (), map(str, chunks or ()), strict=True):
                if self._named.setdefault(row, chunk) != chunk:
                    self._problems.append(f"{where}: point {row} has another chunk's id than in other lines")
            columns["at"] += [number] * count
            columns["query"] += [trec_id(str((record or {}).get("query_id")))] * count
            columns["chunk"] += [trec_id(str(chunk)) for chunk in chunks or ()]
            columns["rank"] += ranks or ()
            columns["fused_rank"] += fused or ()
        schema = {"at": pl.Int64, "query": pl.String, "chunk": pl.String, "rank": pl.Int64, "fused_rank": pl.Int64}
        return pl.DataFrame(columns, schema=schema)

    def _read_trec(self, path: Path) -> pl.DataFrame | None:
        """Read a TREC run file: columns ``query``, ``chunk``, ``rank`` and ``score`` in file order."""
        if not path.is_file():
            return None
        try:
            frame = pl.read_csv(path, has_header=False, separator=" ", quote_char=None, schema=_COLUMNS)
        except pl.exceptions.NoDataError:
            frame = pl.DataFrame(schema=_COLUMNS)
        except pl.exceptions.PolarsError:
            self._problems.append(f"{path.name}: expected lines of {len(_COLUMNS)} columns, as TREC has them")
            return None
        return frame.drop("Q0", "tag")


def _form_problems(name: str, frame: pl.DataFrame) -> Iterator[str]:
    """Expect ranks from 1, falling scores and no chunk twice in every list."""
    lists = frame.with_row_index("line").with_columns(
        at=pl.int_range(pl.len()).over("query") + 1, before=pl.col("score").shift(1).over("query")
    )
    score = pl.col("score")
    for sentence, fault in (
        ("expected ranks from 1 in every list", pl.col("rank").ne_missing(pl.col("at"))),
        (
            "expected falling scores",
            ~score.is_finite().fill_null(value=False) | (score >= pl.col("before")),
        ),
        ("has a chunk twice in one list", pl.struct("query", "chunk").is_duplicated()),
    ):
        wrong = lists.filter(fault)
        if wrong.height:
            yield f"{name}: {sentence}; {wrong.height} lines are wrong, the first is line {wrong['line'][0] + 1}"


def _difference(name: str, frame: pl.DataFrame, wanted: pl.DataFrame) -> Iterator[str]:
    """Expect the lines that the reranked lists give."""
    both = frame.select("query", "chunk", "rank")
    if both.height != wanted.height:
        yield f"{name}: has {shown(both.height)} lines, the reranked lists have {shown(wanted.height)} candidates"
    rest = min(both.height, wanted.height)
    wrong = (both.head(rest).hash_rows() != wanted.head(rest).hash_rows()).arg_true()
    if len(wrong):
        yield (
            f"{name}: {len(wrong)} lines are not the candidates of the reranked lists in their order, "
            f"the first is line {int(wrong[0]) + 1}"
        )
