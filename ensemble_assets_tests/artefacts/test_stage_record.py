"""Stage records are plain data that add up."""

from __future__ import annotations

import json

from ensemble_assets.artefacts.stage_record import ModelFacts, StageRecord, merge_records
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import MODELS

ONE = StageRecord(
    stage="dense",
    status="completed",
    models=(ModelFacts("one", "org/one", "abc", "f1", 8, 32, "query: "),),
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
