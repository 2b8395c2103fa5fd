"""Small vocabularies, learnt from the zoo's lines, in the tokenizer class that each architecture publishes.

They are learnt here, since the trainers of ``tokenizers`` break ties differently from run to run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ensemble_assets_tests.model_zoo.texts import training_lines

_ENTRIES = 600
"""Entries of a vocabulary; special tokens that a class adds come on top."""

_LONGEST = 9
"""Characters of a piece."""

_SPACE = "\u2581"


@lru_cache(maxsize=2)
def _words(lower: bool) -> Counter[str]:
    """Count words, with punctuation on its own."""
    text = "\n".join(training_lines())
    return Counter(re.findall(r"\w+|[^\w\s]", text.lower() if lower else text))


def _best(pieces: Counter[str], room: int) -> list[str]:
    """Choose the pieces that stand for most characters; ties go by the alphabet, so that every run chooses alike."""
    return sorted(pieces, key=lambda piece: (-pieces[piece] * len(piece), piece))[:room]


def _substrings(words: Counter[str], first: bool) -> Counter[str]:
    """Count the beginnings of words, or all other parts of them, of more than one character."""
    counted: Counter[str] = Counter()
    for word, count in words.items():
        for start in [0] if first else range(1, len(word)):
            for stop in range(start + 2, min(len(word), start + _LONGEST) + 1):
                counted[word[start:stop]] += count
    return counted


@lru_cache(maxsize=4)
def _wordpiece_vocabulary(lower: bool, specials: tuple[str, ...]) -> dict[str, int]:
    """WordPiece: all characters, as beginnings and inside of words, and the best longer pieces."""
    words = _words(lower)
    letters = sorted({letter for word in words for letter in word})
    base = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    room = _ENTRIES - len(base)
    pieces = _best(_substrings(words, True), room * 2 // 3)
    pieces += [f"##{piece}" for piece in _best(_substrings(words, False), room - len(pieces))]
    return {piece: number for number, piece in enumerate([*base, *pieces])}


@lru_cache(maxsize=8)
def _unigram_vocabulary(specials: tuple[str, ...]) -> list[tuple[str, float]]:
    """Unigram pieces with the logarithm of their share, special tokens first."""
    words = Counter({f"{_SPACE}{word}": count for word, count in _words(False).items()})
    letters = Counter({letter: sum(word.count(letter) * n for word, n in words.items()) for letter in "".join(words)})
    longer = _substrings(words, True) + _substrings(words, False)
    pieces = [*sorted(letters), *_best(longer, _ENTRIES - len(specials) - len(letters))]
    counts = letters + longer
    total = sum(counts[piece] for piece in pieces)
    return [*((special, 0.0) for special in specials), *((p, math.log(counts[p] / total)) for p in pieces)]


@lru_cache(maxsize=8)
def _merges(bytewise: bool, room: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn byte pair encoding: the alphabet, and ``room`` merges of the most frequent pair."""
    if bytewise:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
        parts = Counter(part for line in training_lines() for part, _ in split.pre_tokenize_str(line))
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        parts = Counter({f"{_SPACE}{word}": count for word, count in _words(False).items()})
        alphabet = sorted({letter for part in parts for letter in part})
    spelled = {tuple(part): count for part, count in parts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < room:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in spelled.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {_merged(symbols, best): count for symbols, count in spelled.items()}
    return alphabet, merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in symbols:
        return symbols
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def _bpe_vocabulary(specials: tuple[str, ...], bytewise: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE vocabulary, and its merges; with byte fallback where it is not made of bytes itself."""
    fallback = [] if bytewise else [f"<0x{value:02X}>" for value in range(256)]
    alphabet, merges = _merges(bytewise, 300)
    entries = dict.fromkeys([*specials, *fallback, *alphabet, *(first + second for first, second in merges)])
    return {entry: number for number, entry in enumerate(entries)}, list(merges)


def wordpiece(class_name: str = "BertTokenizer", *, lower: bool = True, **options: Any) -> PreTrainedTokenizerBase:
    """Make a WordPiece tokenizer of BERT's family."""
    specials = {
        "MPNetTokenizer": ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
        "FunnelTokenizer": ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>", "[UNK]"),
    }.get(class_name, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    return _made(class_name, vocab=_wordpiece_vocabulary(lower, specials), do_lower_case=lower, **options)


def byte_level(class_name: str = "RobertaTokenizer", **options: Any) -> PreTrainedTokenizerBase:
    """Make a byte-level BPE tokenizer: RoBERTa, GPT-2, Qwen."""
    specials = {
        "RobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        "Qwen2Tokenizer": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "GPT2Tokenizer": ("<|endoftext|>",),
    }[class_name]
    vocabulary, merges = _bpe_vocabulary(specials, bytewise=True)
    tokenizer = _made(class_name, vocab=vocabulary, merges=merges, **options)
    if class_name == "Qwen2Tokenizer":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def byte_level_of_bert(**options: Any) -> PreTrainedTokenizerBase:
    """Make ModernBERT's tokenizer: byte-level BPE with BERT's special tokens, saved as the general fast class."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary, merges = _bpe_vocabulary(specials, bytewise=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
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
    vocabulary = list(_unigram_vocabulary(specials))
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
    vocabulary, merges = _bpe_vocabulary(specials, bytewise=False)
    tokenizer = _made(class_name, vocab=vocabulary, merges=merges, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _made(class_name: str, **options: Any) -> PreTrainedTokenizerBase:
    options.setdefault("model_max_length", 512)
    tokenizer: PreTrainedTokenizerBase = getattr(transformers, class_name)(**options)
    if tokenizer.pad_token is None and isinstance(tokenizer.eos_token, str):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
