"""Write a model's files as sentence-transformers 6.2 saves them, and turn them into older or rarer layouts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules.transformer import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ensemble_assets_tests.model_zoo.families.networks import Task, network

Edit = Callable[[Path], None]
"""Changes the files of a saved model."""

TASKS: Mapping[Task, str] = {
    "encoder": "feature-extraction",
    "mlm": "fill-mask",
    "classifier": "sequence-classification",
    "causal": "text-generation",
}
"""The name that sentence-transformers gives to what a network does."""


def write_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, shard: str = "50GB"
) -> None:
    """Write a plain transformers checkpoint."""
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)


def transformer(
    name: str,
    task: Task,
    *,
    tokenizer: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Transformer:
    """Make the first module of a pipeline around a random network.

    Args:
        name: of the architecture.
        task: which head stands on the encoder.
        tokenizer: attributes to set on the tokenizer, such as ``padding_side`` or ``chat_template``.
        options: of the network's configuration.
        arguments: of the module, such as ``max_seq_length``.
    """
    model, words = network(name, task, **(options or {}))
    for attribute, value in (tokenizer or {}).items():
        setattr(words, attribute, value)
        if attribute.endswith("_side"):  # only what the tokenizer was made with is saved
            words.init_kwargs[attribute] = value
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), model, words)
        return Transformer(folder, transformer_task=TASKS[task], **arguments)


def save(model: BaseModel, folder: Path, edits: Sequence[Edit] = (), dtype: torch.dtype = torch.float32) -> None:
    """Save a sentence-transformers model in ``folder``, in ``dtype``, and apply the edits in order."""
    model.eval().to(dtype)
    model.save_pretrained(str(folder), create_model_card=False)
    for edit in edits:
        edit(folder)


def json_with(name: str, **changes: Any) -> Edit:
    """Set fields of a JSON file, which may not be there yet; a value of None removes the field."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        path.write_text(json.dumps(content, indent=2))

    return edit


def json_as(name: str, content: Any) -> Edit:
    """Write a JSON file in place of what is there."""

    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(content, indent=2))

    return edit


def without(*names: str) -> Edit:
    """Remove files."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return edit


def weights_as_bin(*, keep: bool = False) -> Edit:
    """Write ``pytorch_model.bin`` in place of the safetensors, or beside them."""

    def edit(folder: Path) -> None:
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        if not keep:
            weights.unlink()

    return edit


def sharded(folder: Path) -> None:
    """Split the weights into two safetensors files with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    index: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in half}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(half, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    (folder / "model.safetensors").unlink()


def first_module_in(name: str) -> Edit:
    """Move the files of the first module from the root into a folder of their own, as early versions saved them."""

    def edit(folder: Path) -> None:
        target = folder / name
        target.mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and path.name not in {"modules.json", "config_sentence_transformers.json"}:
                shutil.move(path, target / path.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = name
        (folder / "modules.json").write_text(json.dumps(modules))

    return edit


def module_in(number: int, name: str, *, decoy: Mapping[str, Any] | None = None) -> Edit:
    """Move a module into a folder with another name; leave other settings in the old one where ``decoy`` has some."""

    def edit(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        old = folder / modules[number]["path"]
        shutil.move(old, folder / name)
        modules[number]["path"] = name
        (folder / "modules.json").write_text(json.dumps(modules))
        if decoy is not None:
            old.mkdir()
            (old / "config.json").write_text(
                json.dumps({**json.loads((folder / name / "config.json").read_text()), **decoy})
            )

    return edit


def vocabulary_files(folder: Path) -> None:
    """Leave the vocabulary in the files that came before ``tokenizer.json``: ``vocab.txt``, or JSON with merges."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    if "merges" in model:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        (folder / "vocab.txt").write_text("\n".join(ordered) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def old_tensor_names(folder: Path) -> None:
    """Name the gains of norms gamma and beta, and add the buffer of positions, as checkpoints of 2019 have them."""
    path = folder / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    renamed["embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(renamed, path)


def template_in_tokenizer_config(folder: Path) -> None:
    """Move the chat template from its own file into ``tokenizer_config.json``, where transformers 4 kept it."""
    file = folder / "chat_template.jinja"
    json_with("tokenizer_config.json", chat_template=file.read_text())(folder)
    file.unlink()


_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_OLD_PACKAGES = {"Sparse": "sentence_transformers.sparse_encoder.models", "": "sentence_transformers.models"}
_OLD_VERSIONS = {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "2.0.0"}


def before_version_6(*, limit: int = 512, lower: bool = False, sparse: bool = False) -> Edit:
    """Rewrite the files as versions 2 to 5 saved them: most models on the hub look like this.

    Module types are short, the limit stands in ``sentence_bert_config.json``, and pooling is a set of flags.

    Args:
        limit: ``max_seq_length``.
        lower: ``do_lower_case``.
        sparse: whether the first module is the ``MLMTransformer`` of sparse models.
    """

    def edit(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        for module in modules:
            kind = module["type"].rsplit(".", 1)[-1]
            of_sparse = kind.startswith(("Splade", "Sparse")) or (sparse and kind == "Transformer")
            kind = "MLMTransformer" if sparse and kind == "Transformer" else kind
            module["type"] = f"{_OLD_PACKAGES['Sparse' if of_sparse else '']}.{kind}"
        (folder / "modules.json").write_text(json.dumps(modules, indent=2))
        settings = folder / modules[0]["path"] / "sentence_bert_config.json"
        settings.write_text(json.dumps({"max_seq_length": limit, "do_lower_case": lower}))
        for path in folder.glob("*_Pooling/config.json"):
            path.write_text(json.dumps(_pooling_before_version_6(json.loads(path.read_text()))))
        kind = "SparseEncoder" if sparse else None  # dense models did not say what they are
        json_with("config_sentence_transformers.json", __version__=_OLD_VERSIONS, model_type=kind)(folder)

    return edit


def _pooling_before_version_6(content: dict[str, Any]) -> dict[str, Any]:
    modes = content["pooling_mode"]
    modes = [modes] if isinstance(modes, str) else modes
    flags = {flag: mode in modes for mode, flag in _POOLING_FLAGS.items()}
    return {
        "word_embedding_dimension": content["embedding_dimension"],
        **flags,
        "include_prompt": content.get("include_prompt", True),
    }
