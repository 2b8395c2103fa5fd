"""Resolves options through all layers, weakest first, and remembers where every value came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings.options import Settings, flatten, options
from ensemble_assets.settings.sources import Layer, read_layers
from ensemble_assets.settings.values import Option


@dataclass(frozen=True)
class Origin:
    """Where one value came from.

    Attributes:
        layer: ``default``, ``config file``, ``.env``, ``environment`` or ``run``.
        source: in words, such as ``environment variable EMBEDDER_ENABLE_RERANK``.
    """

    layer: str
    source: str


@dataclass(frozen=True)
class Resolved:
    """Settings together with the origin of every value."""

    settings: Settings
    origins: Mapping[str, Origin]

    def provenance(self, *keys: str) -> list[dict[str, Any]]:
        """Rows ``{key, value, source, layer}`` for the manifest; all options if no key is named."""
        values = flatten(self.settings)
        return [
            {"key": k, "value": _plain(values[k]), "source": self.origins[k].source, "layer": self.origins[k].layer}
            for k in (keys or values)
        ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def resolve(
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    override_source: str = "run config",
    override_sources: Mapping[str, str] | None = None,
) -> Resolved:
    """Settings from all layers: defaults < config file < ``.env`` < environment < ``overrides`` (run config or CLI).

    Args:
        overrides: values by dotted key, as text or already typed.
        environment: the process environment unless given.
        folder: where ``ensemble.yaml`` and ``.env`` are looked for; the working directory unless given.
        override_source: how the overrides are called in the provenance, before their key.
        override_sources: the whole name of single overrides' sources, by key (``"--disable-rerank"``).

    Raises:
        SettingsError: for an unknown key or a value that is not accepted; names the source, the value and what is.
    """
    known = options()
    layers = read_layers(known, environment, folder)
    named = override_sources or {}
    layers.append(Layer("run", dict(overrides or {}), lambda key: named.get(key, f"{override_source} {key}")))
    values: dict[str, Any] = {}
    origins = {key: Origin("default", "default") for key in known}
    for layer in layers:
        for key, raw in layer.values.items():
            source = layer.source(key)
            if key not in known:
                raise SettingsError(f"{source}: there is no option {key!r}.{_nearest(key, known)}")
            values[key] = known[key].parse(raw, source)
            origins[key] = Origin(layer.name, source)
    return Resolved(_build(values), origins)


def _nearest(key: str, known: Mapping[str, Option]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else " docs/configuration.md lists them all"


def _build(values: Mapping[str, Any]) -> Settings:
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (sections.setdefault(section, {}) if section else top)[name] = value
    defaults = Settings()
    made = {name: dataclasses.replace(getattr(defaults, name), **kv) for name, kv in sections.items()}
    return dataclasses.replace(defaults, **top, **made)
