"""The losses a student is trained with: listwise distillation, listwise labels, labels on the residual.

All work on one list of passages per query. No models here, and no choice of passages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Lists:
    """What is known about the lists of one step.

    Attributes:
        teacher: ``[queries, passages] float32``, teacher scores divided by the temperature.
        relevant: ``[queries, passages] bool``, labelled relevant.
        excluded: ``[queries, passages] bool``, probably relevant but not labelled: no part in the label losses.
        labelled: ``[queries] bool``, whether the labels of this list are used at all.
    """

    teacher: Tensor
    relevant: Tensor
    excluded: Tensor
    labelled: Tensor


def listwise_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over queries of KL(softmax(teacher) || softmax(student)); scores ``[queries, passages] float32``.

    The listwise distillation of ListNet (Cao et al. 2007) with the teacher's distribution in place of labels.
    """
    target = functional.log_softmax(teacher, dim=1)
    return functional.kl_div(functional.log_softmax(student, dim=1), target, reduction="batchmean", log_target=True)


def listwise_cross_entropy(scores: Tensor, lists: Lists) -> Tensor:
    """Mean over labelled queries of -log of the probability that the softmax gives to the relevant passages.

    Excluded passages are left out of the softmax. Zero, with a gradient of zero, where no query is labelled.
    """
    kept = scores.masked_fill(lists.excluded & ~lists.relevant, -torch.inf)
    positive = kept.masked_fill(~lists.relevant, -torch.inf)
    usable = lists.labelled & lists.relevant.any(dim=1)
    if not bool(usable.any()):
        return scores.sum() * 0.0
    return (torch.logsumexp(kept[usable], dim=1) - torch.logsumexp(positive[usable], dim=1)).mean()


def combined_loss(student: Tensor, lists: Lists, label_weight: float, residual_weight: float) -> Tensor:
    """Distillation plus the label loss on the student alone and on student plus teacher.

    In use the student's score is added to the first stage's. The residual term puts that sum into the loss: its
    gradient is largest where the first stage is wrong and vanishes where it is right.
    """
    loss = listwise_kl(student, lists.teacher)
    if label_weight:
        loss = loss + label_weight * listwise_cross_entropy(student, lists)
    if residual_weight:
        loss = loss + residual_weight * listwise_cross_entropy(student + lists.teacher, lists)
    return loss
