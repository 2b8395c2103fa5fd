"""Read from a bundle's manifest which models and rules its run had, and find these models on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemble_assets.asking.corpus import Corpus
from ensemble_assets.common.errors import EnsembleError, SettingsError
from ensemble_assets.models.custom_models import ModelCatalogue, read_catalogue
from ensemble_assets.models.registry import PROFILES
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.pipeline.first_stage import FusionRule
from ensemble_assets.retrieval.fusion import METHODS
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import named_models

_OPTION_OF: Mapping[ModelKind, str] = {
    "dense": "models.ensemble",
    "sparse": "models.sparse",
    "rerank": "models.rerank",
}


@dataclass(frozen=True)
class BundleRun:
    """The run that made a bundle.

    ``completed`` gives a model with all that its files say of it. ``note`` gets a sentence for a model that is not
    known here and is left out.
    """

    corpus: Corpus
    settings: Settings
    completed: Callable[[ModelSpec], ModelSpec]
    note: Callable[[str], None]

    @cached_property
    def rule(self) -> FusionRule:
        """How its lists were fused."""
        run, options = self.corpus.section("fusion_run"), self.settings.fusion
        method = METHODS.get(str(run.get("method")), METHODS[options.method])()
        share, lexical = run.get("dense_share", options.dense_weight), run.get("lexical_share", 0.0)
        return FusionRule(method, float(share), float(lexical), {})

    @cached_property
    def dense_specs(self) -> tuple[ModelSpec, ...]:
        """Its dense models, the primary one first; ``SettingsError`` for one that is not known here."""
        return tuple(self._spec_of(model, "dense") for model in self.corpus.dense_models)

    @cached_property
    def sparse_spec(self) -> ModelSpec | None:
        """Its sparse model; None where it had none or the model is not known here."""
        models = self.corpus.section("sparse_run").get("models")
        return self._optional(models[0], "sparse") if isinstance(models, list) and models else None

    @cached_property
    def rerank_spec(self) -> ModelSpec | None:
        """Its reranker, the model of late interaction if that was alone; None as for sparse models."""
        run = self.corpus.section("rerank_run")
        if not run.get("executed") or not run.get("model_name"):
            return None
        if self.late_spec and self.late_spec.slug == run["model_name"]:
            return self.late_spec
        return self._optional(run["model_name"], "rerank")

    @property
    def late_interaction(self) -> Mapping[str, Any]:
        """The manifest's section on late interaction; empty where it took no part."""
        return self.corpus.section("rerank_run", "payload", "late_interaction")

    @cached_property
    def late_spec(self) -> ModelSpec | None:
        """The dense model of late interaction; None where it took no part."""
        run = self.late_interaction
        same = [spec for spec in self.dense_specs if spec.slug == run.get("model")]
        return same[0] if same and run.get("queries") else None

    def _optional(self, slug: str, kind: ModelKind) -> ModelSpec | None:
        try:
            return self._spec_of({"slug": slug}, kind)
        except EnsembleError as error:
            self.note(f"{kind}: {error}; left out")
            return None

    def _spec_of(self, model: Mapping[str, Any], kind: ModelKind) -> ModelSpec:
        """Find the model among those that the options name, in the registry or the models file.

        It has the prefix and the limit that the run had. Where it has them anyway the spec stays as the run asked for
        it, so that what this machine knows of the model holds: finding it out again takes seconds.
        """
        stated = {key: model[key] for key in ("query_prefix", "max_tokens") if model.get(key) is not None}
        spec = self._known_spec(model, kind)
        return spec if stated.items() <= vars(self.completed(spec)).items() else replace(spec, **stated)

    def _known_spec(self, model: Mapping[str, Any], kind: ModelKind) -> ModelSpec:
        named = [spec for spec in named_models(self.settings) if (spec.kind, spec.slug) == (kind, model.get("slug"))]
        if named:
            return named[0]
        file = self.settings.models.file
        if model.get("revision") == "local" and not file:  # its id is that of no repository
            raise SettingsError(
                f"the bundle's model {model.get('slug')} was a folder. Name it as its run did, by --set "
                f"{_OPTION_OF[kind]}=FOLDER or --set models.file=FILE"
            )
        catalogue = read_catalogue(Path(file)) if file else ModelCatalogue({}, PROFILES["embedded"])
        names = [str(model[name]) for name in ("slug", "hf_model_id") if model.get(name)]
        for name in names:
            with suppress(SettingsError):
                return catalogue.spec(name, kind)
        raise SettingsError(f"the bundle's model {' or '.join(names)} is not known here. Name it as its run did")
