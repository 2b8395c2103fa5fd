"""Pages of maps are let go without a change to what an array holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ensemble_assets.artefacts.array_files import map_new_array
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages


def test_released_pages_read_the_same_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10_000.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    drop_resident_pages(mapped[5:])
    assert mapped.sum() == np.arange(10_000.0).sum()


def test_pages_that_hold_unsaved_changes_are_not_released(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(10_000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped[:] = 1.0
    drop_resident_pages(mapped)
    assert mapped.sum() == 10_000
    view = mapped[:]
    view.flags.writeable = False
    drop_resident_pages(view)
    assert mapped.sum() == 10_000, "a read-only view of a copy-on-write map"


def test_pages_of_a_file_that_is_written_keep_the_changes_and_leave_memory(tmp_path: Path) -> None:
    mapped = map_new_array(tmp_path / "a.npy", "<f8", (4_000_000,))
    (tmp_path / "a.npy").unlink()  # as the row store does: the file has no name any more
    mapped[:] = np.arange(4_000_000)
    before = _resident_bytes()
    drop_resident_pages(mapped[7:])
    assert before - _resident_bytes() > mapped.nbytes / 2
    assert (mapped == np.arange(4_000_000)).all()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
