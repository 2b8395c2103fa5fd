"""Choose the models of a run from the settings. Nothing is loaded, so that a mistyped name is an error at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.custom_models import ModelCatalogue, read_catalogue
from ensemble_assets.models.registry import PROFILES
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.settings.options import Models, Settings


@dataclass(frozen=True)
class ModelChoice:
    """The models of one run; the first dense one is the primary."""

    dense: tuple[ModelSpec, ...]
    sparse: tuple[ModelSpec, ...]
    rerank: ModelSpec

    @property
    def primary(self) -> ModelSpec:
        """The dense model that names the bundle's vectors."""
        return self.dense[0]


def choose_models(models: Models) -> ModelChoice:
    """Choose the models: those of the profile, unless the settings name others. Nothing is loaded.

    An unknown model, a model of the wrong kind and one named twice are a ``SettingsError``.
    """
    if models.profile != "custom":
        catalogue = ModelCatalogue({}, PROFILES[models.profile])
    elif models.file:
        catalogue = read_catalogue(Path(models.file))
    else:
        raise SettingsError("profile custom needs models.file: a YAML file, see docs/models.md")
    profile = catalogue.profile

    def spec_of(slug: str, kind: ModelKind) -> ModelSpec:
        spec = catalogue.spec(slug, kind)
        return replace(spec, windows=models.windows or spec.windows)

    def specs(named: tuple[str, ...], usual: tuple[str, ...], kind: ModelKind) -> tuple[ModelSpec, ...]:
        chosen = tuple(spec_of(slug, kind) for slug in (named or usual))
        _refuse_equal_slugs(chosen, kind)
        return chosen

    reranker = spec_of(models.rerank or profile.rerank, "rerank")
    return ModelChoice(
        dense=specs(models.ensemble, profile.dense, "dense"),
        sparse=specs(models.sparse, profile.sparse, "sparse"),
        rerank=replace(reranker, max_tokens=models.rerank_tokens or reranker.max_tokens),
    )


def late_model(settings: Settings) -> ModelSpec | None:
    """Choose the dense model for late interaction beside the reranker, with its share; None where it takes no part.

    The primary model's states are compared, if a share is set or was measured for it. A reranker that is late
    interaction itself has none beside it.
    """
    options, choice = settings.rerank, choose_models(settings.models)
    share = choice.primary.late_share if options.late_weight < 0 else options.late_weight
    on = settings.enable_rerank and options.late_interaction and choice.rerank.pooling != "late_interaction"
    return replace(choice.primary, late_share=share) if on and share > 0 else None


def require_consistent(settings: Settings) -> None:
    """Refuse a run that is to rerank and has nothing for it, and a models file that its profile does not read."""
    models, options = settings.models, settings.rerank
    if models.file and models.profile != "custom":
        raise SettingsError(
            f"models.file is set, and profile {models.profile} does not read it. Choose profile custom "
            "(models.profile, --profile custom), or leave models.file unset"
        )
    if settings.enable_rerank and not options.cross_encoder and late_model(settings) is None:
        beside = options.late_interaction and choose_models(settings.models).rerank.pooling != "late_interaction"
        why = "has no share (rerank.late_weight)" if beside else "is off beside it"
        raise SettingsError(
            f"rerank.cross_encoder is off, and late interaction {why}, so nothing reranks. Switch one of them on, or "
            "reranking off (enable_rerank=false, --disable-rerank)"
        )


def used_models(settings: Settings) -> tuple[ModelSpec, ...]:
    """List the models that a run with these settings may load: without those of stages that are off."""
    choice = choose_models(settings.models)
    sparse = choice.sparse if settings.enable_sparse else ()
    reranks = settings.enable_rerank and settings.rerank.cross_encoder
    return (*choice.dense, *sparse, *((choice.rerank,) if reranks else ()))


def _refuse_equal_slugs(specs: tuple[ModelSpec, ...], kind: ModelKind) -> None:
    """Refuse one model named twice, and two models that would share files because they have one slug."""
    by_slug: dict[str, ModelSpec] = {}
    for spec in specs:
        other = by_slug.setdefault(spec.slug, spec)
        if other is spec:
            continue
        if other.source == spec.source:
            raise SettingsError(f"the {kind} model {spec.slug} is named twice. Name it once")
        raise SettingsError(
            f"the {kind} models {other.hf_model_id} and {spec.hf_model_id} would both be called {spec.slug} in files "
            "and telemetry. Give one of them another slug in a models file (profile custom)"
        )


def named_models(settings: Settings) -> tuple[ModelSpec, ...]:
    """List the models that the options name, and that a run does not do without."""
    models, choice = settings.models, choose_models(settings.models)
    named = choice.dense[:1] if models.ensemble else ()  # companions are left to the dense stage
    named += choice.sparse[:1] if models.sparse and settings.enable_sparse else ()
    return named + ((choice.rerank,) if models.rerank and settings.enable_rerank else ())
