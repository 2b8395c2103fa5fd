"""Timing the plain script: every model, every chunk, medians; what is measured is what is stored."""

from __future__ import annotations

import resource
from pathlib import Path

import polars as pl
import pytest

from ensemble_assets.artefacts.latency_baseline import content_fingerprint
from ensemble_assets.common.errors import MemoryBudgetError, ModelUnavailableError, SettingsError
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.stages.plain_baseline import ENOUGH_SECONDS, capped, load_plain, measure_baseline
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import FolderSource, ModelSpec
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, SimulatedDevice

CHUNKS = pl.DataFrame({"text": ["one", "two", "three"], "content_hash": ["a", "b", "c"]})


def spec(slug: str = "first", prefix: str = "") -> ModelSpec:
    source = FolderSource(slug)
    return ModelSpec(slug, "dense", f"test/{slug}", source, 4, 8, "mean", "MIT", document_prefix=prefix)


class World:
    """A clock that only encoders and loading move."""

    def __init__(self, load: float, encode: list[float]) -> None:
        self.now, self.load_seconds, self.encode_seconds = 0.0, load, encode
        self.seen: list[list[str]] = []

    def clock(self) -> float:
        return self.now

    def load(self, spec: ModelSpec, files: ModelFiles) -> World:
        self.now += self.load_seconds
        return self

    def encode(self, sentences: list[str]) -> None:
        self.seen.append(sentences)
        self.now += self.encode_seconds[(len(self.seen) - 1) % len(self.encode_seconds)]

    def measure(self, *specs: ModelSpec, repeats: int = 3):
        def found(one: ModelSpec) -> ModelFiles:
            return ModelFiles(Path(), "local", f"of-{one.slug}")

        return measure_baseline("notes", CHUNKS, specs, repeats, load=self.load, clock=self.clock, find=found)


def test_every_model_encodes_every_chunk_as_often_as_asked_and_the_median_counts() -> None:
    world = World(1.0, [2.0, 9.0, 3.0])
    measured = world.measure(spec(), spec("second", prefix="doc: "))
    assert [model.encode_seconds for model in measured.models] == [(2.0, 9.0, 3.0)] * 2
    assert measured.seconds == 2 * (1.0 + 3.0)
    assert world.seen == [["one", "two", "three"]] * 3 + [["doc: one", "doc: two", "doc: three"]] * 3
    assert (measured.texts, measured.content) == (3, content_fingerprint(["a", "b", "c"]))
    assert [model.fingerprint for model in measured.models] == ["of-first", "of-second"]


def test_a_long_measurement_is_not_repeated() -> None:
    assert World(1.0, [ENOUGH_SECONDS]).measure(spec()).models[0].encode_seconds == (ENOUGH_SECONDS,)


def test_nothing_to_encode_and_no_repetitions_are_refused() -> None:
    with pytest.raises(SettingsError, match="--repeats is 0"):
        World(1.0, [1.0]).measure(spec(), repeats=0)
    with pytest.raises(SettingsError, match="no chunks"):
        measure_baseline("notes", CHUNKS.clear(), [spec()], 1)


def test_a_model_that_sentence_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    def broken(one: ModelSpec, files: ModelFiles) -> World:
        raise OSError("some/private/path")

    with pytest.raises(ModelUnavailableError, match="first: sentence-transformers cannot load it") as caught:
        measure_baseline(
            "notes", CHUNKS, [spec()], 1, load=broken, find=lambda one: ModelFiles(tmp_path, "local", "f")
        )  # fmt: skip
    assert "private" not in str(caught.value)


class Hungry(World):
    """An encoder that takes memory of a simulated GPU."""

    def __init__(self, needs: int) -> None:
        super().__init__(0.0, [1.0])
        self._needs = needs

    def encode(self, sentences: list[str]) -> None:
        super().encode(sentences)
        OPEN_SESSIONS["simulated:SIM-plain"].allocate(self._needs)


def test_the_plain_script_is_refused_what_would_cross_the_ceiling() -> None:
    """A card of 140 GB would hold it all, and nobody would notice that the promise was broken."""
    gpu = SimulatedDevice("SIM-plain", total_bytes=140_000_000_000, raw_errors=True)
    with capped([gpu], Ceiling(12_000_000_000)):
        assert Hungry(11_000_000_000).measure(spec(), repeats=1).seconds == 1.0
    with capped([gpu], Ceiling(12_000_000_000)), pytest.raises(MemoryBudgetError, match=r"first: .*device\.ceiling_gb"):
        Hungry(12_000_000_000).measure(spec())
    OPEN_SESSIONS["simulated:SIM-plain"].allocate(20_000_000_000)  # the cap is gone afterwards


def test_a_host_is_not_capped() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with capped([CpuDevice()], Ceiling()):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.models
def test_the_plain_script_is_sentence_transformers_at_its_default_settings() -> None:
    model = MODELS["all-minilm-l6-v2"]
    encoder = load_plain(model, locate(model))
    assert type(encoder).__name__ == "SentenceTransformer"
    assert encoder.max_seq_length == 256  # type: ignore[attr-defined]
    measured = measure_baseline("notes", CHUNKS, [model], 1)
    assert measured.seconds > 0
    assert measured.models[0].fingerprint == locate(model).fingerprint
