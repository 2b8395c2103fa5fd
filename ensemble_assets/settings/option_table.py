"""Describe every option by its dotted key: its environment variable and its accepted values, for forms and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from ensemble_assets.common.defaults import FILE_PREFIX_WORDS
from ensemble_assets.settings.options import Settings
from ensemble_assets.settings.section import Names, Section

_SHORT_VARIABLES = {
    "models.profile": "EMBEDDER_PROFILE",
    "models.ensemble": "EMBEDDER_ENSEMBLE_MODELS",
    "models.sparse": "EMBEDDER_SPARSE_MODELS",
    "models.rerank": "EMBEDDER_RERANK_MODEL",
    "models.file": "EMBEDDER_MODELS_FILE",
    "paths.chunked_dir": "EMBEDDER_CHUNKED_DIR",
    "paths.output_dir": "EMBEDDER_OUTPUT_DIR",
    "paths.artifacts_dir": "EMBEDDER_ARTIFACTS_DIR",
    "paths.key_file": "EMBEDDER_KEY_FILE",
}
"""Environment variables that are shorter than the option's key: the names of version 4.0."""

_TYPE_WORDS: dict[Any, str] = {
    bool: "1/true/yes/on or 0/false/no/off",
    int: "a whole number",
    float: "a number",
    str: "text",
    Names: "a comma-separated list",
}


@dataclass(frozen=True)
class Option:
    """One option by its dotted key, as ``--set`` takes it: its type, default, bounds and help text."""

    key: str
    field: FieldInfo

    @property
    def variable(self) -> str:
        """Name of its environment variable."""
        return _SHORT_VARIABLES.get(self.key) or "EMBEDDER_" + self.key.replace(".", "_").upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The accepted words, if it is a choice."""
        kind = self.field.annotation
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.choices:
            return "one of " + ", ".join(choice or "(empty)" for choice in self.choices)
        if any(getattr(bound, "pattern", None) for bound in self.field.metadata):
            return FILE_PREFIX_WORDS
        low = [f"at least {bound.ge:,}" for bound in self.field.metadata if isinstance(bound, Ge)]
        high = [f"at most {bound.le:,}" for bound in self.field.metadata if isinstance(bound, Le)]
        return ", ".join([_TYPE_WORDS[self.field.annotation], *(words.removesuffix(".0") for words in (*low, *high))])


@lru_cache(maxsize=1)
def options() -> Mapping[str, Option]:
    """Return every option by its dotted key, in the order of their classes."""
    fields: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        inner = type(field.default).model_fields if isinstance(field.default, Section) else None
        fields |= {name: field} if inner is None else {f"{name}.{key}": value for key, value in inner.items()}
    return MappingProxyType({key: Option(key, field) for key, field in fields.items()})
