"""The student: a BertForSequenceClassification with one label, started from an embedded encoder; saved as float16.

Training it is ``reranker``; turning text into its token ids is ``tokens``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.training.recipe import Recipe

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def student_config(body: Path, recipe: Recipe) -> BertConfig:
    """The student's configuration: the body's, with the recipe's number of layers, one label and no dropout.

    Raises:
        ModelUnavailableError: if the body is not the BERT that the recipe describes.
    """
    config = BertConfig.from_pretrained(body)
    if config.hidden_size != recipe.hidden_size or config.num_hidden_layers < recipe.layers:
        raise ModelUnavailableError(
            f"recipe {recipe.name}: {recipe.body} has {config.num_hidden_layers} layers of width {config.hidden_size}; "
            f"expected at least {recipe.layers} of width {recipe.hidden_size}. Correct the recipe's row"
        )
    config.update(
        {
            "architectures": ["BertForSequenceClassification"],
            "num_hidden_layers": recipe.layers,
            "num_labels": 1,
            "id2label": {0: "relevance"},
            "label2id": {"relevance": 0},
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "is_decoder": False,
        }
    )
    return config


def build_student(body: Path, recipe: Recipe, seed: int) -> BertForSequenceClassification:
    """A float32 student with the body's embeddings and first layers; pooler and classifier are drawn from ``seed``.

    No dropout: distillation from a fixed teacher does not overfit in one pass, and the step is faster and
    deterministic without it.

    Raises:
        ModelUnavailableError: if a weight that the student needs is missing from the body.
    """
    torch.manual_seed(seed)
    config = student_config(body, recipe)
    student = BertForSequenceClassification(config)
    encoder, found = BertModel.from_pretrained(
        body, config=config, add_pooling_layer=False, local_files_only=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelUnavailableError(f"{recipe.body}: its weights lack {missing[0]} and {len(missing) - 1} more")
    student.bert.load_state_dict(encoder.float().state_dict(), strict=False)
    # On CPU the fused attention's backward takes 1.6 times as long as the plain one's whole step.
    student.set_attn_implementation("eager")
    return student.float()


def save_student(student: BertForSequenceClassification, body: Path, folder: Path) -> None:
    """Write ``config.json``, float16 ``model.safetensors`` and the body's tokenizer; the weights appear last, whole.

    Weights are stored in float16 and meant to be computed in float32 or bfloat16; ``config.json`` says float32 so
    that a plain ``from_pretrained`` loads them so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(body / name, folder / name)
    config = BertConfig.from_dict(student.config.to_dict())
    config.architectures = ["BertForSequenceClassification"]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in student.state_dict().items()}
    temporary = folder / "model.safetensors.part"
    save_file(halves, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors creates files that only their owner can read
    os.replace(temporary, folder / "model.safetensors")
