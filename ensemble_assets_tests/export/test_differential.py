"""Whole collections with odd input through the product and through the independent reference, byte for byte.

A case ends in equal files, in a refusal by both, or in one of the deliberate differences of the contract, which the
reference makes too (marked so in ``reference`` and ``reference_loader``).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_assets.collection.canonical_names import point_name, priority_of
from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import collection_name
from ensemble_assets.common.errors import InputError
from ensemble_assets.export.suite import Limits, require_gates
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.inputs import BundleInputs, chunk_rows
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.export import reference, reference_loader, strategies
from ensemble_assets_tests.export.bundles import CLOCK, dense, unit_rows
from ensemble_assets_tests.export.runs import everything_off

NAMING = {name: resolve({"collections.naming": name}, environment={}).settings for name in ("folder", "legacy")}
OUTCOMES: Counter[str] = Counter()

CASES = st.fixed_dictionaries(
    {
        "files": strategies.folders(),
        "alias": st.sampled_from(["guide", "My Qdrant-docs", "Sentence-x", "пример", "docling_v4_outputs", "a.b"]),
        "naming": st.sampled_from(sorted(NAMING)),
        "min_tokens": st.sampled_from([0, 0, 0, 50]),
        "max_tokens": st.sampled_from([1, 8, 512]),
        "slugs": st.sampled_from([("mini",), ("jina-1.5b", "qwen3-0.6b"), ("Ä", "all-MiniLM-l6", "c")]),
        "prefix": st.sampled_from(["ultimate_embeddings_v4", "p", "x.1-y"]),
    }
)


def by_product(folder: Path, output: Path, case: dict[str, Any]) -> dict[str, bytes] | None:
    """The text files of the bundle; None if the input is refused."""
    options: Settings = NAMING[case["naming"]]
    try:
        frame, _ = read_chunks(folder, case["max_tokens"], case["min_tokens"])
    except InputError:
        return None
    models = models_of(case, frame.height)
    name = collection_name(case["alias"])
    named = point_name(options, name, case["alias"])
    bundle = BundleInputs(
        collection=name,
        alias=case["alias"],
        point_name=named,
        priority=priority_of(options, named),
        rows=chunk_rows(frame.lazy()),
        count=frame.height,
        dense=tuple(dense(slug, vectors, most, hf) for slug, hf, most, vectors in models),
        clock=CLOCK,
        prefix=case["prefix"],
    )
    made = write_bundle(
        output,
        bundle,
        lambda written: everything_off(chunk_count=frame.height),
        judge=lambda finished: require_gates(finished, bundle, Limits(), ()) and None,
    )
    texts = (file for file in made.folder.iterdir() if file.suffix in {".json", ".jsonl"})
    return {file.name: file.read_bytes() for file in texts if not file.name.endswith("processing_summary.json")}


def by_reference(folder: Path, case: dict[str, Any]) -> dict[str, bytes] | None:
    try:
        chunks = reference_loader.load(folder, case["min_tokens"])
    except reference_loader.RefusedError:
        return None
    if not chunks:
        return None
    legacy = case["naming"] == "legacy"
    named = reference.canonical(case["alias"]) if legacy else collection_name(case["alias"])
    facts = {
        "collection": collection_name(case["alias"]),
        "alias": case["alias"],
        "point_name": named,
        "priority": reference.PRIORITIES.get(named, 0.5) if legacy else 0.5,
        "clock": CLOCK,
    }
    return reference.files(chunks, models_of(case, len(chunks)), facts, case["prefix"])


def models_of(case: dict[str, Any], count: int) -> list[tuple[str, str, int, Any]]:
    return [
        (slug, f"owner/{slug}", case["max_tokens"], unit_rows(count, 3 + number, seed=number))
        for number, slug in enumerate(case["slugs"])
    ]


def compare(case: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "input"
        for path, content in case["files"].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        expected, found = by_reference(folder, case), by_product(folder, Path(root) / "output", case)
    OUTCOMES["refused by both" if expected is None else "equal"] += 1
    assert found == expected


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_odd_input_gives_the_reference_s_bytes_or_both_refuse(case: dict[str, Any]) -> None:
    compare(case)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_twenty_thousand_odd_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    OUTCOMES.clear()
    settings(max_examples=20_000, suppress_health_check=list(HealthCheck), deadline=None)(given(CASES)(compare))()
    with capsys.disabled():
        print(f"\n{dict(OUTCOMES)}")
    assert OUTCOMES["equal"] >= 10_000, "most inputs are usable, so most cases compare bytes"
