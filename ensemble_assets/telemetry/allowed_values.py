"""Check values against the allow-list of ``allowed_names``: the kinds of checks, and their use on facts."""

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
    """A named value: its meaning and accepted values in words; ``check`` returns plain Python, or None to refuse."""

    meaning: str
    accepts: str
    check: Check


def count(meaning: str) -> Field:
    """Make a field for non-negative whole numbers."""

    def check(value: object, _: Declared) -> int | None:
        plain = finite_number(value)
        return int(plain) if plain is not None and plain >= 0 and plain == int(plain) else None

    return Field(meaning, "whole number ≥ 0", check)


def number(meaning: str) -> Field:
    """Make a field for finite numbers."""
    return Field(meaning, "finite number", lambda value, _: finite_number(value))


def word(meaning: str, choices: tuple[str, ...], accepts: str = "") -> Field:
    """Make a field for words of a fixed list; ``accepts`` describes the list where it is long."""
    return _text(meaning, accepts or one_of(choices), frozenset(choices).__contains__)


def one_of(choices: tuple[str, ...]) -> str:
    """Describe the values of a fixed list."""
    return "one of " + ", ".join(f"`{choice}`" for choice in choices)


def shape(meaning: str, accepts: str, pattern: str, longest: int = MAX_TEXT) -> Field:
    """Make a field for short strings of one strict shape, which has no room for free text."""
    compiled = re.compile(pattern, re.ASCII)
    return _text(meaning, accepts, lambda text: len(text) <= longest and compiled.fullmatch(text) is not None)


def _text(meaning: str, accepts: str, fits: Callable[[str], bool]) -> Field:
    return Field(meaning, accepts, lambda value, _: value if isinstance(value, str) and fits(value) else None)


def declared(meaning: str, kind: str) -> Field:
    """Make a field for names that were declared when telemetry was set up (``RunTelemetry``)."""

    def check(value: object, names: Declared) -> str | None:
        return value if isinstance(value, str) and value in names.get(kind, frozenset()) else None

    return Field(meaning, f"declared {kind}", check)


def is_slug(text: object) -> bool:
    """Say whether ``text`` may be declared: at most 64 of letters, digits and ``. _ = -``, no leading punctuation."""
    return isinstance(text, str) and _SLUG.fullmatch(text) is not None


def admit(
    facts: Mapping[str, object], names: frozenset[str], fields: Mapping[str, Field], allowed: Declared
) -> tuple[dict[str, Scalar], int]:
    """Let through the facts in ``names`` that their field's check accepts, and count the refused ones.

    None means "no value": it is left out and not counted. ``allowed`` has the declared values per kind.
    """
    admitted: dict[str, Scalar] = {}
    dropped = 0
    for name, value in facts.items():
        if value is None:
            continue
        plain = fields[name].check(value, allowed) if name in names else None
        if plain is None:
            dropped += 1
        else:
            admitted[name] = plain
    return admitted, dropped


def declare(**kinds: Iterable[str]) -> Declared:
    """Collect declared values per kind; a value that is no slug is left out."""
    return {kind: frozenset(filter(is_slug, values)) for kind, values in kinds.items()}


def plain_scalar(value: object) -> int | float | bool | None:
    """Return a boolean or a finite number as plain Python; None for anything else."""
    plain = _unwrapped(value)
    return plain if isinstance(plain, bool) else finite_number(plain)


def _unwrapped(value: object) -> object:
    """Turn a numpy scalar into plain Python, without importing numpy."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def finite_number(value: object) -> int | float | None:
    """Return a finite number of at most 2**53 as plain Python; None for anything else, booleans too."""
    plain = value if type(value) in (int, float) else _unwrapped(value)  # lists of plain numbers are long
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        return None
    return plain if -_LARGEST <= plain <= _LARGEST else None  # false for NaN and the infinities
