"""Tiny random networks of the architectures that people publish: hidden 64, two layers, seeded.

Weights are drawn wide and biases are not zero: with the usual narrow start all texts get nearly the same vector, and a
missing bias, prompt or token would not show.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ensemble_assets_tests.model_zoo.families import vocabularies

Task = Literal["encoder", "mlm", "classifier", "causal"]

HIDDEN = 64
_DEVIATION = 0.17
"""Of weights: about 1.4 / sqrt(64), which keeps the size of activations from layer to layer; less in wider networks."""

_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "hidden_size": HIDDEN}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 16}


@dataclass(frozen=True)
class Architecture:
    """How a published architecture is made small.

    Attributes:
        config: class name in transformers.
        tokenizer: makes its vocabulary.
        options: of the configuration.
        limit: positions, in tokens.
    """

    config: str
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    options: Mapping[str, Any] = field(default_factory=lambda: _SIZES)
    limit: int = 512


def _decoder(first: str, last: str, class_name: str) -> Callable[[], PreTrainedTokenizerBase]:
    make = vocabularies.byte_level if class_name in {"Qwen2Tokenizer", "GPT2Tokenizer"} else vocabularies.byte_fallback
    return lambda: vocabularies.framed(make(class_name, model_max_length=8192), first, last)


_DISTIL = {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
_ROBERTA = {**_SIZES, "max_position_embeddings": 514, "type_vocab_size": 1}
_ROBERTA_LONG = {**_ROBERTA, "max_position_embeddings": 8194}
_LOCAL = {**_SIZES, "max_position_embeddings": 8192, "local_attention": 64, "global_attn_every_n_layers": 2}
_T5 = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
_GEMMA = {**_GROUPED, "sliding_window": 128, "query_pre_attn_scalar": 16, "max_position_embeddings": 2048}
_FUNNEL = {"block_sizes": [2, 2], "num_decoder_layers": 1, "d_model": HIDDEN, "n_head": 4, "d_head": 16, "d_inner": 96}
_BIG_BIRD = {**_SIZES, "max_position_embeddings": 4096, "attention_type": "original_full"}
_LONG_ROPE = {**_GROUPED, "max_position_embeddings": 8192}
_DEBERTA = {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32}

_word, _piece = vocabularies.wordpiece, vocabularies.pieces

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("BertConfig", _word),
    "bert-cased": Architecture("BertConfig", partial(_word, lower=False)),
    "bert-as-nomic": Architecture("NomicBertConfig", partial(_word, model_max_length=8192), limit=8192),
    "distilbert": Architecture("DistilBertConfig", partial(_word, "DistilBertTokenizer"), _DISTIL),
    "electra": Architecture("ElectraConfig", _word, {**_SIZES, "embedding_size": 32}),
    "mpnet": Architecture("MPNetConfig", partial(_word, "MPNetTokenizer"), {**_SIZES, "max_position_embeddings": 514}),
    "funnel": Architecture("FunnelConfig", partial(_word, "FunnelTokenizer"), _FUNNEL),
    "roberta": Architecture("RobertaConfig", vocabularies.byte_level, _ROBERTA),
    "xlmr": Architecture("XLMRobertaConfig", _piece, _ROBERTA),
    "xlmr-long": Architecture("XLMRobertaConfig", partial(_piece, model_max_length=8192), _ROBERTA_LONG, 8192),
    "camembert": Architecture("CamembertConfig", partial(_piece, "CamembertTokenizer"), _ROBERTA),
    "longformer": Architecture(
        "LongformerConfig",
        partial(vocabularies.byte_level, model_max_length=4096),
        {**_ROBERTA, "max_position_embeddings": 4098, "attention_window": 64},
        4096,
    ),
    "gte": Architecture("GteConfig", partial(_piece, model_max_length=8192), limit=8192),
    "jina-v3": Architecture("JinaEmbeddingsV3Config", partial(_piece, model_max_length=8192), _ROBERTA_LONG, 8192),
    "deberta": Architecture("DebertaV2Config", partial(_piece, "DebertaV2Tokenizer"), _DEBERTA),
    "albert": Architecture("AlbertConfig", partial(_piece, "AlbertTokenizer"), {**_SIZES, "embedding_size": 32}),
    "bigbird": Architecture("BigBirdConfig", partial(_piece, "BigBirdTokenizer"), _BIG_BIRD),
    "xlnet": Architecture(
        "XLNetConfig", partial(_piece, "XLNetTokenizer"), {"d_model": HIDDEN, "n_layer": 2, "n_head": 4, "d_inner": 96}
    ),
    "modernbert": Architecture(
        "ModernBertConfig", partial(vocabularies.byte_level_of_bert, model_max_length=8192), _LOCAL, 8192
    ),
    "eurobert": Architecture(
        "EuroBertConfig", partial(vocabularies.byte_level_of_bert, model_max_length=8192), _LONG_ROPE, 8192
    ),
    "t5": Architecture("T5Config", partial(_piece, "T5Tokenizer"), _T5),
    "qwen2": Architecture("Qwen2Config", _decoder("", "", "Qwen2Tokenizer"), _LONG_ROPE, 8192),
    "qwen3": Architecture("Qwen3Config", _decoder("", "<|endoftext|>", "Qwen2Tokenizer"), _LONG_ROPE, 8192),
    "qwen3-reranker": Architecture("Qwen3Config", _decoder("", "", "Qwen2Tokenizer"), _LONG_ROPE, 8192),
    "llama": Architecture("LlamaConfig", _decoder("<s>", "", "LlamaTokenizer"), _LONG_ROPE, 8192),
    "mistral": Architecture(
        "MistralConfig", _decoder("<s>", "</s>", "LlamaTokenizer"), {**_LONG_ROPE, "sliding_window": 64}, 8192
    ),
    "gemma3": Architecture("Gemma3TextConfig", _decoder("<bos>", "<eos>", "GemmaTokenizer"), _GEMMA, 2048),
    "ernie": Architecture("ErnieConfig", _word, {**_SIZES, "use_task_id": True}),
    "mt5": Architecture("MT5Config", partial(_piece, "T5Tokenizer"), {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bloom": Architecture(
        "BloomConfig", _decoder("", "", "GPT2Tokenizer"), {"hidden_size": HIDDEN, "n_layer": 2, "n_head": 4}, 8192
    ),
    "gptneox": Architecture("GPTNeoXConfig", _decoder("", "", "GPT2Tokenizer"), _SIZES, 2048),
    "gpt2": Architecture(
        "GPT2Config", _decoder("", "", "GPT2Tokenizer"), {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4}, 1024
    ),
}
"""By the name that layouts use."""

_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
"""Classes of models whose decoder is left out."""

_AUTO: Mapping[Task, str] = {
    "encoder": "AutoModel",
    "mlm": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "causal": "AutoModelForCausalLM",
}


def network(name: str, task: Task, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a random network in fp32 and its tokenizer; the same name, task and options give the same weights.

    Args:
        name: of ``ARCHITECTURES``.
        task: which head stands on the encoder.
        options: of the configuration, over those of the architecture.
    """
    architecture = ARCHITECTURES[name]
    tokenizer = architecture.tokenizer()
    config = _config(architecture, tokenizer, options)
    torch.manual_seed(zlib.crc32(f"{name}{task}{sorted(options.items())}".encode()))
    if name in _ENCODERS and task == "encoder":
        model: PreTrainedModel = getattr(transformers, _ENCODERS[name])(config)
    else:
        auto: Any = getattr(transformers, _AUTO[task])
        model = auto.from_config(config, dtype=torch.float32)
    _spread(model)
    if task == "mlm":
        _make_sparse(model)
    return model.eval(), tokenizer


def _config(architecture: Architecture, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> Any:
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
        for kind in ("pad", "bos", "eos", "cls", "sep", "mask")
        if getattr(tokenizer, f"{kind}_token_id", None) is not None
    }
    if architecture.config in {"ModernBertConfig", "EuroBertConfig"}:  # their defaults are ids of a larger vocabulary
        ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    if architecture.config == "FunnelConfig":  # two encoders share this configuration; the library asks which
        ids["architectures"] = ["FunnelModel"]
    wanted = {"vocab_size": len(tokenizer), **ids, **architecture.options, **options}
    return getattr(transformers, architecture.config)(**wanted)


@torch.no_grad()
def _spread(model: PreTrainedModel) -> None:
    """Draw all weights anew: matrices wide, gains around their value, biases off zero."""
    narrower = (HIDDEN / max(HIDDEN, getattr(model.config, "hidden_size", None) or HIDDEN)) ** 0.5
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.normal_(0.0, _DEVIATION * narrower)
        elif name.endswith("bias"):
            weight.normal_(0.0, 0.1)
        else:
            weight.add_(torch.randn_like(weight) * 0.1)


@torch.no_grad()
def _make_sparse(model: PreTrainedModel) -> None:
    """Lower the word scores, so that a masked LM activates some words of a vocabulary and not all."""
    head = model.get_output_embeddings()
    if head is not None and head.bias is not None:
        head.bias.sub_(3.0)
