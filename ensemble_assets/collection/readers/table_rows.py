"""Read queries and judgements as rows of named columns: JSONL, Parquet, CSV, TSV or words between blanks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from ensemble_assets.collection.readers.file_text import read_lines
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.keyed_records import parquet_rows, read_objects
from ensemble_assets.collection.readers.layouts import plain_name
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError

LINES, OBJECTS, PARQUET = (".tsv", ".txt", ".csv", ".trec"), (".jsonl",), (".parquet",)
"""Endings of the tables that are read."""


def ending_of(file: InputFile) -> str:
    """Return the ending that says the format, such as ``.jsonl``; ``InputError`` for any other."""
    name = plain_name(file.path.name)
    ending = next((each for each in (*LINES, *OBJECTS, *PARQUET) if name.endswith(each)), None)
    if ending is None:
        remedy = f"Accepted are {', '.join((*OBJECTS, *LINES, *PARQUET))}, also .gz and .zst"
        raise InputError(file.source, "is no table of queries or judgements", remedy)
    return ending


def object_rows(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the objects of a JSONL or Parquet file with their 0-based place."""
    if ending_of(file) in PARQUET:
        yield from ((row, number) for number, row in enumerate(parquet_rows(file)))
    else:
        yield from read_objects(file, limits, tally)


def line_fields(file: InputFile, limits: ReadLimits, columns: int) -> Iterator[tuple[list[str], int]]:
    """Split the lines of a text file into fields, stripped, with the 0-based line.

    CSV by its own rules. Other lines at tabs where these make ``columns`` fields or more, at commas where a line has no
    blank outside of them, else at blanks.
    """
    if ending_of(file) == ".csv":
        yield from _csv_fields(file, limits)
        return
    for number, text in read_lines(file, limits):
        line = text.rstrip("\r\n")
        if line.count("\t") >= columns - 1:
            fields = line.split("\t")
        elif line.count(",") >= columns - 1 and len(line.split()) == 1:
            fields = line.split(",")
        else:
            fields = line.split()
        yield unquoted([field.strip() for field in fields]), number


def _csv_fields(file: InputFile, limits: ReadLimits) -> Iterator[tuple[list[str], int]]:
    """Split CSV at the first of commas, semicolons and tabs in its first line; a quoted field may go over lines."""
    taken: list[int] = []

    def lines() -> Iterator[str]:
        for number, text in read_lines(file, limits):
            taken.append(number)
            yield text

    rest = lines()
    first = next(rest, "")
    if not first:
        return
    plain = _QUOTED.sub("", first)
    delimiter = min(filter(plain.count, _DELIMITERS), key=plain.index, default=",")
    rows = csv.reader(chain([first], rest), delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(rows, None)
        except csv.Error as error:
            where = f"{file.source}, line {taken[0] + 1}"
            raise InputError(where, f"is no CSV ({error})", "Close the quotes, and double those in a field") from None
        if fields is None:
            return
        yield [field.strip() for field in fields], taken[0]
        taken.clear()


_DELIMITERS = ",;\t"
_QUOTED, _NUMBER = re.compile(r'"(?:[^"]|"")*"'), re.compile(r"[-+.0-9eE]+")


def unquoted(fields: list[str]) -> list[str]:
    """Take off the quotes of a line whose every text has some, as R writes tables."""
    if not fields or not _QUOTED.fullmatch(fields[0]):
        return fields
    if not all(_QUOTED.fullmatch(field) or _NUMBER.fullmatch(field) for field in fields):
        return fields
    return [field[1:-1].replace('""', '"') if field.startswith('"') else field for field in fields]


def places_of(header: list[str], names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Find the columns of a header by the names that each may have; missing columns are left out."""
    lowered = [_column(field) for field in header]
    places = {key: [lowered.index(name) for name in among if name in lowered] for key, among in names.items()}
    return {key: at[0] for key, at in places.items() if at}


def value_of(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Take the first value that is not null under any of the names."""
    lowered = {_column(key): value for key, value in row.items()}
    return next((lowered[name] for name in names if lowered.get(name) is not None), None)


def _column(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
