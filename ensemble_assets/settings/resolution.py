"""Resolve options through all layers, weakest first, and remember the origin of every value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings.option_table import options
from ensemble_assets.settings.options import Settings
from ensemble_assets.settings.sources import Layer, dotted, nested, process_environment, read_layers


def flatten(settings: Settings) -> dict[str, Any]:
    """Return all values by dotted key."""
    return dotted(settings.model_dump())


@dataclass(frozen=True)
class Origin:
    """The source of a value in words, and its layer: ``default``, ``config file``, ``.env``, ``environment`` or run."""

    layer: str
    source: str


@dataclass(frozen=True)
class Resolved:
    """Settings, the origin of every value by dotted key, and the environment in which they were resolved.

    The environment has values that are no options (``OTEL_*``, keys of servers). It may hold secrets. ``outvoted`` has
    the rows of layers, other than the defaults, that a stronger one overruled; the weakest layer comes first.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    outvoted: tuple[dict[str, Any], ...] = ()

    def provenance(self, *keys: str) -> list[dict[str, Any]]:
        """Return rows ``{key, value, source, layer}`` for the manifest, of all options if no key is named.

        Every layer that set a key has a row; the last row of a key is the one that counts.
        """
        values = flatten(self.settings)
        return [row for key in (keys or values) for row in (*self._overruled(key), self._row(key, values[key]))]

    def _overruled(self, key: str) -> list[dict[str, Any]]:
        return [row for row in self.outvoted if row["key"] == key]

    def _row(self, key: str, value: Any) -> dict[str, Any]:
        shown = list(value) if isinstance(value, tuple) else value
        return {"key": key, "value": shown, "source": self.origins[key].source, "layer": self.origins[key].layer}

    def with_layer(self, layer: Layer) -> Resolved:
        """Return these settings with a stronger layer's values; ``SettingsError`` for an unknown key or a bad value."""
        before = flatten(self.settings)
        values = before | _typed(layer)
        overruled = [self._row(k, before[k]) for k in layer.values if self.origins[k].layer != "default"]
        origins = {**self.origins, **{key: Origin(layer.name, layer.source(key)) for key in layer.values}}
        settings = Settings.model_validate(nested(values))
        return replace(self, settings=settings, origins=origins, outvoted=(*self.outvoted, *overruled))

    def with_overrides(self, overrides: Mapping[str, Any], sources: Mapping[str, str]) -> Resolved:
        """Return these settings with values of the run configuration or the command line, as text or typed.

        ``sources`` names the source of a key, such as ``--disable-rerank``; else it is ``run config <key>``.
        """
        return self.with_layer(Layer("run", overrides, lambda key: sources.get(key, f"run config {key}")))


def resolve(
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    override_sources: Mapping[str, str] | None = None,
) -> Resolved:
    """Resolve all layers: defaults < config file < ``.env`` < environment < ``overrides`` (run config or CLI).

    Files are read from ``folder``, the working directory unless given. An unknown key, or a value that is not accepted,
    is a ``SettingsError`` in every layer.
    """
    variables = process_environment() if environment is None else dict(environment)
    resolved = Resolved(Settings(), {key: Origin("default", "default") for key in options()}, variables)
    for layer in read_layers(variables, folder or Path.cwd()):
        resolved = resolved.with_layer(layer)
    return resolved.with_overrides(overrides or {}, override_sources or {})


def _advice(key: str) -> str:
    """Name the option that was meant, as far as its name says."""
    close = difflib.get_close_matches(key, options(), n=1)
    switch, group = f"enable_{key}", [option for option in options() if option.startswith(f"{key}.")]
    meant = [switch, *group] if switch in options() else group or close
    return f"Did you mean {' or '.join(map(repr, meant))}?" if meant else "docs/configuration.md lists them all"


def _typed(layer: Layer) -> dict[str, Any]:
    """Return a layer's values with their types; ``SettingsError`` with source, value and accepted values."""
    for key in layer.values:
        if key not in options():
            raise SettingsError(f"{layer.source(key)}: there is no option {key!r}. {_advice(key)}")
    try:
        typed = flatten(Settings.model_validate(nested(layer.values)))
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        key = next(key for key in layer.values if tuple(key.split(".")) == location[: key.count(".") + 1])
        raise SettingsError(
            f"{layer.source(key)}: {layer.values[key]!r} is not accepted for {key}; expected {options()[key].accepted}"
        ) from None
    return {key: typed[key] for key in layer.values}
