"""A gate's verdict, and the list in which a gate collects what it found. What is looked at is the gates' business."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["ERROR", "WARN"]

_KEPT = 20
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_FIXED_WORD = re.compile(r"[A-Za-z]+(?:_[a-z]+)+|[A-Z][A-Za-z]+Error")


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict.

    Attributes:
        name: of the gate.
        passed: whether it found nothing wrong.
        severity: of the worst problem; ``ERROR`` where there is none.
        problems: sentences: which record, which key, what was expected, what to do. The first 20; no texts.
        numbers: figures, ``problems`` (how many there were, kept or not) among them.
        notes: what was not looked at and why.
    """

    name: str
    passed: bool
    severity: Severity
    problems: tuple[str, ...] = ()
    numbers: Mapping[str, int | float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it must stop whoever asked: not passed, and not only a warning."""
        return not self.passed and self.severity == "ERROR"

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of JSON types."""
        return {
            "name": self.name,
            "passed": self.passed,
            "severity": self.severity,
            "problems": list(self.problems),
            "numbers": dict(self.numbers),
            "notes": list(self.notes),
        }


def shown(value: Any) -> str:
    """A value as sentences may show it: numbers and fixed words as they are, of anything else only its type.

    What a file holds where a number should be may be anybody's text.
    """
    if value is None or isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str) and _FIXED_WORD.fullmatch(value):
        return value
    return f"a value of type {type(value).__name__}"


def key_shown(name: Any) -> str:
    """A key as sentences may show it: a name as it is; what reads like a text may be anybody's."""
    return f"'{name}'" if isinstance(name, str) and _NAME.fullmatch(name) else "with blanks or signs in its name"


class Findings:
    """What a gate found so far: keeps the first sentences and counts all."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sentences: list[str] = []
        self._notes: list[str] = []
        self._count = 0
        self._severity: Severity = "WARN"

    def add(self, sentence: str, severity: Severity = "ERROR") -> None:
        """A problem."""
        self._count += 1
        if severity == "ERROR":
            self._severity = "ERROR"
        if len(self._sentences) < _KEPT:
            self._sentences.append(sentence)

    def note(self, sentence: str) -> None:
        """Something that was not looked at, and why."""
        self._notes.append(sentence)

    def result(self, **numbers: int | float | str) -> GateResult:
        """The verdict."""
        return GateResult(
            name=self._name,
            passed=self._count == 0,
            severity=self._severity if self._count else "ERROR",
            problems=tuple(self._sentences),
            numbers={**numbers, "problems": self._count},
            notes=tuple(self._notes),
        )
