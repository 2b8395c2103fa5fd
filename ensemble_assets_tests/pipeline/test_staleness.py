"""When a collection is stale: the pure decision over what artefacts say of themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.common.stages import BUNDLE_ASSETS, PIPELINE
from ensemble_assets.models.spec import HubSource
from ensemble_assets.orchestration.failure_policy import TRIED_AGAIN, tried_again
from ensemble_assets.pipeline.staleness import Preparation, Wanted, stale_reasons, wanted_now
from ensemble_assets.settings import resolve

RERANKED, OTHERWISE = "reranked_candidates", "texts_prepared_otherwise"
MODEL = {"slug": "mini", "hf_model_id": "org/mini", "revision": "r1", "fingerprint": "f1"}
WANTED = Wanted(
    code_versions=dict.fromkeys(BUNDLE_ASSETS, "1"),
    models={"dense_embeddings": frozenset({"mini#f1"}), "sparse_vectors": frozenset({"mini@r1", "other"})},
    switched_on={"sparse_vectors": True, "reranked_candidates": True},
    prepared={
        "dense_embeddings": {"mini": Preparation(256, document_prefix="passage: ")},
        "sparse_vectors": {"mini": Preparation(256, is_limit=True)},
    },
    searched="whole",
)


def fresh(**changes: dict[str, Any]) -> dict[str, Artefact | None]:
    """Fresh artefacts of every stage, with changes by asset."""
    made: dict[str, dict[str, Any]] = {
        stage.asset: {
            "stage": stage.name, "status": "completed", "code_version": "1", "folder": f"20260101T00000{n}-1-a",
            "models": [MODEL], "device": "cpu",
        }
        for n, stage in enumerate(stage for stage in PIPELINE if stage.in_bundle)
    }  # fmt: skip
    made["chunks"] |= {"source_fingerprint": "c1", "searched": "whole"}
    for asset, change in changes.items():
        made[asset] |= change
    return {asset: Artefact(Path(facts.pop("folder")), {"facts": facts}) for asset, facts in made.items()}


def test_fresh_artefacts_are_not_stale() -> None:
    assert stale_reasons("c1", fresh(), WANTED) == ()
    assert stale_reasons(None, fresh(), WANTED) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chunks": {"source_fingerprint": "c0"}}, "chunks_changed"),
        ({"queries": {"code_version": "0"}}, "code_changed:queries"),
        ({"chunks": {"searched": "exported"}}, f"{OTHERWISE}:chunks"),
        ({"dense_embeddings": {"models": [{**MODEL, "fingerprint": "f0"}]}}, "model_changed:dense_embeddings"),
        ({"dense_embeddings": {"models": [{**MODEL, "slug": "big"}]}}, "model_changed:dense_embeddings"),
        ({"sparse_vectors": {"models": [{**MODEL, "revision": "r0"}]}}, "model_changed:sparse_vectors"),
        ({"dense_embeddings": {"models": [{**MODEL, "max_tokens": 128}]}}, f"{OTHERWISE}:dense_embeddings"),
        ({"dense_embeddings": {"models": [{**MODEL, "windows": 2}]}}, f"{OTHERWISE}:dense_embeddings"),
        ({"dense_embeddings": {"models": [{**MODEL, "document_prefix": ""}]}}, f"{OTHERWISE}:dense_embeddings"),
        ({"sparse_vectors": {"models": [{**MODEL, "max_tokens": 512}]}}, f"{OTHERWISE}:sparse_vectors"),
        ({"sparse_vectors": {"status": "feature_disabled", "models": []}}, "switched:sparse_vectors"),
        ({"chunks": {"folder": "20260101T000005-1-a"}}, "older_than_input:queries"),
    ],
)
def test_every_change_has_its_reason(changes: dict[str, dict[str, Any]], reason: str) -> None:
    assert reason in stale_reasons("c1", fresh(**changes), WANTED)


def test_a_models_own_lower_limit_and_what_was_not_recorded_are_no_change() -> None:
    same = fresh(
        dense_embeddings={"models": [{**MODEL, "max_tokens": 256, "windows": 1, "document_prefix": "passage: "}]},
        sparse_vectors={"models": [{**MODEL, "max_tokens": 128}]},
    )
    assert stale_reasons("c1", same, WANTED) == ()


def test_missing_artefacts_and_failed_checks_are_reasons() -> None:
    half = fresh()
    half["export_bundle"] = None
    assert stale_reasons("c1", half, WANTED, ["dense_parity"]) == (
        "never_materialised:export_bundle", "check_failed:dense_parity",
    )  # fmt: skip


def test_models_that_were_tried_in_vain_or_stood_in_are_no_change() -> None:
    two = dataclasses.replace(WANTED, models={"dense_embeddings": frozenset({"mini#f1", "gone#f9"})})
    assert "model_changed:dense_embeddings" in stale_reasons("c1", fresh(), two)
    assert stale_reasons("c1", fresh(dense_embeddings={"dropped": {"gone": "model_unavailable"}}), two) == ()
    stood_in = fresh(sparse_vectors={"models": [{**MODEL, "slug": "other"}]})
    assert stale_reasons("c1", stood_in, WANTED) == ()


def test_what_is_wanted_is_found_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import ensemble_assets.models.model_files as model_files

    def refuse(spec: object) -> None:
        raise AssertionError("looked for the files of a hub model")

    monkeypatch.setitem(model_files._LOCATORS, HubSource, refuse)
    hub = wanted_now(resolve({"models.profile": "kaggle-t4x2"}).settings, {})
    assert "bge-m3" in {name.partition("@")[0] for name in hub.models["dense_embeddings"]}
    assert wanted_now(resolve({"chunks.searched": "exported"}).settings, {}).searched == "exported"
    embedded = wanted_now(resolve().settings, {})
    assert all("#" in name for names in embedded.models.values() for name in names)


def test_the_states_that_the_reranker_compares_are_no_other_model() -> None:
    """The record of reranking names the CrossEncoder and the dense model of late interaction."""
    wanted = wanted_now(resolve().settings, dict.fromkeys(BUNDLE_ASSETS, "1"))
    both = [dict(zip(("slug", "fingerprint"), name.split("#"), strict=True)) for name in wanted.models[RERANKED]]
    assert {model["slug"] for model in both} == {"all-minilm-l6-v2", "ensemble-reranker-tiny"}
    used = [MODEL | model | {"max_tokens": 0} for model in both]
    assert f"model_changed:{RERANKED}" not in stale_reasons(None, fresh(reranked_candidates={"models": used}), wanted)
    without = wanted_now(resolve({"rerank.late_interaction": False}).settings, {})
    assert f"model_changed:{RERANKED}" in stale_reasons(None, fresh(reranked_candidates={"models": used}), without)


def test_the_failure_policy_covers_every_error_and_the_first_rule_wins() -> None:
    from ensemble_assets.common import errors

    raised = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ruled = {kind for kind, _ in TRIED_AGAIN}
    assert set(raised) <= ruled
    seen: list[type[BaseException]] = []
    for kind, _ in TRIED_AGAIN:
        assert not any(issubclass(kind, earlier) for earlier in seen), f"{kind.__name__} is never reached"
        seen.append(kind)
    assert not tried_again(errors.InputError("a.json, line 2", "is not JSON", "Correct it"))
    assert not tried_again(errors.ContractError("x"))
    assert not tried_again(KeyError("x"))
    assert tried_again(errors.DeviceError("x"))
    assert tried_again(errors.ServerError("does not answer"))
    assert not tried_again(errors.RefusedError("the API key is wrong"))
    assert tried_again(ConnectionResetError())
