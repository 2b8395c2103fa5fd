"""Decide which collections are out of date, and why, from the records of their artefacts.

``pipeline/changed_collections.py`` notices changed folders; ``orchestration/schedules.py`` asks Dagster for runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import ChunksRecord, DenseRecord
from ensemble_assets.artefacts.stage_record import ModelFacts, Record, StageRecord
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.stages import BUNDLE_ASSETS, PIPELINE, STAGE, assets_read_by
from ensemble_assets.models.spec import HubSource, ModelSpec, PackageSource, PackedSource
from ensemble_assets.pipeline.from_settings import files_of
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import choose_models, late_model
from ensemble_assets.settings.default_paths import cache_folder

_SWITCHES = {stage.asset: stage.toggle for stage in PIPELINE if stage.toggle}


@dataclass(frozen=True)
class Preparation:
    """Preparation of texts for a model, with its limit in tokens.

    ``is_limit`` says that the model may allow less: its files are not on this machine.
    """

    max_tokens: int
    is_limit: bool = False
    windows: int = 1
    query_prefix: str | None = None
    document_prefix: str | None = None

    def differs(self, used: ModelFacts) -> bool:
        """Whether texts were prepared otherwise; facts that an earlier version did not record count as the same."""
        recorded = (used.windows, used.query_prefix, used.document_prefix)
        wanted = (self.windows, self.query_prefix, self.document_prefix)
        pairs = zip(recorded, wanted, strict=True)  # a prefix that only the model's files know is None
        if any(None not in (value, now) and value != now for value, now in pairs):
            return True
        tokens = self.max_tokens if used.max_tokens is None else used.max_tokens
        if not self.max_tokens:  # as the model's files say
            return False
        return tokens > self.max_tokens if self.is_limit else tokens != self.max_tokens


@dataclass(frozen=True)
class Wanted:
    """The code versions, models, switches and text preparation that a run would use today, by asset.

    ``models`` are ``slug#fingerprint``, ``slug@revision``, or the slug where no more is known. ``prepared`` is also by
    slug. ``searched`` says what of a chunk's text is searched; None where it does not matter.
    """

    code_versions: Mapping[str, str]
    models: Mapping[str, frozenset[str]]
    switched_on: Mapping[str, bool]
    prepared: Mapping[str, Mapping[str, Preparation]] = field(default_factory=dict)
    searched: str | None = None


def wanted_now(settings: Settings, code_versions: Mapping[str, str]) -> Wanted:
    """Describe the run that the settings of this process ask for. Nothing is downloaded."""
    chosen = choose_models(settings.models)
    by_stage = {"dense": chosen.dense, "sparse": chosen.sparse, "rerank": (chosen.rerank,)}
    specs = {STAGE[stage].asset: models for stage, models in by_stage.items()}
    late, reranks = late_model(settings), STAGE["rerank"].asset
    used = specs | ({reranks: (*specs[reranks], late)} if late else {})
    return Wanted(
        code_versions=code_versions,
        models={asset: frozenset(_identity(spec, settings) for spec in wanted) for asset, wanted in used.items()},
        switched_on={asset: bool(getattr(settings, switch)) for asset, switch in _SWITCHES.items()},
        prepared={
            asset: {spec.slug: _preparation(spec, settings) for spec in wanted} for asset, wanted in specs.items()
        },
        searched=settings.chunks.searched,
    )


def stale_reasons(
    fingerprint: str | None,
    artefacts: Mapping[str, Artefact | None],
    wanted: Wanted,
    failed_checks: Collection[str] = (),
) -> tuple[str, ...]:
    """Say why a collection has to be run again, in fixed words with asset or check names; empty if it has not.

    ``fingerprint`` is that of its folder now; None where that is not known. ``failed_checks`` are checks of severity
    ERROR whose last result is a failure.
    """
    reasons = [f"never_materialised:{asset}" for asset in BUNDLE_ASSETS if artefacts.get(asset) is None]
    present = {asset: artefact for asset in BUNDLE_ASSETS if (artefact := artefacts.get(asset)) is not None}
    chunks = present.get(STAGE["chunks"].asset)
    if fingerprint is not None and chunks is not None and chunks.record.source_fingerprint != fingerprint:
        reasons.append("chunks_changed")
    for asset, artefact in present.items():
        record: Record = artefact.record
        if record.code_version != wanted.code_versions.get(asset):
            reasons.append(f"code_changed:{asset}")
        if isinstance(record, StageRecord) and _model_changed(record, wanted.models.get(asset)):
            reasons.append(f"model_changed:{asset}")
        searched = record.searched if isinstance(record, ChunksRecord) and wanted.searched is not None else None
        if searched not in (None, wanted.searched) or _prepared_otherwise(record, wanted.prepared.get(asset, {})):
            reasons.append(f"texts_prepared_otherwise:{asset}")
        if asset in wanted.switched_on and record.enabled != wanted.switched_on[asset]:
            reasons.append(f"switched:{asset}")
        if any(present[source].began > artefact.began for source in assets_read_by(asset) if source in present):
            reasons.append(f"older_than_input:{asset}")
    return (*reasons, *(f"check_failed:{name}" for name in sorted(failed_checks)))


def _model_changed(record: StageRecord, wanted: frozenset[str] | None) -> bool:
    """Whether a model made the artefact that is not wanted, or a wanted one was neither used nor tried in vain."""
    if not wanted or not record.models:
        return False
    identities = {
        model.slug: {f"{model.slug}@{model.revision}", f"{model.slug}#{model.fingerprint}", model.slug}
        for model in record.models
    }
    if any(not names & wanted for names in identities.values()):
        return True
    # Every dense model contributes; in the other stages a second model only stands in for the first.
    tried = {*identities, *record.dropped} if isinstance(record, DenseRecord) else {_slug(name) for name in wanted}
    return not {_slug(name) for name in wanted} <= tried


def _prepared_otherwise(record: Record, wanted: Mapping[str, Preparation]) -> bool:
    """Whether a model that is still wanted took texts of another length, or with other prefixes."""
    used = record.models if isinstance(record, StageRecord) else ()
    return any(wanted[model.slug].differs(model) for model in used if model.slug in wanted)


def _preparation(spec: ModelSpec, settings: Settings) -> Preparation:
    """Describe the preparation for a model, as far as this machine has its files."""
    from ensemble_assets.compute.backends.library.describe import describe

    here = isinstance(spec.source, PackageSource)
    try:
        spec = describe(spec, files_of(spec, settings), cache_folder(settings.paths)).spec if here else spec
    except ModelUnavailableError:
        here = False
    return Preparation(spec.max_tokens, not here, spec.windows, spec.query_prefix, spec.document_prefix)


def _slug(identity: str) -> str:
    return identity.replace("#", "@").partition("@")[0]


def _identity(spec: ModelSpec, settings: Settings) -> str:
    """Name the model as precisely as this machine can without a download."""
    if isinstance(spec.source, HubSource):
        return f"{spec.slug}@{spec.source.revision}" if spec.source.is_pinned else spec.slug
    if isinstance(spec.source, PackedSource):
        return f"{spec.slug}#{spec.source.fingerprint}"
    try:
        return f"{spec.slug}#{files_of(spec, settings).fingerprint}"
    except ModelUnavailableError:
        return spec.slug
