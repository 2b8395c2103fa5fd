"""One option and one value: types, bounds and accepted words, and the error a wrong value gets.

Which options exist is ``options``'s business; where values come from is ``layers``'s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ensemble_assets.common.errors import SettingsError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class Option:
    """One option as documentation and parsers see it.

    Attributes:
        key: dotted name, as ``--set`` takes it.
        default: a value of the option's type.
        env: environment variable.
        help: one line for people.
        unit: of numbers.
        choices: accepted words, if it is a choice.
        low: smallest accepted number.
        high: largest accepted number.
    """

    key: str
    default: Any
    env: str
    help: str
    unit: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None

    @property
    def accepted(self) -> str:
        """What values are accepted, in words."""
        if self.choices:
            return "one of " + ", ".join(choice or "(empty)" for choice in self.choices)
        words = _ACCEPTED[type(self.default)]
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        return ", ".join([words, *bounds])

    def parse(self, raw: Any, source: str) -> Any:
        """The typed value of ``raw``.

        Raises:
            SettingsError: naming the source, the value and what is accepted.
        """
        try:
            value = _PARSERS[type(self.default)](raw)
            inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
            if not inside or (self.choices and value not in self.choices):
                raise ValueError
        except (ValueError, TypeError):
            raise SettingsError(f"{source}: {raw!r} is not accepted for {self.key}; expected {self.accepted}") from None
        return value


def option(
    default: Any,
    help: str,
    *,
    env: str = "",
    unit: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field that carries an option's description."""
    facts = {"env": env, "help": help, "unit": unit, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata={"option": MappingProxyType(facts)})


def option_of(field: dataclasses.Field[Any], key: str) -> Option:
    """The option that ``field`` describes, under its dotted key; the environment name follows the key unless set."""
    facts = dict(field.metadata["option"])
    facts["env"] = facts["env"] or "EMBEDDER_" + key.replace(".", "_").upper()
    return Option(key=key, default=field.default, **facts)


def _parse_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _parse_int(raw: Any) -> int:
    if isinstance(raw, bool) or (isinstance(raw, float) and not raw.is_integer()):
        raise ValueError
    return int(raw)


def _parse_float(raw: Any) -> float:
    if isinstance(raw, bool):
        raise ValueError
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError
    return value


def _parse_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError
    return raw.strip()


def _parse_names(raw: Any) -> tuple[str, ...]:
    parts = raw.split(",") if isinstance(raw, str) else list(raw)
    return tuple(name for name in (_parse_text(part) for part in parts) if name)


_PARSERS: dict[type, Callable[[Any], Any]] = {
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    str: _parse_text,
    tuple: _parse_names,
}
_ACCEPTED: dict[type, str] = {
    bool: "1/true/yes/on or 0/false/no/off",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a comma-separated list",
}
