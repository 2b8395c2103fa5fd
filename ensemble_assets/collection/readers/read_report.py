"""Define the records that readers make, and count imperfect input with its reasons.

The table ``REASONS`` is the policy for input that is imperfect but usable. Unusable input raises ``InputError``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from ensemble_assets.collection.readers.json_values import replace_surrogates
from ensemble_assets.common.errors import InputError

Effect = Literal["skipped", "changed", "noticed"]

MAX_PLACES = 20
"""Places stored per reason. Further ones are only counted."""


@dataclass(frozen=True)
class Reason:
    """A fault of the input that is counted instead of refused; ``words`` complete the sentence "3 times: ...".

    ``effect`` is ``skipped`` (the record is no row), ``changed`` (the row differs from the record) or ``noticed`` (a
    file, a link or a judgement; records are unchanged).
    """

    effect: Effect
    words: str


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "empty_text": Reason("skipped", "the text is empty or blank"),  # nothing can be embedded
        "below_min_tokens": Reason("skipped", "fewer tokens than chunks.min_tokens"),  # the setting asks for it
        "duplicate_record": Reason("skipped", "a record repeats an id and its content"),  # no information is lost
        # Real collections have some; one bad line of a million must not stop all.
        "repeated_id": Reason("changed", "an id is repeated with other content; '#2', '#3', ... was appended"),
        # Version 4.0 has such rows; ids must be unique here.
        "duplicate_chunk_id": Reason("changed", "a chunk_id is repeated; '#2', '#3', ... was appended"),
        # Databases and C libraries end a string there; the rest of the text is good.
        "nul_in_text": Reason("changed", "NUL characters in a text became spaces"),
        # A cut emoji; it cannot be written as UTF-8, the rest of the text is good.
        "lone_surrogate": Reason("changed", "lone surrogates became U+FFFD"),
        # JSON has no such numbers; strict readers of the bundle would refuse the whole file.
        "non_finite_number": Reason("changed", "NaN or Infinity in metadata became null"),
        # Databases and spreadsheets write years and amounts so.
        "number_as_text": Reason("changed", "a number stands where a text belongs; its digits are the text"),
        # The setting names what is kept; version 4.0 kept only 'metadata'.
        "key_dropped": Reason("changed", "a key beside the text was left out"),
        # Version 4.0 did so; the JSON standard leaves it open.
        "duplicate_json_key": Reason("changed", "a key is repeated in a JSON object; the last value was used"),
        # The inner one was put there as metadata on purpose.
        "metadata_conflict": Reason("changed", "a key is beside and inside 'metadata'; the one inside was used"),
        # The contract asks for it.
        "text_cut": Reason("changed", "the text is longer than what a bundle keeps and was cut"),
        # A file in one line, an image as text: tokenizers would take minutes.
        "rest_cut": Reason("changed", "the text is longer than a million characters; what follows is not searched"),
        # Run and qrels files are separated by blanks.
        "id_changed": Reason("changed", "blanks or control characters in an id became '_'"),
        # Version 4.0 did not read it.
        "unusable_chunk_id": Reason(
            "changed", "metadata.chunk_id is no short text or number; the record's place became its id"
        ),
        # It only feeds min_tokens and reports.
        "unusable_token_count": Reason(
            "changed", "metadata.token_count is not a count; it was estimated from the words"
        ),
        # Version 4.0 read the list.
        "text_beside_container": Reason(
            "noticed", "an object has a list of chunks and a text of its own, which is not a chunk"
        ),
        # Other programs call it so; nobody means another field.
        "other_text_field": Reason("noticed", "a record's text is not under 'text' but under 'content' or the like"),
        "empty_file": Reason("noticed", "the file has no records"),  # an empty list or file says so on purpose
        # The option chunks.format is set.
        "other_format_ignored": Reason("noticed", "a chunk file of a format that was not chosen"),
        # Generated queries, negatives and the like; a corpus has its documents in its own files.
        "beside_the_corpus": Reason("noticed", "a file beside a corpus was not read: it is no document of it"),
        # Another split, or a second file of the same kind.
        "split_not_read": Reason("noticed", "queries or judgements of another split were not read"),
        # The output folder is the input folder; the bundle's points are not chunks.
        "exported_file": Reason("noticed", "a file of an export bundle lies among the chunk files"),
        # The option chunks.on_error is "skip"; version 4.0 went on so.
        "unusable_file": Reason("noticed", "a file that cannot be used was left out"),
        # Version 4.0 read files that hold records; settings and reports of other programs lie beside them.
        "no_chunks_inside": Reason("noticed", "a JSON file that is no chunk file was passed over"),
        # macOS leaves them on other file systems; their names are those of chunk files.
        "macos_attributes": Reason("noticed", "a file of macOS attributes ('._' before a chunk file's name)"),
        # Reading it twice would double its chunks.
        "repeated_link": Reason("noticed", "a symbolic link to a file or folder that is read under its own name"),
        "unjudged_query": Reason("skipped", "the query has no judgement in the qrels"),  # another split's query
        # ArguAna, Quora: BEIR leaves out such a hit, too.
        "query_is_document": Reason(
            "noticed", "a query has a chunk's id; that chunk counts in its lists only if judged relevant"
        ),
        # Some collections are judged in shares; measures want grades.
        "decimal_relevance": Reason("changed", "a decimal relevance was rounded to the nearest grade, halves upwards"),
        # File names of macOS, and numbers that a table made decimal.
        "id_form": Reason(
            "changed", "a judgement's id differs in its Unicode form or in '.0' only; the id there counts"
        ),
        # Another split's line.
        "unknown_query": Reason("noticed", "a judgement names a query that is not in the queries"),
        # A skipped or removed chunk: no list can have it, as in BEIR.
        "unknown_chunk": Reason("noticed", "a judgement names a chunk that is not in the collection; it is missed"),
    }
)
"""The reasons by name in reports and manifests. The comments say why the input is not refused."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the input: a file relative to the input folder and, if known, its 0-based record or line."""

    source: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One chunk as a file has it, before any preparation.

    Attributes:
        metadata: the chunk's own metadata, keys in file order; values are JSON values.
        source: POSIX path relative to the collection folder.
        position: 0-based record (JSON list, Parquet row) or line (JSONL) in ``source``.
        given_id: the id in formats whose ids must be unique (BEIR, JSONL, Parquet). None for legacy chunk files: their
            ids come from ``metadata.chunk_id``.
        row_id: the id of a row whose metadata has none; it is not exported.
    """

    text: str
    metadata: dict[str, Any]
    source: str
    position: int
    given_id: str | None = None
    row_id: str | None = None


@dataclass(frozen=True)
class ReadReport:
    """Places and counts of one reading of a collection, a queries file or qrels. It holds no text.

    ``records`` are ``rows`` of the frame plus the counts of the reasons with effect ``skipped``. ``counts`` are by
    reason, without zeros; ``places`` are the first ``MAX_PLACES`` of each.
    """

    files: int = 0
    records: int = 0
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """Records that did not become a row."""
        return sum(count for code, count in self.counts.items() if REASONS[code].effect == "skipped")

    def warnings(self) -> list[str]:
        """Return one sentence per reason with its count and first place, fit for a manifest."""
        return [
            f"{_times(count)}: {REASONS[code].words} ({REASONS[code].effect}), first in {_words(self.places[code][0])}"
            for code, count in self.counts.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types for asset metadata and artefact facts."""
        return {
            "files": self.files,
            "records": self.records,
            "rows": self.rows,
            "skipped": self.skipped,
            "reasons": dict(self.counts),
            "places": {code: [[p.source, p.position] for p in places] for code, places in self.places.items()},
        }


_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def all_usable(items: Iterable[_Item], make: Callable[[_Item], _Made]) -> Iterator[_Made]:
    """Make an object of every item of a file; one error names the items that cannot be used, at most twenty."""
    errors: list[InputError] = []
    for item in items:
        try:
            made = make(item)
        except InputError as error:
            errors.append(error)
            if len(errors) == MAX_PLACES:
                break
        else:
            yield made
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "; ".join(f"{error.where}: {error.problem}" for error in errors[1:])
        more = " and perhaps more" if len(errors) == MAX_PLACES else ""
        raise InputError(errors[0].where, f"{errors[0].problem}; {named}{more}", errors[0].remedy)


def record_place(source: str, position: int) -> str:
    """Name a record in errors and reports, which count from 1."""
    return f"{source}, record {position + 1}"


def _times(count: int) -> str:
    return "1 time" if count == 1 else f"{count} times"


def _words(place: Place) -> str:
    return place.source if place.position is None else record_place(place.source, place.position)


@dataclass
class Tally:
    """Collects the counts and places of a ``ReadReport`` while files are read."""

    files: int = 0
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def note(self, code: str, source: str, position: int | None = None, times: int = 1) -> None:
        """Count ``times`` occurrences of a reason at one place.

        Raises:
            KeyError: if ``code`` is not in ``REASONS``; a programming error.
        """
        if code not in REASONS:
            raise KeyError(code)
        if times <= 0:
            return
        self.counts[code] += times
        places = self.places.setdefault(code, [])
        if len(places) < MAX_PLACES:
            places.append(Place(source, position))

    def report(self, rows: int) -> ReadReport:
        """Return the finished report, reasons in the order of ``REASONS``."""
        codes = [code for code in REASONS if self.counts[code]]
        return ReadReport(
            files=self.files,
            records=self.records,
            rows=rows,
            counts={code: self.counts[code] for code in codes},
            places={code: tuple(self.places[code]) for code in codes},
        )


def usable_text(raw: str, tally: Tally, source: str, position: int) -> str:
    """Replace lone surrogates by U+FFFD and NUL by blanks, and count both."""
    text, replaced = replace_surrogates(raw)
    tally.note("lone_surrogate", source, position, replaced)
    tally.note("nul_in_text", source, position, text.count("\0"))
    return text.replace("\0", " ")
