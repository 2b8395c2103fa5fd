"""Layouts that are refused: many vectors a text, images, code of their own, adapters, other weights, no tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder

from ensemble_assets_tests.model_zoo.families import vocabularies
from ensemble_assets_tests.model_zoo.families.dense import dense, plain_checkpoint
from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN
from ensemble_assets_tests.model_zoo.families.saving import json_with

_plain = plain_checkpoint("bert")


def colbert(saved_as: str = "") -> Build:
    """Make the builder of a model with a vector per token.

    Args:
        saved_as: what its files call it; empty for the first layout, which names a class that nobody else has.
    """

    def build(folder: Path) -> None:
        _plain(folder)
        if not saved_as:
            json_with("config.json", architectures=["HF_ColBERT"])(folder)
            return
        plain = folder.with_name(f"{folder.name}-plain")
        shutil.move(folder, plain)
        MultiVectorEncoder(str(plain), device="cpu").save_pretrained(str(folder), create_model_card=False)
        shutil.rmtree(plain)
        json_with("config_sentence_transformers.json", model_type=saved_as)(folder)

    return build


def images(path: str = "") -> Build:
    """Make the builder of a CLIP model, in the root or in a folder that ``modules.json`` names."""

    def build(folder: Path) -> None:
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
        tokenizer = vocabularies.byte_level("GPT2Tokenizer")
        texts = {**sizes, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
        pictures = {**sizes, "image_size": 32, "patch_size": 8}
        config = transformers.CLIPConfig(text_config=texts, vision_config=pictures, projection_dim=32)
        for part in (transformers.CLIPModel(config), tokenizer):
            part.save_pretrained(folder / path)
        if path:
            module = {"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.CLIPModel"}
            (folder / "modules.json").write_text(json.dumps([module]))

    return build


_CODE = 'raise SystemExit("code of a model ran")\n'


def code_of_its_own(folder: Path) -> None:
    """Build a checkpoint of an architecture that is not part of transformers."""
    _plain(folder)
    classes = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    json_with("config.json", model_type="own-architecture", auto_map=classes)(folder)
    (folder / "own_code.py").write_text(_CODE)


def module_of_its_own(folder: Path) -> None:
    """Build a model whose first module is not part of sentence-transformers."""
    dense("bert")(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "own_module.OwnTransformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own_module.py").write_text(_CODE)


def adapter(whole: Build | None = None) -> Build:
    """Make the builder of a LoRA adapter, alone or beside a whole model."""

    def build(folder: Path) -> None:
        if whole is not None:
            whole(folder)
        settings = {"peft_type": "LORA", "base_model_name_or_path": "zoo/base", "r": 8}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file({"base_model.lora_A.weight": torch.zeros(8, HIDDEN)}, folder / "adapter_model.safetensors")

    return build


def other_weights(name: str) -> Build:
    """Make the builder of a checkpoint whose weights are one file in another format."""

    def build(folder: Path) -> None:
        _plain(folder)
        (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"weights")

    return build


def without_tokenizer(*, settings: bool = False) -> Build:
    """Make the builder of a checkpoint without a vocabulary; ``settings`` leaves the tokenizer's settings there."""

    def build(folder: Path) -> None:
        _plain(folder)
        for path in folder.glob("*token*"):
            if not settings or path.name != "tokenizer_config.json":
                path.unlink()

    return build
