"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ensemble_assets.common import atomic_files as atomic
from ensemble_assets.common.atomic_files import (
    atomic_folder,
    atomic_write,
    bytes_hash,
    clear_leftovers,
    exchange_folders,
    file_hash,
    put_in_place,
)
from ensemble_assets.common.errors import ArtefactError

FILES = 6


def write_generation(path: Path, generation: int) -> None:
    with atomic_folder(path) as folder:
        for number in range(FILES):
            (folder / f"{number}.json").write_text(json.dumps([generation] * 500))


def read_generation(path: Path) -> int:
    """The one generation that a reader sees, who opens the folder once and then its files."""
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            texts = [_read(f"{number}.json", descriptor) for number in range(FILES)]
        except FileNotFoundError:  # fair only if the folder was replaced, and the old one removed, meanwhile
            assert not os.path.samestat(os.stat(path), os.fstat(descriptor)), "a folder in place lacks a file"
            continue
        finally:
            os.close(descriptor)
        (generation,) = {value for text in texts for value in json.loads(text)}
        return int(generation)


def _read(name: str, folder: int) -> str:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
        return file.read()


def _write_half(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def _fill_half(path: Path) -> None:
    with atomic_folder(path) as folder:
        (folder / "0.json").write_text("half")
        raise KeyboardInterrupt


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_written_file_has_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_files_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    killed, other = tmp_path / ".a[1].json.0123456789ab.partial", tmp_path / ".a1.json.0123456789ab.partial"
    killed.write_bytes(b"half")
    other.write_bytes(b"half of another file")
    with atomic_write(path) as slow:
        slow.write(b"slow")
        assert not killed.exists()
        with atomic_write(path) as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, other.name}


def test_a_file_that_another_writer_clears_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = atomic.fcntl.flock, []

    def cleared_first(file: int, operation: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob(".a.json.*.partial"))
            taken[0].unlink()
        lock(file, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", cleared_first)
    with atomic_write(tmp_path / "a.json") as file:
        file.write(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"whole"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        write_generation(tmp_path / "bundle", generation)
        assert read_generation(tmp_path / "bundle") == generation
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    write_generation(tmp_path / "bundle", 1)
    with pytest.raises(KeyboardInterrupt):
        _fill_half(tmp_path / "bundle")
    assert read_generation(tmp_path / "bundle") == 1
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(ArtefactError, match="a file stands where a folder"), atomic_folder(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle").read_text() == "mine"


def test_a_symbolic_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_generation(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert read_generation(tmp_path / "real") == 1


def test_entries_of_others_are_carried_over_and_ours_are_not(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        (folder / "ours_old").write_text("1")
        (folder / "ours_both").write_text("1")
    (bundle / "notes.txt").write_text("mine")
    (bundle / "sub").mkdir()
    (bundle / "sub" / "deep.txt").write_text("mine too")
    (bundle / "to_notes").symlink_to("notes.txt")
    (bundle / "dangling").symlink_to("nowhere")
    with atomic_folder(bundle, keep=lambda name: not name.startswith("ours")) as folder:
        (folder / "ours_both").write_text("2")
    assert sorted(os.listdir(bundle)) == ["dangling", "notes.txt", "ours_both", "sub", "to_notes"]
    assert (bundle / "sub" / "deep.txt").read_text() == "mine too"
    assert (bundle / "to_notes").read_text() == "mine"
    assert (bundle / "ours_both").read_text() == "2"


def test_a_file_that_a_user_adds_during_the_write_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_generation(tmp_path / "bundle", 1)
    real = atomic.exchange_folders

    def add_then_exchange(one: Path, other: Path) -> bool:
        (tmp_path / "bundle" / "late.txt").write_text("late")
        return real(one, other)

    monkeypatch.setattr(atomic, "exchange_folders", add_then_exchange)
    write_generation(tmp_path / "bundle", 2)
    assert (tmp_path / "bundle" / "late.txt").read_text() == "late"


def test_links_that_cannot_be_made_become_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write_generation(tmp_path / "bundle", 1)
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has renameat2")
def test_the_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange_folders(tmp_path / "one", tmp_path / "other")
    assert os.listdir(tmp_path / "one") == ["other"]
    with pytest.raises(FileNotFoundError):
        exchange_folders(tmp_path / "one", tmp_path / "missing")


def test_without_an_exchange_two_renames_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "exchange_folders", lambda one, other: False)
    for name, content in (("bundle", "old"), (".bundle.0.partial", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(content)
    put_in_place(tmp_path / ".bundle.0.partial", tmp_path / "bundle")
    assert (tmp_path / "bundle" / "a").read_text() == "new"
    assert (tmp_path / ".bundle.0.partial" / "a").read_text() == "old"


def test_leftovers_of_killed_runs_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    write_generation(tmp_path / "bundle", 1)
    dead, alive, other = (tmp_path / f".{name}.partial" for name in ("bundle.1", "bundle.2", "bundled.3"))
    for folder in (dead, alive, other):
        folder.mkdir()
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    write_generation(tmp_path / "bundle", 2)
    os.close(descriptor)
    assert sorted(hidden(tmp_path)) == [".bundle.2.partial", ".bundled.3.partial"]


def test_a_folder_lost_between_two_renames_is_put_back(tmp_path: Path) -> None:
    write_generation(tmp_path / "bundle", 1)
    (tmp_path / "bundle").rename(tmp_path / ".bundle.1.old")
    clear_leftovers(tmp_path / "bundle")
    assert read_generation(tmp_path / "bundle") == 1


def test_names_with_wildcards_are_taken_literally(tmp_path: Path) -> None:
    (tmp_path / ".b1.0.partial").mkdir()
    clear_leftovers(tmp_path / "b[1]")
    clear_leftovers(tmp_path / "b?")
    assert hidden(tmp_path) == [".b1.0.partial"]


def test_concurrent_writers_leave_one_whole_folder(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_generation, args=(tmp_path / "bundle", n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_generation(tmp_path / "bundle") in range(8)
    assert hidden(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from ensemble_assets_tests.common.test_atomic_files import write_generation
for generation in range(int(sys.argv[2]), sys.maxsize):
    write_generation(Path(sys.argv[1]), generation)
    print(generation, flush=True)
"""


def test_readers_see_whole_folders_while_writers_are_killed(tmp_path: Path) -> None:
    bundle, chance = tmp_path / "bundle", random.Random(7)
    write_generation(bundle, 0)
    (bundle / "notes.txt").write_text("somebody else's")
    seen = set()
    for life in range(1, 13):
        command = [sys.executable, "-c", WRITER, str(bundle), str(life * 1_000_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            stop = time.monotonic() + chance.uniform(0.0, 0.05)
            while time.monotonic() < stop:
                seen.add(read_generation(bundle))
            writer.send_signal(signal.SIGKILL)
        seen.add(read_generation(bundle))
        assert (bundle / "notes.txt").read_text() == "somebody else's"
    assert {generation // 1_000_000 for generation in seen} == set(range(1, 13))
    write_generation(bundle, -1)
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_file_is_read_once_as_long_as_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_SETTLED_NANOSECONDS", 50_000_000)
    path, read, digest = tmp_path / "file", [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: read.append(args) or digest(*args))
    path.write_bytes(b"one")
    state = path.stat()
    time.sleep(0.1)
    assert file_hash(path) == file_hash(path) == bytes_hash(b"one")
    assert len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_hash(path) == bytes_hash(b"two"), "a date that was set back hides no change"


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    """Its time may stay the same in a further change, since the system counts in steps."""
    path = tmp_path / "file"
    for number in range(100):
        path.write_bytes(b"%d" % number)
        assert file_hash(path) == bytes_hash(b"%d" % number)
