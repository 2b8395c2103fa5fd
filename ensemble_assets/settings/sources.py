"""The layers under the run configuration: config file, ``.env`` and process environment.

Only reads them; what an option is and which layer wins is ``resolution``'s business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings.values import Option

CONFIG_VARIABLE = "EMBEDDER_CONFIG"
CONFIG_NAME = "ensemble.yaml"


@dataclass(frozen=True)
class Layer:
    """Raw values by option key, and how the source of each is called."""

    name: str
    values: Mapping[str, Any]
    source: Callable[[str], str]


def read_layers(known: Mapping[str, Option], environment: Mapping[str, str] | None, folder: Path | None) -> list[Layer]:
    """Config file, ``.env``, environment, weakest first.

    Raises:
        SettingsError: if the config file that was named is missing or is not a YAML mapping.
    """
    process = dict(os.environ if environment is None else environment)
    folder = folder or Path.cwd()
    dotenv = _read_dotenv(folder / ".env")
    env_keys = {option.env: key for key, option in known.items()}
    names = {key: option.env for key, option in known.items()}
    layers = [_config_layer(process.get(CONFIG_VARIABLE) or dotenv.get(CONFIG_VARIABLE), folder)]
    for name, variables, where in ((".env", dotenv, " in .env"), ("environment", process, "")):
        values = {env_keys[variable]: text for variable, text in variables.items() if variable in env_keys and text}
        layers.append(Layer(name, values, lambda key, w=where: f"environment variable {names[key]}{w}"))  # type: ignore[misc]
    return layers


def process_environment() -> dict[str, str]:
    """A copy of this process's environment, for the few parts that hand it on (telemetry's ``OTEL_*``)."""
    return dict(os.environ)


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
    return Layer("config file", dict(_dotted(content)), lambda key: f"{path.name} {key}")


def _dotted(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        pairs += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _read_dotenv(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    if not path.is_file():
        return {}
    return {name: text for name, text in dotenv_values(path).items() if text is not None}
