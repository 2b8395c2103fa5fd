"""Stage records are plain data that add up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ensemble_assets.artefacts.read_record import RECORDS, read_record
from ensemble_assets.artefacts.records import (
    DenseRecord,
    EvaluationRecord,
    FusionRecord,
    Ratios,
    SparseRecord,
    UpstreamCosts,
)
from ensemble_assets.artefacts.stage_record import ModelFacts, Record, StageRecord, extend_record, merge_records
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import MODELS

ONE = StageRecord(
    stage="dense",
    status="completed",
    models=(ModelFacts("one", "org/one", "abc", "f1", 8, 32, "query: ", "", 1, "safetensors"),),
    device=UsedDevices("cuda", ("GPU-1",)),
    precision="fp16",
    seconds=2.0,
    tokens=100,
    items=10,
    truncated=1,
    tokens_dropped=5,
    peak_bytes=700,
    precision_redone=2,
    fallback_count=1,
    fallback_reasons={"out_of_memory": 1},
)


def test_a_record_is_json_with_its_rate():
    as_json = json.loads(json.dumps(ONE.as_json()))
    assert as_json["tokens_per_second"] == 50.0
    assert as_json["models"] == [
        {
            "slug": "one",
            "hf_model_id": "org/one",
            "revision": "abc",
            "fingerprint": "f1",
            "dimension": 8,
            "max_tokens": 32,
            "query_prefix": "query: ",
            "document_prefix": "",
            "windows": 1,
            "weights": "safetensors",
        }
    ]
    assert UsedDevices.from_json(as_json["device"]) == ONE.device
    assert as_json["fallback_reasons"] == {"out_of_memory": 1}


def test_a_model_is_recorded_with_its_prefixes_and_length_limit(tmp_path):
    spec = MODELS["jina-code-embeddings-1.5b"]
    facts = ModelFacts.of(spec, ModelFiles(tmp_path, "revision", "fingerprint"))
    assert (facts.query_prefix, facts.document_prefix) == (spec.query_prefix, spec.document_prefix)
    assert facts.query_prefix
    assert facts.max_tokens == spec.max_tokens


def test_a_record_of_nothing_has_rate_zero():
    assert StageRecord("sparse", "feature_disabled").as_json()["tokens_per_second"] == 0.0


def test_merged_costs_add_up_and_peaks_do_not():
    costs = {"seconds": 1.0, "tokens": 20, "items": 10, "peak_bytes": 900}
    two = StageRecord("dense", "completed", device=ONE.device, precision="fp32", **costs)
    merged = merge_records("dense", "completed", [ONE, two])
    assert (merged.seconds, merged.tokens, merged.items, merged.peak_bytes) == (3.0, 120, 10, 900)
    assert (merged.device, merged.precision) == (UsedDevices("cuda", ("GPU-1",)), "fp16,fp32")
    assert (merged.fallback_count, merged.fallback_reasons) == (1, {"out_of_memory": 1})


def test_merging_nothing_is_a_record_of_nothing():
    assert merge_records("dense", "completed", []) == StageRecord("dense", "completed")


GPU = UsedDevices("cuda", ("GPU-8f2c1b34-5d0e-4c57-9a3e-0b6f1d2c3a4e",))


def stored(record: Record) -> Record:
    """A record as the next stage reads it."""
    return read_record(json.loads(json.dumps(record.as_json())))


@pytest.mark.parametrize("stage", list(RECORDS))
def test_every_stage_reads_its_record_back(stage: str) -> None:
    step = {"items": 3, "wall_seconds": 1.5, "run_id": "r", "code_version": "2", "events": ({"name": "x", "at": 1.0},)}
    record = RECORDS[stage](stage, "completed", **step)
    assert stored(record) == record


def test_nested_facts_read_back_as_what_they_were() -> None:
    costs = UpstreamCosts(1.0, 2.0, ("f1",), GPU)
    fused = FusionRecord("fusion", "completed", lists=("dense", "lexical"), parameters={"k": 60}, upstream=costs)
    assert stored(fused) == fused
    exported = RECORDS["export"]("export", "completed", performance=Ratios(1.1, vs_sla=0.5), sizes={"a.npy": 3})
    assert stored(exported) == exported
    sparse = extend_record(ONE, SparseRecord, stage="sparse", model="one", unusable={"two": "model_unavailable"})
    assert stored(sparse) == sparse
    assert sparse.unit == "chunks and queries"


def test_facts_of_version_0_1_are_read_with_defaults_and_their_device_label() -> None:
    """Facts as version 0.1 wrote them on a GPU host, with keys that nobody reads any more."""
    model = {"slug": "one", "hf_model_id": "org/one", "revision": "abc", "fingerprint": "f1", "dimension": 8}
    facts = {"stage": "dense", "status": "completed", "items": 4, "models": [model], "device": GPU.label, "old": 1}
    record = read_record(facts)
    assert isinstance(record, DenseRecord)
    assert (record.device, record.models[0].windows, record.queries) == (GPU, None, 0)
    upstream = {"dense_seconds": 1.0, "sparse_seconds": 2.0, "dense_models": ["f1"], "dense_device": "cpu"}
    fused = read_record({"stage": "fusion", "status": "completed", "upstream": upstream})
    assert isinstance(fused, FusionRecord)
    assert fused.upstream is not None
    assert fused.upstream.dense_device == UsedDevices("cpu")
    measured = read_record({"stage": "evaluation", "status": "completed", "dense nDCG@10": 0.5, "dense MAP": 0.25})
    assert isinstance(measured, EvaluationRecord)
    assert measured.means == {"dense": {"nDCG@10": 0.5, "MAP": 0.25}}


@pytest.mark.parametrize("facts", [{}, {"stage": "x"}, {"stage": "dense", "status": "completed", "items": "many"}])
def test_facts_that_are_no_record_are_refused_with_what_to_do(facts: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match="Materialise it again"):
        read_record(facts)


def test_scalars_name_devices_by_label_and_means_by_list_and_measure() -> None:
    assert ONE.scalars()["device"] == ONE.device.label
    assert ONE.scalars()["tokens_per_second"] == 50.0
    measured = EvaluationRecord("evaluation", "completed", means={"fused": {"MAP": 0.5}}, judged=True, run_id="r")
    assert measured.scalars()["fused MAP"] == 0.5
    assert measured.scalars()["judged"] is True
    assert "run_id" not in measured.scalars()
