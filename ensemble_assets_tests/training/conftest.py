"""Fixtures of the training tests: a toy set, a random body, and one cache of real encodings for the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets_tests.training import toy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on one thread, and torch's global switches put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training set."""
    folder = tmp_path_factory.mktemp("data")
    toy.write_set(folder / "covidqa")
    return folder


@pytest.fixture(scope="session")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random three-layer body, 16 wide."""
    return toy.write_body(tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where real encodings are kept for the session; skips where the embedded models are not installed."""
    for slug in ("all-minilm-l6-v2", "splade-tiny"):
        pytest.importorskip(MODELS[slug].source.module, reason="the embedded models are not installed")  # type: ignore[union-attr]
        locate(MODELS[slug])
    return tmp_path_factory.mktemp("work")
