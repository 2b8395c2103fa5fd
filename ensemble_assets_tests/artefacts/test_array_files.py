"""Arrays on disk: the system's own words for a full disk, and room for a mapped array before it is filled."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.artefacts.array_files import map_new_array, save_array


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_array(path, np.ones((1000, 384), np.float32))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("values", [np.arange(6.0).reshape(2, 3).T, np.float32(3), np.zeros((0, 4)), np.array(["a"])])
def test_the_file_is_what_numpy_writes(tmp_path: Path, values: np.ndarray) -> None:
    save_array(tmp_path / "x.npy", values)
    np.save(tmp_path / "numpy.npy", np.require(values, requirements="C"))
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_a_mapped_array_is_zeros_and_has_its_room_on_the_disk(tmp_path: Path) -> None:
    mapped = map_new_array(tmp_path / "x.npy", "<f4", (1000, 1000))
    assert not mapped.any()
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= mapped.nbytes
