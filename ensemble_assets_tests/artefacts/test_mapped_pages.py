"""Pages of maps are let go without a change to what an array holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
