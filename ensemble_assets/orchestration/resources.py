"""Make the Dagster resource of the settings as one Launchpad form. Nothing is opened or leased here.

The form is generated from the settings models, so it has every option with its help text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from ensemble_assets.pipeline.from_settings import choose_models
from ensemble_assets.settings import Resolved, Settings, flatten, options, resolve
from ensemble_assets.settings.section import Names, Section
from ensemble_assets.settings.sources import dotted, nested


class SettingsForm(dg.ConfigurableResource[Any]):
    """Base of the settings resource; ``settings_form`` adds one field per option.

    The command line fills ``sources``, the names of the sources of changed values by option key.
    """

    sources: dict[str, str] = Field(default={}, description="Names of the sources of changed values, for provenance.")

    @cached_property
    def _resolved(self) -> Resolved:
        lower = resolve()
        below = flatten(lower.settings)
        return lower.with_overrides(
            {key: value for key, value in form_values(self.model_dump()).items() if value != below[key]}, self.sources
        )

    def resolved(self) -> Resolved:
        """Return all settings with provenance. Values changed in the run configuration win over the lower layers.

        They are resolved on the first call. Dagster makes one form per run and process, so all steps of a run in one
        process see the same settings, even if a file changes meanwhile.
        """
        return self._resolved


def form_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options' values by dotted key, from a form's content or a run configuration."""
    values = {key: value for key, value in dotted(content).items() if key in options()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def settings_form(current: Settings) -> type[SettingsForm]:
    """Make the settings resource class whose fields and defaults show ``current``."""
    made: type[SettingsForm] = create_model("PipelineSettings", __base__=SettingsForm, **_form_fields(current))  # type: ignore[call-overload]
    made.__doc__ = "All options of the pipeline. Defaults shown are this code location's effective values."
    return made


def _form_fields(current: Section, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the form's fields for a group of options: types that Dagster knows, current values, help texts."""
    fields: dict[str, tuple[Any, Any]] = {}
    for name, field in type(current).model_fields.items():
        value = getattr(current, name)
        if isinstance(value, Section):
            section: Any = create_model(f"{name.title()}Form", __base__=dg.Config, **_form_fields(value, f"{name}."))  # type: ignore[call-overload]
            fields[name] = (section, Field(default=section(), description=type(value).__doc__))
        else:
            option = options()[prefix + name]
            words = f"{field.description} Accepted: {option.accepted}. Environment: {option.variable}."
            names = field.annotation == Names
            shown = list(value) if names else value
            fields[name] = (list[str] if names else field.annotation, Field(default=shown, description=words))
    return fields


def settings_resource(current: Settings) -> dg.ResourceDefinition:
    """Make the settings resource of a code location: a form that shows ``current``, checked before a run starts.

    Dagster's own check knows types and closed lists of words only. Values out of range, unknown models and broken
    custom model files are refused when Dagster plans the run, which is before it is stored or queued.
    """
    form = settings_form(current)

    def make(context: dg.InitResourceContext) -> SettingsForm:
        return form(**context.resource_config)

    def checked(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration unchanged, or raise ``SettingsError``."""
        choose_models(form(**config).resolved().settings.models)
        return dict(config)

    schema = form.to_config_schema()
    inner = dg.ResourceDefinition(make, config_schema=schema, description=form.__doc__)
    return inner.configured(checked, config_schema=schema, description=form.__doc__)


def settings_run_config(overrides: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the run configuration that sets ``overrides`` (typed values by dotted key)."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    return {"resources": {"settings": {"config": {"sources": dict(sources), **nested(values)}}}}
