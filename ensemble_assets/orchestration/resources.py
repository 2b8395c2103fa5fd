"""Make the Dagster resource of the settings as one Launchpad form. Nothing is opened or leased here.

The form is generated from the settings models, so it has every option with its help text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from ensemble_assets.settings import Resolved, Settings, flatten, options, resolve
from ensemble_assets.settings.chosen_models import choose_models
from ensemble_assets.settings.section import Names, Section
from ensemble_assets.settings.sources import dotted, nested

_LAUNCHPAD = (
    "chunks.headings",
    "enable_rerank", "enable_sparse",
    "models.ensemble", "models.profile", "models.rerank", "models.sparse", "models.windows",
    "queries.file", "queries.qrels",
    "rerank.budget", "rerank.depth",
)  # fmt: skip
"""Options that the Launchpad opens with: the ones that a person is most likely to change for one run.

Dagster sorts all keys by name. Of these the names happen to be in the order of the pipeline, which a test holds.
"""


class SettingsForm(dg.ConfigurableResource[Any]):
    """Base of the settings resource; ``settings_form`` adds one field per option.

    The command line fills ``sources``, the names of the sources of changed values by option key.
    """

    sources: dict[str, str] = Field(default={}, description="Names of the sources of changed values, for provenance.")

    @cached_property
    def _resolved(self) -> Resolved:
        return _resolved_with(self.model_dump(), self.sources)

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


def _resolved_with(content: Mapping[str, Any], sources: Mapping[str, str]) -> Resolved:
    """Resolve the settings of this process with a form's content on top."""
    lower = resolve()
    below = flatten(lower.settings)
    return lower.with_overrides(
        {key: value for key, value in form_values(content).items() if value != below[key]}, sources
    )


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
            names = field.annotation == Names
            shown = list(value) if names else value
            now = ", ".join(value) if names else value
            words = (
                f"{field.description} Accepted: {option.accepted}. Environment: {option.variable}. "
                f"Unless set here: {'(empty)' if now == '' else now}."
            )
            fields[name] = (list[str] if names else field.annotation, Field(default=shown, description=words))
    return fields


def _launchpad_schema(fields: Mapping[str, dg.Field], shown: Collection[str], prefix: str = "") -> dg.Shape:
    """Make the schema of a form whose scaffold has the ``shown`` options only; all others may be given too."""
    made: dict[str, dg.Field] = {}
    for name, field in fields.items():
        if isinstance(field.config_type, dg.Shape):
            inner = _launchpad_schema(field.config_type.fields, shown, f"{prefix}{name}.")
            made[name] = dg.Field(inner, description=field.description)
        elif prefix + name in shown:
            made[name] = field
        else:  # optional without a default: Dagster leaves it out, and the form fills it in
            made[name] = dg.Field(field.config_type, is_required=False, description=field.description)
    return dg.Shape(made)  # type: ignore[no-untyped-call]


def settings_resource(current: Settings) -> dg.ResourceDefinition:
    """Make the settings resource of a code location, checked before a run starts.

    The Launchpad opens with a dozen options, and with the options that ``current`` has changed; the schema beside it
    has all.

    Dagster's own check knows types and closed lists of words only. Values out of range, unknown models and broken
    custom model files are refused when Dagster plans the run, which is before it is stored or queued.
    """
    form = settings_form(current)

    def make(context: dg.InitResourceContext) -> SettingsForm:
        return form(**context.resource_config)

    def checked(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration unchanged, or raise ``SettingsError``. Dagster asks three times a run.

        A form is not made for it: Dagster derives the schema of all options anew for each.
        """
        choose_models(_resolved_with(config, config.get("sources") or {}).settings.models)
        return dict(config)

    values = flatten(current)
    changed = (key for key, option in options().items() if values[key] != option.field.default)
    schema = _launchpad_schema(form.to_fields_dict(), {*_LAUNCHPAD, *changed})
    inner = dg.ResourceDefinition(make, config_schema=schema, description=form.__doc__)
    return inner.configured(checked, config_schema=schema, description=form.__doc__)


def settings_run_config(overrides: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the run configuration that sets ``overrides`` (typed values by dotted key)."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    return {"resources": {"settings": {"config": {"sources": dict(sources), **nested(values)}}}}
