"""A gate's result, and the list in which a gate collects its problems."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["ERROR", "WARN"]

_MOST_SENTENCES = 20
"""Problems that a result quotes; all of them are counted. More would not fit the page that shows them."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_NUMBER = re.compile(r"\d+")
_FIXED_WORD = re.compile(r"[A-Za-z]+(?:_[a-z]+)+|[A-Z][A-Za-z]+Error")


@dataclass(frozen=True)
class GateResult:
    """The result of one gate.

    Attributes:
        severity: of the worst problem; ``ERROR`` where there is none.
        problems: the first 20 kinds of sentences: record, key, expectation, remedy. Sentences that differ in numbers
            only are one kind. They quote no text of a file.
        numbers: figures; ``problems`` counts all problems.
        notes: parts that were not judged, and why.
        skipped: whether there was nothing to judge; ``passed`` is set then.
    """

    name: str
    passed: bool
    severity: Severity
    problems: tuple[str, ...] = ()
    numbers: Mapping[str, int | float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def failed(self) -> bool:
        """Whether it must stop the caller: not passed, and worse than a warning."""
        return not self.passed and self.severity == "ERROR"

    def as_json(self) -> dict[str, Any]:
        """Give a plain dictionary of JSON types."""
        return {**asdict(self), "problems": list(self.problems), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GateResult:
        """Read the dictionary of ``as_json``."""
        lists = {name: tuple(content[name]) for name in ("problems", "notes")}
        return cls(**{**content, **lists})


def shown(value: Any) -> str:
    """Word a value for a sentence: numbers and fixed words as they are, any other value by its type.

    A file may hold anybody's text where a number should be.
    """
    if value is None or isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str) and _FIXED_WORD.fullmatch(value):
        return value
    return f"a value of type {type(value).__name__}"


def key_shown(name: Any) -> str:
    """Word a key for a sentence: a plain name as it is, any other key by its kind, because it may be a text."""
    return f"'{name}'" if isinstance(name, str) and _NAME.fullmatch(name) else "with blanks or signs in its name"


class Findings:
    """The problems and notes of one gate: keeps the first sentence of every kind and counts all."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: dict[str, tuple[str, int]] = {}
        self._skipped = False
        self._notes: list[str] = []
        self._count = 0
        self._severity: Severity = "WARN"

    def add(self, sentence: str, severity: Severity = "ERROR", *, first: bool = False) -> None:
        """Add a problem; with ``first`` it explains the earlier ones and is shown before them."""
        self._count += 1
        if severity == "ERROR":
            self._severity = "ERROR"
        kind = _NUMBER.sub("#", sentence)
        example, count = self._kinds.get(kind, (sentence, 0))
        if count or first or len(self._kinds) < _MOST_SENTENCES:
            self._kinds = {kind: (example, 1), **self._kinds} if first else self._kinds
            self._kinds[kind] = (example, count + 1)

    def add_result(self, other: GateResult) -> None:
        """Add the problems and notes of an earlier result of the same gate."""
        for sentence in other.problems:
            self.add(sentence, other.severity)
        self._count += max(0, int(other.numbers.get("problems", 0)) - len(other.problems))
        self._notes += [sentence for sentence in other.notes if sentence not in self._notes]

    def note(self, sentence: str) -> None:
        """Add that a part was not judged, and why."""
        if sentence not in self._notes:
            self._notes.append(sentence)

    def skip(self, sentence: str) -> None:
        """Add why there is nothing to judge."""
        self._skipped = True
        self.note(sentence)

    def result(self, **numbers: int | float | str) -> GateResult:
        """Close the list."""
        return GateResult(
            name=self._name,
            passed=self._count == 0,
            severity=self._severity if self._count else "ERROR",
            problems=tuple(
                f"{example} ({count - 1} more of this kind)" if count > 1 else example
                for example, count in self._kinds.values()
            ),
            numbers={**numbers, "problems": self._count},
            notes=tuple(self._notes),
            skipped=self._skipped and not self._count,
        )
