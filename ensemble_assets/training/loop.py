"""Train a student: losses, steps, schedule, checkpoints.

Every step is a function of seed and step number, so an interrupted run can continue from its checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import BertForSequenceClassification

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.compute.tokens.token_tables import pair_table
from ensemble_assets.training.pairs import DrawnList, draw, schedule
from ensemble_assets.training.preparation import Prepared
from ensemble_assets.training.recipe import Recipe
from ensemble_assets.training.tokens import pad

Say = Callable[[str], None]

_REPORT_EVERY = 50
_CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class Lists:
    """Teacher scores and labels of the lists of one step.

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
    """Compute the mean over queries of KL(softmax(teacher) || softmax(student)) of ``[queries, passages] float32``.

    The listwise distillation of ListNet (Cao et al. 2007) with the teacher's distribution in place of labels.
    """
    target = functional.log_softmax(teacher, dim=1)
    return functional.kl_div(functional.log_softmax(student, dim=1), target, reduction="batchmean", log_target=True)


def listwise_cross_entropy(scores: Tensor, lists: Lists) -> Tensor:
    """Compute the mean over labelled queries of -log of the softmax probability of the relevant passages.

    Excluded passages are left out of the softmax. Zero, with a gradient of zero, where no query is labelled.
    """
    usable_scores = scores.masked_fill(lists.excluded & ~lists.relevant, -torch.inf)
    positive = usable_scores.masked_fill(~lists.relevant, -torch.inf)
    usable = lists.labelled & lists.relevant.any(dim=1)
    if not bool(usable.any()):
        return scores.sum() * 0.0
    return (torch.logsumexp(usable_scores[usable], dim=1) - torch.logsumexp(positive[usable], dim=1)).mean()


def combined_loss(student: Tensor, lists: Lists, label_weight: float, residual_weight: float) -> Tensor:
    """Add up distillation and the label loss on the student alone and on student plus teacher.

    In use the student's score is added to the first stage's. The residual term puts that sum into the loss: its
    gradient is largest where the first stage is wrong and vanishes where it is right.
    """
    loss = listwise_kl(student, lists.teacher)
    if label_weight:
        loss = loss + label_weight * listwise_cross_entropy(student, lists)
    if residual_weight:
        loss = loss + residual_weight * listwise_cross_entropy(student + lists.teacher, lists)
    return loss


@dataclass(frozen=True)
class Step:
    """One step's lists and, in the same order, its pairs: list after list."""

    lists: Lists
    query_rows: list[int]
    passage_rows: list[int]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine decay to zero; a function of the step only."""
    warmup = max(1, round(recipe.warmup_share * recipe.steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def draw_step(prepared: Prepared, recipe: Recipe, seed: int, step: int) -> Step:
    """The lists of a step, drawn from ``(seed, step)``."""
    rng = np.random.default_rng([seed, 1, step])
    drawn: list[DrawnList] = []
    query_rows: list[int] = []
    passage_rows: list[int] = []
    for part, query in schedule(prepared.mined, recipe, seed, step):
        one = draw(prepared.mined[part], query, recipe, rng)
        drawn.append(one)
        query_rows += [int(prepared.mined[part].query_rows[query])] * len(one.passages)
        passage_rows += (one.passages + prepared.passage_from[prepared.mined[part].collection]).tolist()
    return Step(
        Lists(
            teacher=torch.from_numpy(np.stack([one.scores for one in drawn])) / recipe.temperature,
            relevant=torch.from_numpy(np.stack([one.relevant for one in drawn])),
            excluded=torch.from_numpy(np.stack([one.excluded for one in drawn])),
            labelled=torch.tensor([one.labelled for one in drawn]),
        ),
        query_rows,
        passage_rows,
    )


def score_pairs(student: BertForSequenceClassification, step: Step, prepared: Prepared, recipe: Recipe) -> Tensor:
    """Logits ``[pairs] float32`` in the step's order; forwards run on pairs of like length."""
    queries, passages = prepared.query_tokens, prepared.passage_tokens
    pairs = np.stack([step.query_rows, step.passage_rows], axis=1).astype(np.int64)
    table = pair_table(queries, passages, pairs, prepared.vocabulary.template, recipe.max_tokens)
    uncut = queries.full_lengths[pairs[:, 0]] + np.minimum(passages.full_lengths[pairs[:, 1]], passages.cap)
    order = np.argsort(uncut, kind="stable")
    scores = []
    for start in range(0, len(order), recipe.micro_batch):
        batch = pad(table, order[start : start + recipe.micro_batch], prepared.vocabulary)
        with torch.autocast("cpu", torch.bfloat16):
            output = student(input_ids=batch.ids, attention_mask=batch.attention, token_type_ids=batch.segments)
        scores.append(output.logits[:, 0].float())
    return torch.cat(scores)[torch.from_numpy(np.argsort(order))]


def train(
    student: BertForSequenceClassification,
    prepared: Prepared,
    recipe: Recipe,
    seed: int,
    checkpoint: Path,
    say: Say,
    *,
    seconds: float = math.inf,
) -> int:
    """Train in place until the recipe's last step; go on from ``checkpoint`` where it exists.

    Args:
        student: float32, changed in place.
        prepared: the data.
        recipe: the schedule.
        seed: decides lists and their order.
        checkpoint: safetensors file, rewritten every few hundred steps and at the end.
        say: gets progress lines.
        seconds: wall-clock limit; what is done by then is in the checkpoint.

    Returns:
        The number of steps that are done, less than ``recipe.steps`` where the limit came first.
    """
    torch.use_deterministic_algorithms(True)
    optimiser = _optimiser(student, recipe)
    done = _restore(student, optimiser, checkpoint, recipe, seed) if checkpoint.is_file() else 0
    student.train()
    began = time.monotonic()
    window: list[float] = []
    for step in range(done, recipe.steps):
        window.append(_one_step(student, optimiser, prepared, recipe, seed, step))
        done = step + 1
        if done % _REPORT_EVERY == 0 or done == recipe.steps:
            passed = time.monotonic() - began
            say(f"step {done}/{recipe.steps} loss {np.mean(window):.4f} {passed:.0f} s")
            window.clear()
        if done % _CHECKPOINT_EVERY == 0 or done == recipe.steps:
            _save(student, optimiser, checkpoint, recipe, seed, done)
        if time.monotonic() - began > seconds and done < recipe.steps:
            _save(student, optimiser, checkpoint, recipe, seed, done)
            break
    return done


def _one_step(
    student: BertForSequenceClassification,
    optimiser: torch.optim.AdamW,
    prepared: Prepared,
    recipe: Recipe,
    seed: int,
    number: int,
) -> float:
    step = draw_step(prepared, recipe, seed, number)
    scores = score_pairs(student, step, prepared, recipe).view(step.lists.teacher.shape)
    weighted = float(number >= recipe.labels_from * recipe.steps)
    loss = combined_loss(scores, step.lists, weighted * recipe.label_weight, weighted * recipe.residual_weight)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(recipe, number)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _optimiser(student: BertForSequenceClassification, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def _identity(recipe: Recipe, seed: int) -> str:
    return f"{seed} {recipe!r}"


def _save(
    student: BertForSequenceClassification,
    optimiser: torch.optim.AdamW,
    path: Path,
    recipe: Recipe,
    seed: int,
    done: int,
) -> None:
    tensors = {f"weight.{name}": tensor.detach() for name, tensor in student.state_dict().items()}
    for name, parameter in student.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{name}"] = optimiser.state[parameter][key]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata={"done": str(done), "identity": _identity(recipe, seed)})
    os.replace(temporary, path)


def _restore(
    student: BertForSequenceClassification, optimiser: torch.optim.AdamW, path: Path, recipe: Recipe, seed: int
) -> int:
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
        if metadata["identity"] != _identity(recipe, seed):
            raise ArtefactError(
                f"{path.name} is the checkpoint of another recipe or seed. Choose another --work folder or remove it"
            )
        student.load_state_dict({name: stored.get_tensor(f"weight.{name}") for name in student.state_dict()})
        for name, parameter in student.named_parameters():
            optimiser.state[parameter] = {
                key: stored.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq", "step")
            }
        return int(metadata["done"])
