"""Read the record of a stage from the facts of an artefact, also of an earlier version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from ensemble_assets.artefacts.records import (
    ChunksRecord,
    DenseRecord,
    EvaluationRecord,
    ExportRecord,
    FusionRecord,
    QdrantRecord,
    QueriesRecord,
    RerankRecord,
    SparseRecord,
)
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ArtefactError

RECORDS: dict[str, type[Record]] = {
    "chunks": ChunksRecord,
    "queries": QueriesRecord,
    "dense": DenseRecord,
    "sparse": SparseRecord,
    "fusion": FusionRecord,
    "rerank": RerankRecord,
    "evaluation": EvaluationRecord,
    "export": ExportRecord,
    "qdrant": QdrantRecord,
}
"""The record of every stage, by its name."""


def read_record(facts: Mapping[str, Any]) -> Record:
    """Parse the facts of an artefact, also of an earlier version; ``ArtefactError`` if they are no record."""
    kind = RECORDS.get(str(facts.get("stage")))
    if kind is None:
        raise ArtefactError(f"an artefact's facts name no stage ({facts.get('stage')!r}). Materialise it again")
    from pydantic import ValidationError

    try:
        record: Record = _parser(facts["stage"]).validate_python(_upgraded(kind, facts))
    except (ValidationError, ValueError):
        raise ArtefactError(
            f"the facts of a {facts['stage']} artefact are not those that this version reads. Materialise it again"
        ) from None
    return record


@cache
def _parser(stage: str) -> Any:
    from pydantic import TypeAdapter  # here, since workers import this module and never read an artefact

    return TypeAdapter(RECORDS[stage])


def _upgraded(kind: type[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give facts in today's form: version 0.1 wrote devices as labels and means as ``<list> <measure>``."""
    names = {item.name for item in fields(kind)}
    upgraded = {name: value for name, value in facts.items() if name in names}
    if "device" in upgraded:
        upgraded["device"] = UsedDevices.from_json(upgraded["device"])
    if isinstance(upstream := upgraded.get("upstream"), dict):
        upgraded["upstream"] = {**upstream, "dense_device": UsedDevices.from_json(upstream["dense_device"])}
    if kind is EvaluationRecord and "means" not in facts:
        means: dict[str, dict[str, float]] = {}
        for name, value in facts.items():
            ranked, space, measure = name.partition(" ")
            if space:
                means.setdefault(ranked, {})[measure] = value
        upgraded["means"] = means
    return upgraded
