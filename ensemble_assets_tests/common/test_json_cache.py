"""The JSON cache: shared by processes, bounded, and never the reason why a run fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from ensemble_assets.common import json_cache
from ensemble_assets.common.json_cache import JsonCache

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from pathlib import Path
from ensemble_assets.common.json_cache import JsonCache
for number in range(12):
    assert JsonCache(Path(sys.argv[1])).put({f"{sys.argv[2]}-{number}": number})
"""


def test_stored_values_are_read_again_and_a_stored_key_becomes_the_most_recent(tmp_path: Path) -> None:
    cache = JsonCache(tmp_path / "deep" / "cache.json")
    assert cache.read() == {}
    assert cache.put({"a": [1, 2], "b": "text"})
    assert cache.put({"a": {"c": None}})
    assert list(JsonCache(tmp_path / "deep" / "cache.json").read().items()) == [("b", "text"), ("a", {"c": None})]


def test_an_update_sees_the_stored_entries_and_replaces_them_all(tmp_path: Path) -> None:
    cache = JsonCache(tmp_path / "cache.json")
    cache.put({"a": 1, "b": 2})
    assert cache.update(lambda entries: {"a": entries["a"] + 10})
    assert cache.read() == {"a": 11}


def test_only_the_most_recent_entries_stay(tmp_path: Path) -> None:
    cache = JsonCache(tmp_path / "cache.json", most_entries=2)
    for number in range(4):
        cache.put({f"key-{number}": number})
    cache.put({"key-2": 20})
    assert list(cache.read().items()) == [("key-3", 3), ("key-2", 20)]
    assert JsonCache(tmp_path / "cache.json", most_entries=0).put({"a": 1})
    assert cache.read() == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 1}', b'{"version": 99}', b'{"version": 1, "entries": [3]}']
)
def test_a_damaged_or_foreign_file_counts_as_empty_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.json"
    path.write_bytes(content)
    assert JsonCache(path).read() == {}
    assert JsonCache(path).put({"a": 1})
    assert JsonCache(path).read() == {"a": 1}


def test_several_processes_write_at_once_and_no_entry_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], cwd=ROOT) for number in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert JsonCache(path).read() == {f"{writer}-{number}": number for writer in range(3) for number in range(12)}


def test_a_locked_file_and_a_folder_that_cannot_be_made_cost_the_entry_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_cache, "LOCK_SECONDS", 0.05)
    path = tmp_path / "cache.json"
    with FileLock(f"{path}.lock"):
        assert not JsonCache(path).put({"a": 1})
    assert not path.exists()
    (tmp_path / "file").write_text("not a folder")
    assert not JsonCache(tmp_path / "file" / "cache.json").put({"a": 1})


def test_without_a_file_nothing_is_stored() -> None:
    assert not JsonCache(None).put({"a": 1})
    assert JsonCache(None).read() == {}
