"""Fixed batches on a CPU hold more tokens of a model with narrow token states."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.worker_settings import cpu_batches, widen_batches
from ensemble_assets_tests.compute.running.doubles import VECTOR, DoubleFactory, run_here, table_of


@dataclass(frozen=True)
class OfWidth(DoubleFactory):
    """A double that knows its width."""

    width: int = 0


@pytest.mark.parametrize(("width", "tokens"), [(0, 4096), (768, 4096), (384, 4096), (192, 8192), (128, 12288)])
def test_narrow_models_get_larger_batches(width: int, tokens: int) -> None:
    sizes = widen_batches(cpu_batches(4096), width).sizes
    assert (sizes.initial_tokens, sizes.max_tokens) == (tokens, tokens)


def test_batches_by_memory_are_left_as_they_are() -> None:
    by_memory = PlannerSettings()
    assert widen_batches(by_memory, 128) is by_memory


@pytest.mark.parametrize(("width", "largest"), [(0, 64), (128, 192)])
@pytest.mark.parametrize("kept", [False, True])
def test_a_run_here_plans_by_its_models_width(width: int, largest: int, kept: bool) -> None:
    table = table_of([[5 + n % 20, 6 + n // 20] for n in range(200)])
    factory = OfWidth(VECTOR, width=width)
    if kept:
        with loaded_once(factory) as once:
            run_here(table, once, batch_tokens=64)
    else:
        run_here(table, factory, batch_tokens=64)
    assert max(batch.tokens for batch in factory.journal.batches) == largest
