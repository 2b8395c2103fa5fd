"""Small vocabularies, learnt from the zoo's lines, in the tokenizer class that each architecture publishes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ensemble_assets_tests.model_zoo.texts import training_lines

_WORDS = 600
"""Entries of a learnt vocabulary; special tokens that a class adds come on top."""


@lru_cache(maxsize=8)
def _learnt(kind: str, lower: bool, specials: tuple[str, ...]) -> dict[str, Any]:
    """Train a tokenizer of the given kind and return the ``model`` part of its JSON."""
    tokenizer, trainer = _TRAINERS[kind](list(specials))
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(training_lines(), trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _wordpiece(specials: list[str]) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=_WORDS, special_tokens=specials, show_progress=False)


def _bytes(specials: list[str]) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=_WORDS, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


def _pieces(specials: list[str]) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=_WORDS, special_tokens=specials, unk_token=specials[-1], show_progress=False
    )


def _byte_fallback(specials: list[str]) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.ByteFallback()
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=_WORDS + 256, special_tokens=[*specials, *bytes_], show_progress=False
    )


_TRAINERS: dict[str, Callable[[list[str]], tuple[Tokenizer, Any]]] = {
    "wordpiece": _wordpiece,
    "bytes": _bytes,
    "pieces": _pieces,
    "byte_fallback": _byte_fallback,
}


def wordpiece(class_name: str = "BertTokenizer", *, lower: bool = True, **options: Any) -> PreTrainedTokenizerBase:
    """Make a WordPiece tokenizer of BERT's family."""
    specials = {
        "MPNetTokenizer": ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
        "FunnelTokenizer": ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>", "[UNK]"),
    }.get(class_name, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    vocabulary = _learnt("wordpiece", lower, specials)["vocab"]
    return _made(class_name, vocab=vocabulary, do_lower_case=lower, **options)


def byte_level(class_name: str = "RobertaTokenizer", **options: Any) -> PreTrainedTokenizerBase:
    """Make a byte-level BPE tokenizer: RoBERTa, GPT-2, Qwen."""
    specials = {
        "RobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        "Qwen2Tokenizer": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "GPT2Tokenizer": ("<|endoftext|>",),
    }[class_name]
    model = _learnt("bytes", False, specials)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = _made(class_name, vocab=model["vocab"], merges=merges, **options)
    if class_name == "Qwen2Tokenizer":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def byte_level_of_bert(**options: Any) -> PreTrainedTokenizerBase:
    """Make ModernBERT's tokenizer: byte-level BPE with BERT's special tokens, saved as the general fast class."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    model = _learnt("bytes", False, specials)
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"], **options,
    )  # fmt: skip


def _template(tokenizer: Tokenizer, first: str, last: str) -> Any:
    """Make the rule that puts ``first`` before and ``last`` after every text; an empty one is left out."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    single, second = f"{first} $A {last}".strip(), f"$B {last}".strip()
    return TemplateProcessing(single=single, pair=f"{single} {second}", special_tokens=ids)


def framed(tokenizer: PreTrainedTokenizerBase, first: str = "", last: str = "") -> PreTrainedTokenizerBase:
    """Let a decoder's tokenizer begin its texts with ``first`` and end them with ``last``."""
    backend = tokenizer.backend_tokenizer
    backend.post_processor = _template(backend, first, last)
    return tokenizer


def pieces(class_name: str = "XLMRobertaTokenizer", **options: Any) -> PreTrainedTokenizerBase:
    """Make a unigram tokenizer: XLM-RoBERTa, T5, DeBERTa-v2, ALBERT, CamemBERT, BigBird, XLNet."""
    specials = {
        "XLMRobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>"),
        "T5Tokenizer": ("<pad>", "</s>", "<unk>"),
        "DebertaV2Tokenizer": ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"),
        "AlbertTokenizer": ("<pad>", "[CLS]", "[SEP]", "[MASK]", "<unk>"),
        "CamembertTokenizer": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<s>", "</s>", "<unk>"),
        "BigBirdTokenizer": ("<pad>", "</s>", "<s>", "[CLS]", "[SEP]", "[MASK]", "<unk>"),
        "XLNetTokenizer": ("<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>", "<unk>"),
    }[class_name]
    vocabulary = [(str(piece), float(score)) for piece, score in _learnt("pieces", False, specials)["vocab"]]
    if class_name == "XLMRobertaTokenizer":
        vocabulary.append(("<mask>", 0.0))
    if class_name == "DebertaV2Tokenizer":
        options["unk_id"] = specials.index("[UNK]")
    if class_name == "XLNetTokenizer":
        options["unk_id"] = specials.index("<unk>")
    return _made(class_name, vocab=vocabulary, **options)


def byte_fallback(class_name: str = "LlamaTokenizer", **options: Any) -> PreTrainedTokenizerBase:
    """Make a BPE tokenizer over pieces that falls back to bytes: Llama, Mistral, Gemma."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>") if class_name == "GemmaTokenizer" else ("<unk>", "<s>", "</s>")
    model = _learnt("byte_fallback", False, specials)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = _made(class_name, vocab=model["vocab"], merges=merges, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _made(class_name: str, **options: Any) -> PreTrainedTokenizerBase:
    options.setdefault("model_max_length", 512)
    tokenizer: PreTrainedTokenizerBase = getattr(transformers, class_name)(**options)
    if tokenizer.pad_token is None and isinstance(tokenizer.eos_token, str):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
