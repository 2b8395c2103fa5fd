"""ColBERT models: a vector for each token, as sentence-transformers 6.2, PyLate and Stanford's code save them."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN, network
from ensemble_assets_tests.model_zoo.families.saving import Edit, json_with, save, transformer, write_checkpoint

PUNCTUATION = list(string.punctuation)
EXPANSION: Mapping[str, Any] = {"strategy": "fixed", "attend": False, "length": 32}
MARKS = {"query": "[Q] ", "document": "[D] "}
_PROJECTED = 48


def multi_vector(
    name: str = "bert",
    *,
    expansion: Mapping[str, Any] | None = EXPANSION,
    skiplist: Sequence[str] = PUNCTUATION,
    normalize: bool = True,
    last: Sequence[torch.nn.Module] = (),
    module: Mapping[str, Any] | None = None,
    edits: Sequence[Edit] = (),
    **model: Any,
) -> Build:
    """Make the builder of a model whose files name all its modules.

    Args:
        name: of the architecture.
        expansion: of queries; None: they stay as they are.
        skiplist: words of documents that are not compared.
        normalize: whether the vectors are of length 1.
        last: modules after these.
        module: arguments of the Transformer module.
        edits: of the saved files.
        model: arguments of the MultiVectorEncoder: prompts, similarity_fn_name.
    """

    def build(folder: Path) -> None:
        torch.manual_seed(31)
        first = transformer(name, "encoder", query_expansion=expansion, **{"document_length": 180, **(module or {})})
        width = first.get_embedding_dimension()
        linear = torch.nn.Identity()
        head = Dense(width, _PROJECTED, bias=False, activation_function=linear, module_input_name="token_embeddings")
        modules = [first, head, MultiVectorMask(skiplist_words=list(skiplist))]
        modules += [Normalize(module_input_name="token_embeddings")] * normalize
        save(MultiVectorEncoder(modules=[*modules, *last], device="cpu", **model), folder, edits)

    return build


def as_pylate(folder: Path) -> None:
    """Rewrite the files as PyLate saves them: two modules of classes of its own, and all else in one file."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules[2:]:
        shutil.rmtree(folder / module["path"], ignore_errors=True)
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    no_names = {"module_input_name": None, "module_output_name": None}
    json_with(f"{modules[1]['path']}/config.json", **no_names)(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 511, "do_lower_case": False}))
    json_with(
        "config_sentence_transformers.json", model_type="ColBERT", prompts={}, similarity_fn_name="MaxSim",
        query_prefix=MARKS["query"], document_prefix=MARKS["document"], query_length=32, document_length=180,
        attend_to_expansion_tokens=False, skiplist_words=PUNCTUATION,
    )(folder)  # fmt: skip


def stanford(folder: Path) -> None:
    """Build a checkpoint of class HF_ColBERT: the projection beside the encoder's weights, and settings."""
    model, tokenizer = network("bert", "encoder")
    tokenizer.add_tokens(["[unused0]", "[unused1]"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    write_checkpoint(folder, model, tokenizer)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.manual_seed(32)
    weights["linear.weight"] = torch.randn(_PROJECTED, HIDDEN) * 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    json_with("config.json", architectures=["HF_ColBERT"])(folder)
    settings = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 32, "doc_maxlen": 180}
    facts = {"mask_punctuation": True, "attend_to_mask_tokens": False}
    (folder / "artifact.metadata").write_text(json.dumps({**settings, **facts}))
