"""How a value gets past the allow-list: the checks, and the one function that lets facts through or counts them out.

Which names exist and which check each has is ``allow_list``; this module knows no names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Scalar = str | int | float | bool
Declared = Mapping[str, frozenset[str]]
Check = Callable[[object, Declared], "Scalar | None"]

MAX_TEXT = 64
_LARGEST = 2**53  # beyond it, whole numbers are not exact in JSON readers; OTLP's own limit is 2**63
_SLUG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Field:
    """What one named value means and which values it may take.

    Attributes:
        meaning: for the documentation, with the unit.
        accepts: the check in words, for the documentation.
        check: returns the value as plain Python, or None to keep it out.
    """

    meaning: str
    accepts: str
    check: Check


def count(meaning: str) -> Field:
    """A non-negative whole number."""

    def check(value: object, _: Declared) -> int | None:
        plain = _finite(value)
        return int(plain) if plain is not None and plain >= 0 and plain == int(plain) else None

    return Field(meaning, "whole number ≥ 0", check)


def number(meaning: str) -> Field:
    """A finite number."""
    return Field(meaning, "finite number", lambda value, _: _finite(value))


def word(meaning: str, choices: tuple[str, ...], accepts: str = "") -> Field:
    """One of a fixed list of words; ``accepts`` describes the list where it is long."""
    allowed = frozenset(choices)
    shown = accepts or "one of " + ", ".join(f"`{choice}`" for choice in choices)
    return Field(meaning, shown, lambda value, _: value if isinstance(value, str) and value in allowed else None)


def shape(meaning: str, accepts: str, pattern: str, longest: int = MAX_TEXT) -> Field:
    """A short string of one strict shape; for values that have no room for free text."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: object, _: Declared) -> str | None:
        return value if isinstance(value, str) and len(value) <= longest and compiled.fullmatch(value) else None

    return Field(meaning, accepts, check)


def declared(meaning: str, kind: str) -> Field:
    """A name that was declared when telemetry was set up (``RunTelemetry``); any other value stays out."""

    def check(value: object, known: Declared) -> str | None:
        return value if isinstance(value, str) and value in known.get(kind, frozenset()) else None

    return Field(meaning, f"declared {kind}", check)


def is_slug(text: object) -> bool:
    """Whether ``text`` may be declared: at most 64 of letters, digits and ``. _ = -``, no leading punctuation."""
    return isinstance(text, str) and _SLUG.fullmatch(text) is not None


def admit(
    facts: Mapping[str, object], names: frozenset[str], fields: Mapping[str, Field], known: Declared
) -> tuple[dict[str, Scalar], int]:
    """Lets through what the allow-list knows; everything else is only counted.

    Args:
        facts: what a caller wants to report. None means "no value" and is left out without being counted.
        names: the fields that are allowed here.
        fields: every field's check.
        known: declared values per kind.

    Returns:
        The admitted facts, and how many were kept out.
    """
    admitted: dict[str, Scalar] = {}
    dropped = 0
    for name, value in facts.items():
        if value is None:
            continue
        plain = fields[name].check(value, known) if name in names else None
        if plain is None:
            dropped += 1
        else:
            admitted[name] = plain
    return admitted, dropped


def declare(**kinds: Iterable[str]) -> Declared:
    """Declared values per kind; a value that is no slug is left out."""
    return {kind: frozenset(filter(is_slug, values)) for kind, values in kinds.items()}


def plain_scalar(value: object) -> int | float | bool | None:
    """Return a boolean or a finite number as plain Python; None for anything else."""
    plain = _unwrapped(value)
    return plain if isinstance(plain, bool) else _finite(plain)


def _unwrapped(value: object) -> object:
    """A numpy scalar as plain Python; telemetry itself does not import numpy."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def _finite(value: object) -> int | float | None:
    plain = _unwrapped(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        return None
    return plain if -_LARGEST <= plain <= _LARGEST else None  # false for NaN and the infinities
