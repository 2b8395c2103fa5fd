"""Small random checkpoints of real architectures, with a real tokenizer beside them, to compare our forwards on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets_tests.compute.running.doubles import BERT, IDS, ROBERTA, model_folder

WIDTH, POSITIONS = 32, 66
_COMMON = {"vocab_size": len(IDS), "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT_LIKE = {**_COMMON, "intermediate_size": 64, "max_position_embeddings": POSITIONS}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT_LIKE, "pad_token_id": 0},
    "roberta": {**_BERT_LIKE, "pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": len(IDS), "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 0,
    },
    "modernbert": {**_COMMON, "intermediate_size": 64, "pad_token_id": 0, "max_position_embeddings": POSITIONS},
    "qwen3": {
        **_COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        "max_position_embeddings": POSITIONS,
    },
}  # fmt: skip
_CLASSES = {
    "dense": transformers.AutoModel,
    "sparse": transformers.AutoModelForMaskedLM,
    "rerank": transformers.AutoModelForSequenceClassification,
}


def checkpoint(
    folder: Path, kind: ModelKind, model_type: str = "bert", *, labels: int = 1, pools: str = "", **spec: Any
) -> ModelSpec:
    """Writes a random checkpoint; weights larger than usual, so that mistakes show. ``pools`` is a Pooling module."""
    made = model_folder(folder, kind, template=ROBERTA if model_type == "roberta" else BERT, **spec)
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type], num_labels=labels)
    network = _CLASSES[kind].from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3)
    network.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=POSITIONS - 2,
        model_input_names=["input_ids", *(["token_type_ids"] if model_type == "bert" else []), "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    if pools:
        types = {"": "Transformer", "1_Pooling": "Pooling"}
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
            for at, (path, name) in enumerate(types.items())
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        settings = {"embedding_dimension": WIDTH, "pooling_mode": pools}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return replace(made, dimension=WIDTH) if kind == "dense" else made


def plain(folder: Path, kind: ModelKind) -> Any:
    """The same checkpoint as a user would load it."""
    return _CLASSES[kind].from_pretrained(folder).eval()


def one_batch(table: TokenTable) -> Batch:
    """All rows of a table."""
    return Batch(np.arange(len(table)), int(table.lengths.max()))
