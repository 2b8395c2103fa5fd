"""``docs/gpu.md`` says what the programs do: its tables, its numbers, its recipe."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ensemble_assets.cli.main import commands
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.loading import load_library_model
from ensemble_assets.compute.batching.dispatcher import Patience
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.running.worker_settings import SLICE_BYTES, WorkerSettings, look_further
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import PROFILES
from ensemble_assets.settings import Settings, options
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets_tests.benchmarks import dual_t4
from ensemble_assets_tests.benchmarks.t4_estimates import ARCHITECTURES, CHUNKS, T4_BYTES, chunk_lengths
from ensemble_assets_tests.compute.backends.checkpoints import checkpoint
from ensemble_assets_tests.compute.devices.nvidia import install, two_t4s

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text()
PROSE = " ".join(PAGE.split())


def shown(name: str) -> list[list[str]]:
    """The cells of a table of the page, without the ruler."""
    table = PAGE.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return [rows[0], *rows[2:]]


@pytest.fixture(scope="module")
def planned() -> list[tuple[str, ...]]:
    return list(dual_t4.planned_rows())


def test_the_planned_table_is_what_the_benchmark_prints(planned: list[tuple[str, ...]]) -> None:
    header, *rows = shown("planned")
    assert header == list(dual_t4.PLANNED_COLUMNS)
    assert [row[:3] for row in rows] == [list(row[:3]) for row in planned]
    assert {len(row) for row in rows} == {len(header)}


def test_two_t4s_take_at_most_1_over_1_9_of_the_time_of_one(planned: list[tuple[str, ...]]) -> None:
    gain, peaks = dual_t4.PLANNED_COLUMNS.index("gain"), (5, 8)
    for row in [*planned, *shown("planned")[1:]]:
        assert float(row[gain].removesuffix("x")) >= 1.9
        assert all(float(row[at].removesuffix(" GB")) < 12 for at in peaks if row[at])


def test_the_fixed_table_is_what_the_benchmark_prints() -> None:
    header, *rows = shown("fixed")
    printed = list(dual_t4.fixed_rows())
    assert header == list(dual_t4.FIXED_COLUMNS)
    same = [header.index(name) for name in ("stage", "model", "chunks", "largest batch", "outcome")]
    assert [[row[at] for at in same] for row in rows] == [[row[at] for at in same] for row in printed]
    assert {row[header.index("outcome")] for row in rows} >= {"out of memory", "fits, second T4 idle"}


def test_the_benchmark_takes_every_model_of_the_profile_and_the_chunks_it_says() -> None:
    profile = PROFILES[dual_t4.PROFILE]
    assert set(ARCHITECTURES) == {*profile.dense, *profile.sparse, profile.rerank}
    assert len(chunk_lengths()) == CHUNKS == 3096
    assert len({job.spec.slug for job in dual_t4.jobs()}) == len(ARCHITECTURES)


def test_a_fixed_batch_is_counted_row_by_row() -> None:
    """Against a slow loop over the sorted rows."""
    for job in dual_t4.jobs(0.01):
        needs = ARCHITECTURES[job.spec.slug].needs
        longest_first, peaks = sorted(job.lengths.tolist(), reverse=True), []
        while longest_first:
            rows, longest_first = longest_first[:32], longest_first[32:]
            peaks.append(600_000_000 + needs.weights + needs.batch_bytes(len(rows) * rows[0], rows[0]))
        fixed = job.fixed()
        assert fixed.peaks.tolist() == pytest.approx(peaks)
        assert (fixed.outcome == "out of memory") == (max(peaks) > T4_BYTES)


def test_the_numbers_of_the_page_are_the_defaults() -> None:
    ceiling, device = Ceiling(), Settings().device
    assert (device.ceiling_gb, ceiling.hard_bytes) == (12.0, 12 * 10**9)
    assert (device.soft_fraction, ceiling.soft_fraction) == (0.9, 0.9)
    assert ceiling.margin_bytes == 256 << 20
    assert WorkerSettings().sampler_seconds == 0.05
    assert Patience().memory == 120.0
    assert look_further(PlannerSettings()).lookahead == 8
    assert SizeSettings().growth == 2.0
    assert SizeSettings().share == 1 / 40
    assert SLICE_BYTES == 16_000_000
    for said in (
        "above 12 GB",
        "(90 %",
        "(256 MiB)",
        "every 50 ms",
        "two minutes",
        "every eighth batch",
        "a fortieth",
        "first slice has 16 MB",
    ):
        assert said in PROSE, said


def test_every_option_and_event_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:device|paths|models|rerank)\.[a-z_]+)(?:: \w+)?`", PAGE)
    assert named
    assert set(named) <= set(options())
    assert {event for event, spec in EVENTS.items() if spec.category == "mitigation"} >= {
        "mitigation.oom", "mitigation.split", "mitigation.back_off", "mitigation.row_failed",
    }  # fmt: skip


def test_what_the_page_says_of_doctor_is_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, two_t4s())
    assert any("Stages compute on 2 of 2 GPUs" in sentence for sentence in discover_devices().sentences)
    install(monkeypatch, two_t4s(), cuda_version=None)
    assert any("CPU build" in sentence for sentence in discover_devices().sentences)


def test_as_many_simulated_runs_as_the_page_says() -> None:
    source = (Path(__file__).parent / "test_simulated_properties.py").read_text()
    counts = [int(count.replace("_", "")) for count in re.findall(r"@settings\(max_examples=([\d_]+)\)", source)]
    nightly = [count for count in counts if count >= 1000]
    assert f"`make test` runs {sum(counts) - sum(nightly)} such worlds" in PROSE
    assert f"`make test-nightly` {sum(nightly):,}." in PROSE


def test_models_are_loaded_with_sdpa(tmp_path: Path) -> None:
    spec = checkpoint(tmp_path / "encoder", "dense")
    model = load_library_model(spec, locate(spec), Runtime(), "cpu").model
    assert model[0].model.config._attn_implementation == "sdpa"


def recipe() -> str:
    return PAGE.split("```sh\n")[1].split("```")[0]


def test_the_recipe_is_valid_shell() -> None:
    subprocess.run(["bash", "-n"], input=recipe(), text=True, check=True)


def test_every_command_flag_and_option_of_the_recipe_exists() -> None:
    called = []
    for line in recipe().splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["ensemble-assets"]:
            continue
        command = commands.commands[words[1]]
        command.make_context(words[1], words[2:])  # parses; runs nothing
        settings = [words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--set"]
        assert set(settings) <= set(options())
        called.append(words[1])
    assert called == ["doctor", "demo", "run", "leases"]
    assert "EMBEDDER_PROFILE=kaggle-t4x2" in recipe()
    assert options()["models.profile"].variable == "EMBEDDER_PROFILE"
    assert "kaggle-t4x2" in PROFILES


def test_the_page_says_plainly_that_it_has_not_run_on_hardware_and_the_readme_links_it() -> None:
    assert "has not run on CUDA hardware yet" in PROSE
    assert "(docs/gpu.md)" in (ROOT / "README.md").read_text()
