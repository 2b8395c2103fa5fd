"""Read the layers below the run configuration: config file, ``.env`` and process environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings.option_table import options

CONFIG_VARIABLE = "EMBEDDER_CONFIG"
CONFIG_NAME = "ensemble.yaml"
WEBHOOK_VARIABLE = "EMBEDDER_INCIDENT_WEBHOOK"

_PREFIX = "EMBEDDER_"
_OTHER_VARIABLES = {CONFIG_VARIABLE, WEBHOOK_VARIABLE}
_A_TYPO = 0.9
"""Likeness from which a variable's name counts as mistyped: two letters of twenty. Other programs may use it."""


def dotted(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys: ``{"rerank": {"depth": 5}}`` becomes ``{"rerank.depth": 5}``."""
    pairs: dict[str, Any] = {}
    for key, value in content.items():
        pairs |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested sections: ``{"rerank.depth": 5}`` becomes ``{"rerank": {"depth": 5}}``."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


@dataclass(frozen=True)
class Layer:
    """Values of one layer by dotted key as they were written; ``source`` names the source of a key's value."""

    name: str
    values: Mapping[str, Any]
    source: Callable[[str], str]


def process_environment() -> dict[str, str]:
    """Return a copy of this process's environment variables. Nothing else in the package reads them."""
    return dict(os.environ)


def read_layers(environment: Mapping[str, str], folder: Path) -> list[Layer]:
    """Read config file, ``.env`` and environment, weakest first.

    A named config file that is missing, or is no YAML mapping, is a ``SettingsError``.
    """
    dotenv = {name: text for name, text in dotenv_values(folder / ".env").items() if text is not None}
    file = environment.get(CONFIG_VARIABLE) or dotenv.get(CONFIG_VARIABLE)
    return [
        _config_layer(file, folder),
        _variables_layer(".env", dotenv, " in .env"),
        _variables_layer("environment", environment, ""),
    ]


def _variables_layer(name: str, variables: Mapping[str, str], place: str) -> Layer:
    """Return the options that variables set; a mistyped name is a ``SettingsError``. An empty value is no value."""
    of_options = {option.variable: key for key, option in options().items()}
    ours = {variable for variable in variables if variable.startswith(_PREFIX)}
    for strange in sorted(ours - of_options.keys() - _OTHER_VARIABLES):
        if meant := difflib.get_close_matches(strange, of_options, n=1, cutoff=_A_TYPO):
            raise SettingsError(f"environment variable {strange}{place}: no option has it. Did you mean {meant[0]}?")
    values = {key: text for variable, key in of_options.items() if (text := variables.get(variable))}
    return Layer(name, values, lambda key: f"environment variable {options()[key].variable}{place}")


def _config_layer(named: str | None, folder: Path) -> Layer:
    path = Path(named) if named else folder / CONFIG_NAME
    if not path.is_file():
        if named:
            raise SettingsError(f"{CONFIG_VARIABLE} names {named}, which is not a file. Correct it or unset it")
        return Layer("config file", {}, str)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f", line {line + 1}" if line is not None else ""
        raise SettingsError(f"{path.name}{place}: is not valid YAML in UTF-8. Correct the file") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path.name}: expected a mapping of options, found {type(content).__name__}")
    filled = {key: value for key, value in content.items() if value is not None}  # a section with nothing under it
    return Layer("config file", dotted(filled), lambda key: f"{path.name} {key}")
