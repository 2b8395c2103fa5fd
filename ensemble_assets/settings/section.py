"""Define the base of the options' groups, and the kinds of values that several options have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from ensemble_assets.common.defaults import FILE_PREFIX

Names: TypeAlias = tuple[str, ...]
"""A list of names. In text, commas separate them."""
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
"""A part of a whole."""
FilePrefix: TypeAlias = Annotated[str, Field(pattern=f"^{FILE_PREFIX}$")]
"""The start of a file name."""


def option(default: object, description: str, ge: float | None = None, le: float | None = None) -> Any:
    """Declare an option by its default, its help text and its inclusive bounds."""
    return Field(default=default, description=description, ge=ge, le=le)


class Section(BaseModel):
    """Base of all groups of options."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _prepare(cls, value: Any, info: ValidationInfo) -> Any:
        """Split names at commas, strip texts, and refuse true and false as numbers."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind == Names and isinstance(value, str | list | tuple):
            names = value.split(",") if isinstance(value, str) else value
            stripped = [name.strip() if isinstance(name, str) else name for name in names]
            return tuple(name for name in stripped if name != "")
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError("a number is expected")
        return value.strip() if isinstance(value, str) else value


def table_rows(rows: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Split the rows ``PATTERN=VALUE`` of a table; a row without either is a ``ValueError``."""
    for row in rows:
        pattern, _, value = (part.strip() for part in row.partition("="))
        if not (pattern and value):
            raise ValueError("PATTERN=VALUE is expected")
        yield pattern, value
