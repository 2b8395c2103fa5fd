"""What a GPU computes in place of a CPU, on a CPU: the sparse head in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.compute.backends.library.forward import largest_weights
from ensemble_assets.compute.backends.library.tiled_splade import largest_logits
from ensemble_assets.compute.splade_head.head import SparseHead

TOP_K = 256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_head_of_a_gpu_keeps_the_256_entries_that_a_cpu_keeps_up_to_ties(dtype):
    """Of the same states and weights, which half precision holds exactly; products are added up in float32."""
    random = torch.Generator().manual_seed(7)
    lengths = np.array([40, 33, 7, 1])
    states = torch.randn(len(lengths), 40, 64, generator=random).to(dtype)
    matrix = (torch.randn(3000, 64, generator=random) / 8).to(dtype)
    bias = torch.randn(3000, generator=random) / 4 - 0.5
    cpu = SparseHead(matrix.float().numpy(), bias.numpy(), TOP_K).encode_batch(states.float().numpy(), lengths)
    for row, length in enumerate(lengths):  # as a forward does: padding repeats the first token
        states[row, length:] = states[row, 0]
    largest = largest_logits(states, matrix, bias)
    gpu = largest_weights(largest.clamp(min=0).log1p(), TOP_K)
    rounding = 1e-5 * float(states.float().norm(dim=2).max() * matrix.float().norm(dim=1).max())
    for row in range(len(lengths)):
        ours, theirs = (set(outputs["index"][row].tolist()) for outputs in (gpu, cpu))
        last = float(cpu["weight"][row][-1])
        exact = dict(zip(cpu["index"][row].tolist(), cpu["weight"][row].tolist(), strict=True))
        for index in ours ^ theirs:  # a tie but for rounding
            weight = exact.get(index, float(largest[row, index].clamp(min=0).log1p()))
            assert weight == pytest.approx(last, abs=rounding)
        assert len(ours & theirs) >= TOP_K - 1
        np.testing.assert_allclose(gpu["weight"][row].numpy(), cpu["weight"][row], atol=rounding)
        assert int(gpu["active"][row]) == pytest.approx(int(cpu["active"][row]), abs=1)


def test_logits_rounded_to_half_would_keep_others():
    """The bound above is not idle: in half precision many logits tie at the last place."""
    random = torch.Generator().manual_seed(7)
    states, matrix = (torch.randn(*shape, generator=random).bfloat16() for shape in ((10, 30, 64), (3000, 64)))
    whole = largest_logits(states, matrix, None)
    rounded = torch.nn.functional.linear(states, matrix).amax(dim=1).float()
    kept = [largest_weights(logits, TOP_K)["index"].tolist() for logits in (whole, rounded)]
    assert sum(len(set(ours) ^ set(theirs)) for ours, theirs in zip(*kept, strict=True)) > 10


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.5, 0.5000001, 1.0, 3.25]), min_size=9, max_size=9), min_size=1),
    top_k=st.integers(1, 12),
)
def test_of_equal_weights_those_with_the_lowest_index_are_kept(rows, top_k):
    weights = np.array(rows, np.float32)
    got = largest_weights(torch.from_numpy(weights), top_k)
    for row, values in enumerate(weights):
        best = np.argsort(-values, kind="stable")[:top_k]
        assert got["index"][row].tolist() == [int(at) if values[at] > 0 else -1 for at in best]
        assert got["weight"][row].tolist() == values[best].tolist()


def test_a_weight_that_is_not_a_number_is_kept():
    weights = torch.tensor([[1.0, float("nan"), -float("nan"), 2.0, float("inf")]])
    assert set(largest_weights(weights, 3)["index"][0].tolist()) == {1, 2, 4}
