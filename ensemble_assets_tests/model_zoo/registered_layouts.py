"""The five models of profile kaggle-t4x2 in their real layouts, names and widths, with two random layers each.

They lie in the cache under the commits that the registry names, so that a run finds them as it finds the real ones.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ensemble_assets_tests.model_zoo.families import saving
from ensemble_assets_tests.model_zoo.families.dense import INSTRUCTION, causal_checkpoint, dense
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.families.networks import network
from ensemble_assets_tests.model_zoo.families.rerank import plain_classifier

_JINA = {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128}
_QWEN3 = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
_XLMR = {"hidden_size": 1024, "num_attention_heads": 16}
JINA_PROMPTS = {
    "nl2code_query": "Find the most relevant code snippet given the following query:\n",
    "nl2code_document": "Candidate code snippet:\n",
    "qa_query": "Find the most relevant answer given the following question:\n",
    "qa_document": "Candidate answer:\n",
}
_SPLADE_WORDS = 30522


def _splade_plus_plus(folder: Path) -> None:
    """Build a masked language model without ``modules.json``, whose vocabulary is as large as the real one."""
    model, tokenizer = network("bert", "mlm", vocab_size=_SPLADE_WORDS)
    tokenizer.add_tokens([f"[unused{number}]" for number in range(_SPLADE_WORDS - len(tokenizer))])
    saving.write_checkpoint(folder, model, tokenizer)


REGISTERED = (
    Layout(
        "jina-code-embeddings-1.5b", "dense", owner="jinaai",
        build=dense(
            "qwen2", "lasttoken", options=_JINA, prompts=JINA_PROMPTS, tokenizer={"padding_side": "left"},
            dtype=torch.bfloat16,
        ),
        note="Qwen2, last token, left padding, task prompts, bf16",
    ),
    Layout(
        "bge-m3", "dense", owner="BAAI",
        build=dense(
            "xlmr-long", "cls", options=_XLMR, edits=[saving.before_version_6(limit=8192), saving.weights_as_bin()]
        ),
        note="XLM-R, CLS, 8,192 tokens, only pytorch_model.bin at its commit",
    ),
    Layout(
        "Qwen3-Embedding-0.6B", "dense", owner="Qwen",
        build=dense(
            "qwen3", "lasttoken", options=_QWEN3, prompts={"query": INSTRUCTION, "document": ""},
            tokenizer={"padding_side": "left"},
            edits=[saving.before_version_6(limit=32768), causal_checkpoint("qwen3", **_QWEN3)],
        ),
        note="Qwen3ForCausalLM in bf16, last token, left padding, query prompt",
    ),
    Layout("Splade_PP_en_v1", "sparse", owner="prithivida", build=_splade_plus_plus, note="30,522 words"),
    Layout(
        "bge-reranker-v2-m3", "rerank", owner="BAAI", build=plain_classifier("xlmr-long", **_XLMR),
        note="XLM-R classifier without modules.json; the registry limits pairs to 1,024 tokens",
    ),
)  # fmt: skip
"""In the profile's order."""
