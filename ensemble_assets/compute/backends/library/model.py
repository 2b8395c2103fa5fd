"""Load a model with sentence-transformers and run its own preprocessing and modules: the reference of every backend.

A row is one text, or one (query, chunk) pair, as the arrays that the model's ``preprocess`` gives for it, without
padding. The same rows can then be padded and batched by the batch planner in any order.
https://sbert.net/docs/package_reference/base/Module.html describes modules and their features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ensemble_assets.common.errors import ModelUnavailableError, StageError, failure_word
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.torch_runtime import (
    DTYPES,
    is_out_of_memory,
    quiet_transformers,
    resolve_precision,
)
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout, padded_arrays
from ensemble_assets.compute.tokens.token_tables import TASKS, Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec, may_run_code

Task = Literal["document", "query"]
Features = dict[str, Any]

_TEXTS_AT_ONCE = 256
"""Texts of one ``preprocess`` call: its padded arrays stay under a few megabytes at 512 tokens a text."""

_PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which ``encode_query`` and ``encode_document`` look for a prompt, in order."""

_HEADS = ("classifier", "score")
"""Names of the classification head in transformers' models; it runs in fp32, since half-precision logits tie."""

_FROM_PRETRAINED: Any = PreTrainedModel.__dict__["from_pretrained"]
_LOADING = Lock()
"""Held while ``from_pretrained`` is watched: two threads may load at once."""


class LibraryModel:
    """A sentence-transformers model on a device.

    Attributes:
        model: ``SentenceTransformer``, ``SparseEncoder`` or ``CrossEncoder``.
        spec: kind, limits and prompts that were asked for.
        layouts: by task, known once rows of the task were made.
    """

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.model = model
        self.spec = spec
        self.layouts: dict[str, FeatureLayout] = {}

    @property
    def max_tokens(self) -> int:
        """Tokens that the model reads of a text, special tokens included; 0 without a limit."""
        limit = self.model.max_seq_length
        return int(limit) if limit is not None and np.isfinite(limit) else 0

    @property
    def truncate_dim(self) -> int | None:
        """Width to which vectors are cut (Matryoshka), or None."""
        width = getattr(self.model, "truncate_dim", None)
        return None if width is None else int(width)

    def own_prompt(self, task: str) -> str | None:
        """The spec's text in front of a task's texts; None where the model's files decide."""
        return self.spec.query_prefix if task == "query" else self.spec.document_prefix

    def prompt(self, task: str) -> str | None:
        """Text that goes in front: the spec's where it has one, else the one that the model's files name.

        The rule is that of ``encode_query`` and ``encode_document``; a CrossEncoder has its default prompt only.
        """
        own = self.own_prompt(task)
        if own is not None:
            return own or None
        prompts: Mapping[str, str] = self.model.prompts
        names = () if self.spec.kind == "rerank" else _PROMPT_NAMES[task]
        for name in (*names, self.model.default_prompt_name):
            if name is not None and name in prompts:
                return prompts[name]
        return None

    def rows(self, texts: Sequence[Any], task: Task) -> TokenTable:
        """Rows of texts, or of (query, chunk) pairs, as the model reads them.

        Args:
            texts: ``n`` strings, or ``n`` pairs of strings for a CrossEncoder.
            task: which prompt, length limit and network apply.

        Raises:
            ModelUnavailableError: if the model's features are not token-aligned.
            StageError: if its preprocessing fails on a text; carries no text.
        """
        blocks: list[_Block] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            try:
                blocks.append(self._block(texts[at : at + _TEXTS_AT_ONCE], task))
            except ModelUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, its message may quote the text
                name = failure_word(error)
            else:
                continue
            # outside the handler, so that the original exception is not even attached as context
            raise StageError(f"{self.spec.slug}: its own preprocessing fails on one of {len(texts)} texts ({name})")
        return _joined(blocks, task)

    def features(self, table: TokenTable, batch: Batch, task: Task, device: str) -> Features:
        """Pad the batch's rows, which are all of one task, and move them to the device."""
        layout = self.layouts[task]
        arrays = padded_arrays(table, batch, layout)
        tensors = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
        return {**tensors, **layout.constants}

    def run(self, features: Features, task: Task) -> Features:
        """Run the modules; returns the features with ``sentence_embedding`` or ``scores`` among them."""
        words = {} if self.spec.kind == "rerank" else {"task": task}
        if (kept := getattr(self.model, "max_active_dims", None)) is not None:
            words["max_active_dims"] = kept
        outputs: Features = self.model(features, **words)
        if kept is not None:
            from sentence_transformers.util import select_max_active_dims

            outputs["sentence_embedding"] = select_max_active_dims(outputs["sentence_embedding"], kept)
        return outputs

    def _preprocess(self, texts: Sequence[Any], task: Task, **words: Any) -> Features:
        if self.spec.kind != "rerank":
            words["task"] = task
        features: Features = self.model.preprocess(list(texts), prompt=self.prompt(task), **words)
        return features

    def _block(self, texts: Sequence[Any], task: Task) -> _Block:
        features = self._preprocess(texts, task)
        block = _bag_block(features) if "offsets" in features else _padded_block(self.spec.slug, features)
        layout = self.layouts.get(task)
        if layout is None or not layout.arrays:
            self.layouts[task] = self._layout(features, task)
        lost = np.zeros(len(texts), np.int64)
        limited = bool(self.max_tokens) and "offsets" not in features
        full = np.flatnonzero((block.lengths >= self.max_tokens) & limited)
        if len(full):
            whole = [texts[row] for row in full.tolist()]
            with quiet_transformers():
                uncut = self._preprocess(whole, task, processing_kwargs={"text": {"truncation": False}})
            if "attention_mask" in uncut:
                lost[full] = np.maximum(uncut["attention_mask"].sum(dim=1).numpy() - block.lengths[full], 0)
        return _Block(block.arrays, block.lengths, lost)

    def _layout(self, features: Features, task: Task) -> FeatureLayout:
        """Read off how the tokenizer pads, from a short and a long text."""
        constants = {name: value for name, value in features.items() if not isinstance(value, torch.Tensor)}
        names = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
        if "offsets" in features:
            return FeatureLayout({"input_ids": 0}, constants, bag=True)
        long = "a b c d e f g h"
        sample = self._preprocess([("a", "a"), ("a", long)] if self.spec.kind == "rerank" else ["a", long], task)
        mask = sample["attention_mask"][0].bool()
        aligned = [name for name in names if sample[name].shape == sample["attention_mask"].shape]
        pads = {name: int(sample[name][0][~mask][0]) if not mask.all() else 0 for name in aligned}
        pads |= {name: 0 for name in names if name not in aligned}
        return FeatureLayout(pads, constants, left=not mask.all() and not bool(mask[0]))


def load_library_model(
    spec: ModelSpec, files: ModelFiles, runtime: Runtime, device: str, *, empty: bool = False
) -> LibraryModel:
    """Load a model in evaluation mode on ``device``, from files on this machine only.

    Args:
        spec: decides the class, the length limit, and whether the model's own code may run.
        files: the folder of its files.
        runtime: its precision becomes the weights' dtype.
        device: ``"cpu"``, ``"cuda:0"``.
        empty: whether networks are left without weights, for preprocessing only.

    Raises:
        ModelUnavailableError: if sentence-transformers cannot load it, if its files lack weights, which would be
            random, or if it has another number of labels than one.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    precision = resolve_precision(runtime.precision, device, files.folder)
    options: dict[str, Any] = {
        "device": "meta" if empty else device,
        "local_files_only": True,
        "trust_remote_code": may_run_code(spec),
        "model_kwargs": {"dtype": DTYPES[precision]},
    }
    try:
        with quiet_transformers(), _networks_loaded(empty) as missing:
            model = _model_class(spec)(str(files.folder), **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceOutOfMemoryError(f"{spec.slug}: its weights do not fit on {device}") from None
        if "trust_remote_code" in str(error) and not spec.trust_remote_code:
            raise ModelUnavailableError(
                f"{spec.slug}: runs code of its own, which is not allowed. Choose another model, or pin a full commit "
                "and set trust_remote_code in a models file (docs/models.md)"
            ) from error
        line = str(error).partition("\n")[0].replace(str(files.folder), files.folder.name)
        raise ModelUnavailableError(
            f"{spec.slug}: sentence-transformers cannot load it as a {spec.kind} model "
            f"({type(error).__name__}: {line}). Choose another model or revision"
        ) from error
    words = getattr(model, "tokenizer", None)
    if isinstance(words, PreTrainedTokenizerBase) and words.vocab_size <= len(words.all_special_tokens):
        raise ModelUnavailableError(
            f"{spec.slug}: has no vocabulary among its files, so that every text would look the same. "
            "Add the files of its tokenizer, or choose another model"
        )
    # only an encoder's unused pooler may be missing
    needed = sorted(name for name in missing if spec.kind == "rerank" or "pooler." not in name)
    if needed:
        raise ModelUnavailableError(
            f"{spec.slug}: its weights lack {needed[0]} and {len(needed) - 1} more that a {spec.kind} model needs. "
            "Choose a checkpoint made for this"
        )
    names = [type(module).__name__ for module in model.children()]
    if "SparseAutoEncoder" in names and not (files.folder / "modules.json").is_file():
        raise ModelUnavailableError(
            f"{spec.slug}: its weights lack a masked language model's output layer, for which sentence-transformers "
            "puts a random one. Choose a checkpoint made for sparse vectors"
        )
    if spec.kind == "rerank" and model.num_labels != 1:
        raise ModelUnavailableError(
            f"{spec.slug}: has {model.num_labels} labels; a reranker has one. Choose another model"
        )
    if spec.max_tokens and (model.max_seq_length is None or spec.max_tokens < model.max_seq_length):
        model.max_seq_length = spec.max_tokens
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _finish_in_fp32(model, precision)
    return LibraryModel(model, spec)


@contextmanager
def _networks_loaded(empty: bool) -> Iterator[list[str]]:
    """Collect the names of weights that transformers finds in no file while it loads networks in this block.

    sentence-transformers does not ask for them, so the class method is replaced meanwhile. With ``empty`` it makes the
    network of the configuration on torch's ``meta`` device, which takes no memory.
    """
    missing: list[str] = []

    def watched(cls: Any, *arguments: Any, **options: Any) -> Any:
        if empty and isinstance(options.get("config"), PreTrainedConfig):
            with torch.device("meta"):
                return cls(options["config"])
        network, report = _FROM_PRETRAINED.__func__(cls, *arguments, **{**options, "output_loading_info": True})
        missing.extend(map(str, report["missing_keys"]))
        return network

    with _LOADING:
        PreTrainedModel.from_pretrained = classmethod(watched)
        try:
            yield missing
        finally:
            PreTrainedModel.from_pretrained = _FROM_PRETRAINED


@lru_cache(maxsize=1)
def load_row_maker(spec: ModelSpec, files: ModelFiles) -> LibraryModel:
    """Load a model for its preprocessing only; the last one stays, since chunks, queries and pairs come apart."""
    return load_library_model(spec, files, Runtime(precision="fp32"), "cpu", empty=True)


def _model_class(spec: ModelSpec) -> Any:
    import sentence_transformers

    names = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}
    return getattr(sentence_transformers, names[spec.kind])


def _finish_in_fp32(model: Any, precision: str) -> None:
    """Run pooling, projections, norms and classification heads in fp32, whatever the network's dtype is."""
    modules = list(model.children())
    if precision == "fp32":
        model.float()
        return
    for module in modules[1:]:
        module.float()
    modules[0].register_forward_hook(_outputs_to_fp32)
    network = getattr(modules[0], "model", None)
    for head in (getattr(network, name, None) for name in _HEADS):
        if isinstance(head, torch.nn.Module):
            head.float().register_forward_pre_hook(_inputs_to_fp32)


def _outputs_to_fp32(module: torch.nn.Module, arguments: tuple[Any, ...], features: Features) -> Features:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }


def _inputs_to_fp32(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in arguments)


@dataclass(frozen=True)
class _Block:
    """Rows of some texts: token-aligned flat arrays by feature name, tokens per row, and tokens that were cut off."""

    arrays: Mapping[str, NDArray[np.int64]]
    lengths: NDArray[np.int64]
    lost: NDArray[np.int64]


def _padded_block(slug: str, features: Features) -> _Block:
    mask = features.get("attention_mask")
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    if mask is not None and "sentence_lengths" in tensors:  # older modules: the number of tokens, counted again
        del tensors["sentence_lengths"]
    if mask is None or any(value.shape != mask.shape for value in tensors.values()):
        raise ModelUnavailableError(
            f"{slug}: its inputs are not one number per token ({', '.join(tensors)}), which this program does not "
            "batch. Choose another model"
        )
    used = mask.bool().numpy()
    # a row runs from its first to its last real token; a model may mask tokens in between
    first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    columns = np.arange(used.shape[1])
    inside = (columns >= first[:, None]) & (columns < last[:, None]) & used.any(axis=1)[:, None]
    arrays = {name: value.numpy()[inside] for name, value in tensors.items()}
    return _Block(arrays, inside.sum(axis=1), np.zeros(len(used), np.int64))


def _bag_block(features: Features) -> _Block:
    starts = features["offsets"].numpy()
    lengths = np.diff(starts, append=len(features["input_ids"]))
    return _Block({"input_ids": features["input_ids"].numpy()}, lengths, np.zeros(len(starts), np.int64))


def _joined(blocks: Sequence[_Block], task: Task) -> TokenTable:
    lengths = np.concatenate([block.lengths for block in blocks]) if blocks else np.zeros(0, np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    names = list(blocks[0].arrays) if blocks else ["input_ids"]
    arrays = {
        name: np.concatenate([block.arrays[name] for block in blocks]).astype(np.int32)
        if blocks
        else np.zeros(0, np.int32)
        for name in names
    }
    if "attention_mask" in arrays and arrays["attention_mask"].all():
        del arrays["attention_mask"]  # it is made again from the rows' lengths
    if "token_type_ids" in arrays and not arrays["token_type_ids"].any():
        del arrays["token_type_ids"]
    lost = np.concatenate([block.lost for block in blocks]) if blocks else np.zeros(0, np.int64)
    ids = arrays.pop("input_ids")
    return TokenTable(
        ids, offsets, lost > 0, tasks=np.full(len(lengths), TASKS.index(task), np.uint8), arrays=arrays, lost=lost
    )


def split_by_task(table: TokenTable, batch: Batch) -> Iterator[tuple[Task, NDArray[np.int64]]]:
    """Yield each task of the batch with the places of its rows in the batch."""
    codes = np.zeros(batch.size, np.uint8) if table.tasks is None else table.tasks[batch.rows]
    for code in np.unique(codes).tolist():
        yield TASKS[code], np.flatnonzero(codes == code)
