"""Which models a run uses: the profile, overridden by the named models. Decides; loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.custom_models import ModelCatalogue, read_catalogue
from ensemble_assets.models.registry import PROFILES, ModelKind, ModelSpec
from ensemble_assets.settings.options import Models


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
    """The models that the settings name.

    Raises:
        SettingsError: for an unknown model, a model of the wrong kind, or one named twice.
    """
    catalogue = _catalogue(models)
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


def _refuse_equal_slugs(specs: tuple[ModelSpec, ...], kind: ModelKind) -> None:
    """Refuse one model named twice, and two models that would share files because they have one slug.

    Raises:
        SettingsError: naming both.
    """
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


def _catalogue(models: Models) -> ModelCatalogue:
    if models.profile == "custom":
        if not models.file:
            raise SettingsError("profile custom needs models.file: a YAML file, see docs/models.md")
        return read_catalogue(Path(models.file))
    return ModelCatalogue({}, PROFILES[models.profile])
