"""Batch sizes kept between runs: per model, kind and precision, by several processes at once, from any file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from ensemble_assets.common import json_cache
from ensemble_assets.compute.batching.memory_model import Observation
from ensemble_assets.compute.batching.size_history import SizeHistory
from ensemble_assets.compute.batching.size_limits import Failure, KnownSizes

ROOT = Path(__file__).resolve().parents[3]

WRITER = """
import sys
from pathlib import Path
from ensemble_assets.compute.batching.size_history import SizeHistory
from ensemble_assets.compute.batching.size_limits import KnownSizes
for number in range(12):
    sizes = KnownSizes(worked_tokens=number + 1)
    assert SizeHistory(Path(sys.argv[1])).keep(f"model-{sys.argv[2]}-{number}", "k", sizes)
"""


def test_what_worked_is_remembered_per_model_precision_and_kind_of_device(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sizes.json"
    seen = KnownSizes((Observation(4096, 128, 10**9),), 4096, 4096 * 128, (Failure(8192, 128, 2 * 10**9),))
    assert SizeHistory(path).recall("model:fp16", "Tesla T4") == KnownSizes()
    assert SizeHistory(path).keep("model:fp16", "Tesla T4", seen)
    assert SizeHistory(path).recall("model:fp16", "Tesla T4") == seen
    assert SizeHistory(path).recall("model:fp32", "Tesla T4") == KnownSizes()
    assert SizeHistory(path).recall("model:fp16", "A100") == KnownSizes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"version": 99}',
        b'{"version": 1, "entries": 3}',
        b'{"version": 1, "entries": {"m|k": 3}}',
        b'{"version": 1, "entries": {"m|k": {}}}',
        b'{"version": 1, "entries": {"m|k": {"observations": [[1, 2]], "failures": [], '
        b'"worked_tokens": 1, "worked_square": 1}}}',
        b'{"version": 1, "entries": {"m|k": {"observations": [[-5, 2, 1]], "failures": [], '
        b'"worked_tokens": 1, "worked_square": 1}}}',
        b'{"version": 1, "entries": {"m|k": {"observations": [], "failures": [], '
        b'"worked_tokens": 1e999, "worked_square": 1}}}',
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sizes.json"
    path.write_bytes(content)
    assert SizeHistory(path).recall("m", "k") == KnownSizes()
    assert SizeHistory(path).keep("m", "k", KnownSizes(worked_tokens=7))
    assert SizeHistory(path).recall("m", "k") == KnownSizes(worked_tokens=7)


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], cwd=ROOT) for number in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    for writer in range(3):
        for number in range(12):
            assert SizeHistory(path).recall(f"model-{writer}-{number}", "k").worked_tokens == number + 1
    assert len(json.loads(path.read_text())["entries"]) == 36


def test_a_file_that_another_process_keeps_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_cache, "LOCK_SECONDS", 0.05)
    path = tmp_path / "sizes.json"
    with FileLock(f"{path}.lock"):
        assert not SizeHistory(path).keep("m", "k", KnownSizes(worked_tokens=7))
    assert not path.exists()


def test_a_folder_that_cannot_be_made_costs_the_hint_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert not SizeHistory(tmp_path / "file" / "sizes.json").keep("m", "k", KnownSizes(worked_tokens=7))


def test_without_a_file_nothing_is_remembered() -> None:
    assert not SizeHistory(None).keep("m", "k", KnownSizes(worked_tokens=7))
    assert SizeHistory(None).recall("m", "k") == KnownSizes()


def test_the_file_keeps_only_the_latest_models(tmp_path: Path) -> None:
    file = SizeHistory(tmp_path / "sizes.json")
    for index in range(70):
        file.keep(f"model-{index}", "k", KnownSizes(worked_tokens=index + 1))
    assert file.recall("model-0", "k") == KnownSizes()
    assert file.recall("model-69", "k").worked_tokens == 70
