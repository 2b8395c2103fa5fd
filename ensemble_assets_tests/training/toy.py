"""A toy training set in BEIR layout, small enough for the real encoders, and a random BERT body for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertForMaskedLM

TOPICS = (
    ("volcano", "magma", "crater", "ash"),
    ("cheese", "milk", "rennet", "curd"),
    ("bicycle", "chain", "pedal", "gear"),
    ("glacier", "ice", "moraine", "valley"),
    ("violin", "string", "bow", "rosin"),
    ("bee", "hive", "honey", "pollen"),
    ("harbour", "ship", "crane", "quay"),
    ("library", "shelf", "catalogue", "loan"),
    ("vaccine", "antibody", "dose", "immunity"),
    ("telescope", "mirror", "lens", "star"),
)


def write_set(folder: Path, split: str = "train") -> Path:
    """Twenty passages on ten topics and twenty queries, each with one relevant passage."""
    passages, queries, judged = [], [], []
    for number, (name, first, second, third) in enumerate(TOPICS):
        texts = (
            f"The {name} is known for its {first}. People who study the {name} measure the {first} every single year.",
            f"What surrounds the {name} is mostly {second} and {third}. Nobody in town has ever counted the {third}.",
        )
        questions = (f"why is the {name} known for {first}", f"how much {third} is around the {name}")
        for part in (0, 1):
            passages.append({"_id": f"p{number}-{part}", "title": name.title(), "text": texts[part]})
            queries.append({"_id": f"q{number}-{part}", "text": questions[part]})
            judged.append(f"q{number}-{part}\tp{number}-{part}\t1")
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in passages))
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


def write_body(folder: Path, layers: int = 3, width: int = 16) -> Path:
    """A random BERT with a masked-language head and a word-level vocabulary, in Hugging Face layout."""
    words = sorted({word for topic in TOPICS for word in topic} | {"the", "is", "why", "how", "much", "for", "known"})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
