"""Which collections are out of date, and why: a pure decision over what the artefacts say of themselves.

Changed folders are noticed by ``discovery``; asking Dagster for runs is ``schedules``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.stages import BUNDLE_ASSETS, PIPELINE, assets_read_by
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import HubSource, ModelSpec
from ensemble_assets.pipeline.changed_collections import FINGERPRINT
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.settings import Settings

CODE_VERSION = "code_version"
"""Fact of every artefact: version of the code that made it."""

_SWITCHES = {stage.asset: stage.toggle for stage in PIPELINE if stage.toggle}
_ALL_MODELS_RUN = {"dense_embeddings"}
"""Where every wanted model contributes; elsewhere a second one stands in for the first."""

_STAMP = len("20260101T000000")
_COMMIT_DIGITS = 40


@dataclass(frozen=True)
class Preparation:
    """How texts are prepared for a model, under the names that artefacts have for it.

    Attributes:
        max_tokens: an upper limit where the model's files are not on this machine: they may allow less.
        is_limit: whether that is so.
    """

    max_tokens: int
    is_limit: bool = False
    windows: int = 1
    query_prefix: str = ""
    document_prefix: str = ""

    def differs(self, used: Mapping[str, Any]) -> bool:
        """Whether a model was run otherwise; what an artefact of an earlier version does not say counts as the same."""
        same = ("windows", "query_prefix", "document_prefix")
        if any(name in used and used[name] != getattr(self, name) for name in same):
            return True
        tokens = used.get("max_tokens", self.max_tokens)
        return bool(tokens > self.max_tokens if self.is_limit else tokens != self.max_tokens)


@dataclass(frozen=True)
class Wanted:
    """What a run would use today.

    Attributes:
        code_versions: by asset.
        models: identities by asset: ``slug#fingerprint``, ``slug@revision``, or the slug where no more is known here.
        switched_on: by asset, where it can be switched off.
        prepared: by asset and slug.
        searched: what of a chunk's text is searched; None where it does not matter.
    """

    code_versions: Mapping[str, str]
    models: Mapping[str, frozenset[str]]
    switched_on: Mapping[str, bool]
    prepared: Mapping[str, Mapping[str, Preparation]] = field(default_factory=dict)
    searched: str | None = None


def wanted_now(settings: Settings, code_versions: Mapping[str, str]) -> Wanted:
    """What the settings of this process ask for; nothing is downloaded."""
    chosen = choose_models(settings.models)
    specs = {
        "dense_embeddings": chosen.dense,
        "sparse_vectors": chosen.sparse,
        "reranked_candidates": (chosen.rerank,),
    }
    return Wanted(
        code_versions=code_versions,
        models={asset: frozenset(map(_identity, wanted)) for asset, wanted in specs.items()},
        switched_on={asset: bool(getattr(settings, switch)) for asset, switch in _SWITCHES.items()},
        prepared={asset: {spec.slug: _preparation(spec) for spec in wanted} for asset, wanted in specs.items()},
        searched=settings.chunks.searched,
    )


def stale_reasons(
    fingerprint: str | None,
    facts: Mapping[str, Mapping[str, Any] | None],
    wanted: Wanted,
    failed_checks: Collection[str] = (),
) -> tuple[str, ...]:
    """Why a collection has to be run again, in fixed words with asset or check names; empty where it has not.

    Args:
        fingerprint: of its folder now; None where that is not known.
        facts: what each asset's current artefact says of itself, by asset; None where there is none.
        wanted: what a run would use.
        failed_checks: names of checks of severity ERROR whose last result is a failure.
    """
    reasons = [f"never_materialised:{asset}" for asset in BUNDLE_ASSETS if facts.get(asset) is None]
    there = {asset: found for asset in BUNDLE_ASSETS if (found := facts.get(asset)) is not None}
    if fingerprint is not None and "chunks" in there and there["chunks"].get(FINGERPRINT) != fingerprint:
        reasons.append("chunks_changed")
    for asset, found in there.items():
        if found.get(CODE_VERSION) != wanted.code_versions.get(asset):
            reasons.append(f"code_changed:{asset}")
        if _model_changed(found, asset, wanted):
            reasons.append(f"model_changed:{asset}")
        if _prepared_otherwise(found, wanted.prepared.get(asset, {})) or _searched_otherwise(found, wanted):
            reasons.append(f"texts_prepared_otherwise:{asset}")
        if asset in wanted.switched_on and (found.get("status") != "feature_disabled") != wanted.switched_on[asset]:
            reasons.append(f"switched:{asset}")
        if any(_began(there[source]) > _began(found) for source in assets_read_by(asset) if source in there):
            reasons.append(f"older_than_input:{asset}")
    return (*reasons, *(f"check_failed:{name}" for name in sorted(failed_checks)))


def _model_changed(found: Mapping[str, Any], asset: str, wanted: Wanted) -> bool:
    """Whether a model made it that is not wanted, or one that is wanted was neither used nor tried in vain."""
    expected, used = wanted.models.get(asset), found.get("models")
    if not expected or not used:
        return False
    alike = {model["slug"]: {_at(model["slug"], model["revision"]), _of(model["slug"], model["fingerprint"]),
                             model["slug"]} for model in used}  # fmt: skip
    unwanted = any(not names & expected for names in alike.values())
    tried = set(alike) | set(found.get("dropped", {}))
    return unwanted or (asset in _ALL_MODELS_RUN and not {_slug(name) for name in expected} <= tried)


def _prepared_otherwise(found: Mapping[str, Any], wanted: Mapping[str, Preparation]) -> bool:
    """Whether a model that is still wanted took texts of another length, or with other prefixes."""
    used = found.get("models") or ()
    return any(wanted[model["slug"]].differs(model) for model in used if model["slug"] in wanted)


def _searched_otherwise(found: Mapping[str, Any], wanted: Wanted) -> bool:
    return "searched" in found and wanted.searched not in (None, found["searched"])


def _preparation(spec: ModelSpec) -> Preparation:
    """As far as it can be told here without a download."""
    from ensemble_assets.models.model_config import complete_spec

    here = not isinstance(spec.source, HubSource)
    try:
        spec = complete_spec(spec, locate(spec)) if here else spec
    except ModelUnavailableError:
        here = False
    return Preparation(spec.max_tokens, not here, spec.windows, spec.query_prefix, spec.document_prefix)


def _at(slug: str, revision: str) -> str:
    return f"{slug}@{revision}"


def _of(slug: str, fingerprint: str) -> str:
    return f"{slug}#{fingerprint}"


def _slug(identity: str) -> str:
    return identity.replace("#", "@").partition("@")[0]


def _began(found: Mapping[str, Any]) -> str:
    """The second at which the stage began, as sortable text."""
    return str(found.get("folder", ""))[:_STAMP]


def _identity(spec: ModelSpec) -> str:
    """The model as precisely as can be told here without a download."""
    if isinstance(spec.source, HubSource):
        return _at(spec.slug, spec.source.revision) if len(spec.source.revision) == _COMMIT_DIGITS else spec.slug
    try:
        return _of(spec.slug, locate(spec).fingerprint)
    except ModelUnavailableError:
        return spec.slug
