"""Dagster resources: the settings as one Launchpad form, and progress reporting. Nothing is opened or leased here.

The settings form is made from the option table, so it cannot drift from it. What each option means is ``settings``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import dagster as dg
from pydantic import Field, create_model

from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.settings import Resolved, Settings, flatten, options, resolve
from ensemble_assets.settings.values import Option


def _form_field(option: Option, value: Any) -> tuple[Any, Any]:
    unit = f" [{option.unit}]" if option.unit else ""
    accepted = f" Accepted: {option.accepted}. Environment: {option.env}."
    kind: Any = list[str] if isinstance(option.default, tuple) else type(option.default)
    if option.choices:  # a closed list, so that the Launchpad itself marks any other word
        kind = Literal[option.choices]
    shown = list(value) if isinstance(value, tuple) else value
    return kind, Field(default=shown, description=f"{option.help}{unit}.{accepted}")


def _form_sections(current: Settings) -> dict[str, tuple[Any, Any]]:
    """One nested form per settings section, one field per top-level option; defaults are today's effective values."""
    values = flatten(current)
    known = options()
    fields: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(Settings):
        if f.name in known:
            fields[f.name] = _form_field(known[f.name], values[f.name])
        else:
            rows = {
                key.partition(".")[2]: _form_field(option, values[key])
                for key, option in known.items()
                if key.startswith(f.name + ".")
            }
            section: Any = create_model(f"{f.name.title()}Form", __base__=dg.Config, **rows)  # type: ignore[call-overload]
            fields[f.name] = (section, Field(default=section(), description=(type(getattr(current, f.name)).__doc__)))
    return fields


class SettingsForm(dg.ConfigurableResource[Any]):
    """Base of the settings resource; one field per option is added from the option table by ``settings_form``.

    Attributes:
        sources: how the sources of changed values are called in the provenance, by option key; the command line
            fills it.
    """

    sources: dict[str, str] = Field(default={}, description="Names of the sources of changed values, for provenance.")

    def resolved(self) -> Resolved:
        """All settings with provenance: values changed in the run configuration win, others keep their own origin."""
        lower = resolve()
        below = flatten(lower.settings)
        changed = {key: value for key, value in self._given().items() if _differs(value, below[key])}
        return resolve(changed, override_sources=self.sources)

    def _given(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for key in options():
            section, _, name = key.rpartition(".")
            given[key] = getattr(getattr(self, section) if section else self, name)
        return given


def _differs(given: Any, below: Any) -> bool:
    return bool((tuple(given) if isinstance(given, list) else given) != below)


def settings_form(current: Settings) -> type[SettingsForm]:
    """The settings resource class whose fields and defaults show ``current``."""
    made: type[SettingsForm] = create_model("PipelineSettings", __base__=SettingsForm, **_form_sections(current))  # type: ignore[call-overload]
    made.__doc__ = "All options of the pipeline. Defaults shown are this code location's effective values."
    return made


def settings_resource(current: Settings) -> dg.ResourceDefinition:
    """The settings as the resource of a code location: shown with ``current``, looked through before a run starts.

    Dagster's own check knows types and closed lists of words only. Values out of range, unknown models and broken
    custom model files are refused when Dagster plans the run, which is before it is stored or queued.
    """
    form = settings_form(current)

    def make(context: dg.InitResourceContext) -> SettingsForm:
        return form(**context.resource_config)

    def looked_through(config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration as it is.

        Raises:
            SettingsError: for a value that is not accepted.
        """
        choose_models(form(**config).resolved().settings.models)
        return dict(config)

    schema = form.to_config_schema()
    inner = dg.ResourceDefinition(make, config_schema=schema, description=form.__doc__)
    return inner.configured(looked_through, config_schema=schema, description=form.__doc__)


def settings_run_config(overrides: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """The run configuration that sets ``overrides`` (typed values by dotted key)."""
    config: dict[str, Any] = {"sources": dict(sources)}
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[name] = (
            list(value) if isinstance(value, tuple) else value
        )
    return {"resources": {"settings": {"config": config}}}


class Progress(Protocol):
    """Hears when stages begin and end, for live display. Numbers and names only."""

    def stage_started(self, stage: str, collection: str) -> None:
        """A stage begins."""
        ...

    def stage_finished(self, stage: str, collection: str, facts: dict[str, Any]) -> None:
        """A stage ended; ``facts`` is its stage record."""
        ...


class SilentProgress:
    """The default under Dagster, whose UI shows progress itself."""

    def stage_started(self, stage: str, collection: str) -> None:
        """Says nothing."""

    def stage_finished(self, stage: str, collection: str, facts: dict[str, Any]) -> None:
        """Says nothing."""
