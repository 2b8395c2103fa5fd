"""The losses equal plain-Python references on any lists, and have the gradients they are meant to have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.training.loop import Lists, combined_loss, listwise_cross_entropy, listwise_kl

_score = st.floats(-8, 8, width=32)


@st.composite
def steps(draw: st.DrawFn) -> tuple[torch.Tensor, Lists]:
    """Student scores and lists of 1 to 4 queries with 2 to 6 passages."""
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    size = shape[0] * shape[1]

    def floats() -> torch.Tensor:
        return torch.tensor(draw(st.lists(_score, min_size=size, max_size=size))).view(shape)

    def flags(count: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))

    lists = Lists(floats(), flags(size).view(shape), flags(size).view(shape), flags(shape[0]))
    return floats(), lists


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def reference_kl(student: torch.Tensor, teacher: torch.Tensor) -> float:
    rows = []
    for own, target in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(softmax(target), softmax(own), strict=True)
        rows.append(sum(p * (math.log(p) - math.log(q)) for p, q in pairs))
    return sum(rows) / len(rows)


def reference_cross_entropy(scores: torch.Tensor, lists: Lists) -> float:
    rows = []
    for query, row in enumerate(scores.tolist()):
        relevant = lists.relevant[query].tolist()
        kept = [i for i in range(len(row)) if relevant[i] or not bool(lists.excluded[query, i])]
        if bool(lists.labelled[query]) and any(relevant):
            chances = dict(zip(kept, softmax([row[i] for i in kept]), strict=True))
            rows.append(-math.log(sum(chances[i] for i in kept if relevant[i])))
    return sum(rows) / len(rows) if rows else 0.0


@given(steps())
def test_losses_equal_their_references(step: tuple[torch.Tensor, Lists]) -> None:
    student, lists = step
    assert float(listwise_kl(student, lists.teacher)) == pytest.approx(
        reference_kl(student, lists.teacher), rel=1e-4, abs=1e-5
    )
    assert float(listwise_cross_entropy(student, lists)) == pytest.approx(
        reference_cross_entropy(student, lists), rel=1e-4, abs=1e-5
    )
    expected = (
        reference_kl(student, lists.teacher)
        + 0.3 * reference_cross_entropy(student, lists)
        + 0.7 * reference_cross_entropy(student + lists.teacher, lists)
    )
    assert float(combined_loss(student, lists, 0.3, 0.7)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(steps())
def test_gradients_are_finite_whatever_is_labelled(step: tuple[torch.Tensor, Lists]) -> None:
    student, lists = step
    student.requires_grad_(True)
    combined_loss(student, lists, 0.5, 0.5).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_a_student_that_equals_its_teacher_up_to_a_constant_has_no_distillation_loss() -> None:
    teacher = torch.tensor(np.random.default_rng(0).normal(size=(3, 5)), dtype=torch.float32)
    assert float(listwise_kl(teacher + 7.0, teacher)) == pytest.approx(0.0, abs=1e-6)


def test_the_residual_label_loss_pushes_only_where_the_teacher_is_wrong() -> None:
    relevant = torch.tensor([[True, False], [True, False]])
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    lists = Lists(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), relevant, nothing, torch.tensor([True, True]))
    student = torch.zeros(2, 2, requires_grad=True)
    listwise_cross_entropy(student + lists.teacher, lists).backward()
    assert student.grad is not None
    assert float(student.grad[0].abs().max()) < 1e-3
    assert float(student.grad[1, 0]) < -0.4


def test_an_excluded_passage_gets_no_gradient_from_labels() -> None:
    excluded = torch.tensor([[False, True, False]])
    lists = Lists(torch.zeros(1, 3), torch.tensor([[True, False, False]]), excluded, torch.tensor([True]))
    student = torch.zeros(1, 3, requires_grad=True)
    listwise_cross_entropy(student, lists).backward()
    assert student.grad is not None
    assert float(student.grad[0, 1]) == 0.0
    assert float(student.grad[0, 2]) > 0.0
