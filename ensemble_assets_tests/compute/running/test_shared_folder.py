"""Work folders: gone when their run is, whoever ends it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.common.atomic_files import clear_leftovers
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.running.shared_folder import (
    WORK_NAME,
    create_outputs,
    load_table,
    open_outputs,
    save_table,
    work_folder,
)
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets_tests.compute.running.doubles import table_of

TABLE, THREE = table_of([[5]]), table_of([[5], [6], [7]])
OUTPUTS = {"vector": OutputSpec((2,), "float32"), "active": OutputSpec((), "int32")}


def abandoned(parent: Path) -> Path:
    """What a killed run leaves: a folder with content that nobody locks any more."""
    with work_folder(parent) as folder:
        name = folder.name
    left = parent / name
    left.mkdir()
    (left / "output-vector.npy").write_bytes(b"half")
    return left


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_folder_is_gone_when_the_block_ends(tmp_path, error):
    try:
        with work_folder(tmp_path / "new") as folder:
            create_outputs(folder, OUTPUTS, THREE)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_what_killed_runs_left_is_removed_and_what_living_ones_use_stays(tmp_path):
    left = abandoned(tmp_path)
    stranger = tmp_path / "somebody-elses"
    stranger.mkdir()
    with work_folder(tmp_path) as one, work_folder(tmp_path) as other:
        assert not left.exists()
        clear_leftovers(tmp_path / WORK_NAME)
        assert one.exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == [stranger]


def test_a_folder_that_another_run_sweeps_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, made = fcntl.flock, []

    def swept_first(descriptor, how):
        if not made:
            made.append(next(tmp_path.iterdir()))
            made[0].rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    with work_folder(tmp_path) as folder:
        assert folder != made[0]
        create_outputs(folder, OUTPUTS, TABLE)


def test_nobody_else_may_read_a_work_folder(tmp_path):
    with work_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_tables_come_back_as_they_were_with_all_that_a_model_is_given(tmp_path):
    pairs = table_of([[5, 6], [7, 8, 9]], second_from=[1, 2])
    own = replace(
        table_of([[5, 6], [7, 8, 9]]),
        tasks=np.array([0, 1], np.uint8),
        arrays={"token_type_ids": np.arange(5, dtype=np.int32), "attention_mask": np.ones(5, np.int32)},
        lost=np.array([0, 4]),
    )
    for name, table in {"pairs": pairs, "own": own, "singles": table_of([[5]])}.items():
        (tmp_path / name).mkdir()
        save_table(tmp_path / name, table)
        mapped = load_table(tmp_path / name)
        assert mapped.arrays.keys() == table.arrays.keys()
        for part in {field.name for field in fields(TokenTable)} - {"arrays"}:
            np.testing.assert_array_equal(getattr(mapped, part), getattr(table, part))
        for part, values in table.arrays.items():
            np.testing.assert_array_equal(mapped.arrays[part], values)


def test_what_one_process_writes_another_maps(tmp_path):
    with work_folder(tmp_path) as folder:
        loaded = create_outputs(folder, OUTPUTS, THREE)
        child = os.fork()
        if child == 0:
            open_outputs(folder, ["vector"])["vector"][1] = (4.0, 5.0)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert loaded["vector"].tolist() == [[0.0, 0.0], [4.0, 5.0], [0.0, 0.0]]
    assert sorted(loaded) == ["active", "vector"]
