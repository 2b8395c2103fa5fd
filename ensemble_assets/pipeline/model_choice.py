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
        if len({spec.slug for spec in chosen}) != len(chosen):
            raise SettingsError(f"a {kind} model is named twice: {', '.join(s.slug for s in chosen)}")
        return chosen

    reranker = spec_of(models.rerank or profile.rerank, "rerank")
    return ModelChoice(
        dense=specs(models.ensemble, profile.dense, "dense"),
        sparse=specs(models.sparse, profile.sparse, "sparse"),
        rerank=replace(reranker, max_tokens=models.rerank_tokens or reranker.max_tokens),
    )


def _catalogue(models: Models) -> ModelCatalogue:
    if models.profile == "custom":
        if not models.file:
            raise SettingsError("profile custom needs models.file: a YAML file, see docs/models.md")
        return read_catalogue(Path(models.file))
    return ModelCatalogue({}, PROFILES[models.profile])
