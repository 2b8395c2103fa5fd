"""All layouts in one table: dense ones, sparse ones and rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.nn import Identity, Tanh

from ensemble_assets_tests.model_zoo import dense_layouts
from ensemble_assets_tests.model_zoo.families import saving
from ensemble_assets_tests.model_zoo.families.dense import dense
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.families.multi_vector import (
    EXPANSION,
    MARKS,
    as_pylate,
    multi_vector,
    stanford,
)
from ensemble_assets_tests.model_zoo.families.refused import (
    adapter,
    code_of_its_own,
    colbert,
    images,
    module_of_its_own,
    other_weights,
    without_tokenizer,
)
from ensemble_assets_tests.model_zoo.families.rerank import (
    PAIR_TEMPLATE,
    classifier,
    modules_with_classifier,
    plain_classifier,
    pooled_head,
    yes_or_no,
)
from ensemble_assets_tests.model_zoo.families.sparse import (
    plain,
    sparse_codes,
    splade,
    static_both_sides,
    without_query_inference,
)
from ensemble_assets_tests.model_zoo.registered_layouts import REGISTERED

_PROMPTS = {"query": "query: ", "document": "document: "}
_INSTRUCTION = {"web": "Judge whether the document answers the query."}
_OLD_SPLADE = saving.before_version_6(sparse=True)
_sparse = partial(Layout, kind="sparse")
_rerank = partial(Layout, kind="rerank")

SPARSE = (
    _sparse("splade-bert", build=splade("bert"), note="6.2 layout"),
    _sparse("splade-v3-distilbert", build=splade("distilbert", edits=[_OLD_SPLADE]), note="files of version 5"),
    _sparse("splade-sum", build=splade("bert", strategy="sum"), note="sum over tokens (first SPLADE)"),
    _sparse("splade-log1p", build=splade("bert", activation="log1p_relu"), note="a second logarithm (opensearch v3)"),
    _sparse("opensearch-doc-v3", build=without_query_inference("distilbert"), note="weights for queries, in a Router"),
    _sparse("splade-xlmr", build=splade("xlmr"), note="XLM-R"),
    _sparse("granite-sparse", build=splade("roberta"), note="RoBERTa (granite-embedding-30m-sparse)"),
    _sparse("splade-modernbert", build=splade("modernbert"), note="ModernBERT, 8,192 tokens"),
    _sparse("csr", build=sparse_codes(), note="SparseAutoEncoder on a mean-pooled BERT"),
    _sparse("splade-prompts", build=splade("bert", prompts=_PROMPTS), note="prompts in its config"),
    _sparse("plain-bert-mlm", build=plain("bert"), note="transformers checkpoint without modules.json"),
    _sparse("plain-encoder", build=plain("bert", "encoder"), note="the library adds a random head", expected="refused"),
    _sparse("splade-bf16", build=splade("bert", dtype=torch.bfloat16), note="saved in bf16"),
    # kinds beyond the published table
    _sparse("splade-xlmr-prompts", build=splade("xlmr", prompts=_PROMPTS), note="XLM-R with prompts"),
    _sparse("splade-deberta", build=splade("deberta"), note="DeBERTa-v2 masked LM"),
    _sparse("splade-max-active", build=splade("bert", max_active_dims=24), note="24 words stay"),
    _sparse("splade-sum-log1p", build=splade("bert", strategy="sum", activation="log1p_relu"), note="both variants"),
    _sparse("splade-chunked", build=splade("bert", chunk_size=16), note="pooled in pieces of 16 tokens"),
    _sparse(
        "splade-limit-128", build=splade("bert", edits=[saving.before_version_6(limit=128, sparse=True)]),
        note="max_seq_length 128 in sentence_bert_config",
    ),
    _sparse(
        "splade-query-length", build=splade("bert", module={"query_length": 24, "document_length": 96}),
        note="limits of queries and documents",
    ),
    _sparse("idf-json", build=without_query_inference("bert", activation="relu", idf_file=True), note="idf.json"),
    _sparse("static-words", build=static_both_sides, note="a weight per word on both sides"),
    _sparse("csr-normalised", build=sparse_codes(k=8, normalize=True, pooling="cls"), note="CSR, k 8, normalised"),
    _sparse("csr-max-active", build=sparse_codes(max_active_dims=4), note="max_active_dims below k"),
    _sparse("splade-albert", build=splade("albert"), note="ALBERT masked LM"),
    _sparse("splade-mpnet", build=splade("mpnet"), note="MPNet masked LM"),
    _sparse("splade-bin", build=splade("bert", edits=[saving.weights_as_bin()]), note="only pytorch_model.bin"),
    _sparse("splade-sharded", build=splade("bert", edits=[saving.sharded]), note="two safetensors files"),
    _sparse("splade-vocab-txt", build=splade("bert", edits=[saving.vocabulary_files]), note="no tokenizer.json"),
    _sparse(
        "opensearch-prompted", build=without_query_inference("distilbert", prompts=_PROMPTS),
        note="weights for queries, with prompts",
    ),
    _sparse("plain-roberta-mlm", build=plain("roberta"), note="no modules.json, RoBERTa"),
)  # fmt: skip
"""All sparse layouts."""

_LEFT = {"padding_side": "left"}
_BEFORE_6 = "torch.nn.modules.linear.Identity"

RERANK = (
    _rerank("bert-sigmoid", build=classifier("bert"), note="6.2 layout"),
    _rerank(
        "ms-marco-minilm", build=plain_classifier("bert", activation=_BEFORE_6, old_key=True),
        note="Identity under the key of version 3, no modules.json",
    ),
    _rerank("two-labels", build=plain_classifier("bert", num_labels=2), note="no ranking score", expected="refused"),
    _rerank("bge-reranker-v2-m3", build=plain_classifier("xlmr-long"), note="XLM-R, 8,192 tokens"),
    _rerank("quora-roberta", build=plain_classifier("roberta"), note="RoBERTa"),
    _rerank("mxbai-rerank-v1", build=plain_classifier("deberta"), note="DeBERTa-v2"),
    _rerank("ms-marco-electra", build=plain_classifier("electra"), note="ELECTRA"),
    _rerank(
        "gte-reranker-modernbert", build=plain_classifier("modernbert", classifier_pooling="mean"),
        note="ModernBERT, mean head, 8,192 tokens",
    ),
    _rerank("distilbert", build=classifier("distilbert"), note="DistilBERT"),
    _rerank("classifier-bf16", build=classifier("bert", dtype=torch.bfloat16), note="saved in bf16"),
    _rerank(
        "max-length-256", build=classifier("bert", tokenizer={"model_max_length": 256}), note="256 tokens of a pair",
    ),
    _rerank("modules-and-classifier", build=modules_with_classifier, note="a stored classifier plays no part"),
    _rerank(
        "qwen3-classifier", build=classifier("qwen3-reranker", tokenizer=_LEFT), note="Qwen3, one label, no template",
    ),
    _rerank(
        "qwen3-classifier-template",
        build=classifier("qwen3-reranker", tokenizer={**_LEFT, "chat_template": PAIR_TEMPLATE}),
        note="a chat template of query and document",
    ),
    _rerank(
        "qwen3-reranker",
        build=yes_or_no(prompts=_INSTRUCTION, default_prompt_name="web", activation=Identity()),
        note="LogitScore yes/no, chat template, instruction",
    ),
    # kinds beyond the published table
    _rerank(
        "activation-4", build=plain_classifier("bert", activation=_BEFORE_6), note="Identity, key of version 4",
    ),
    _rerank("activation-tanh", build=classifier("bert", activation=Tanh()), note="Tanh"),
    _rerank("activation-identity", build=classifier("roberta", activation=Identity()), note="Identity, 6.2 layout"),
    _rerank(
        "prompted", build=classifier("bert", prompts={"rank": "is this relevant: "}, default_prompt_name="rank"),
        note="a default prompt before every pair",
    ),
    _rerank(
        "prompted-query", build=classifier("bert", prompts={"query": "q: ", "document": "d: "}),
        note="named prompts that predict does not use",
    ),
    _rerank("pooled-head", build=pooled_head(), note="Transformer, CLS, two Dense modules"),
    _rerank("pooled-head-mean", build=pooled_head(pooling="mean", activation_fn=Identity()), note="mean, Identity"),
    _rerank("pooled-head-two", build=pooled_head(labels=2), note="two outputs of a Dense module", expected="refused"),
    _rerank("three-labels", build=classifier("roberta", labels=3), note="NLI: three classes", expected="refused"),
    _rerank("albert", build=plain_classifier("albert"), note="ALBERT"),
    _rerank("mpnet", build=plain_classifier("mpnet"), note="MPNet"),
    _rerank("camembert", build=plain_classifier("camembert"), note="CamemBERT (mmarco French)"),
    _rerank("bert-cased", build=plain_classifier("bert-cased"), note="cased WordPiece"),
    _rerank("gte-multilingual-reranker", build=plain_classifier("gte"), note="GTE, native in transformers 5"),
    _rerank(
        "limit-in-settings", build=classifier("bert", edits=[saving.json_with("sentence_bert_config.json",
            max_seq_length=96)]),
        note="max_seq_length 96 in sentence_bert_config",
    ),
    _rerank(
        "truncation-query-kept",
        build=classifier(
            "bert", module={"max_seq_length": 320, "processing_kwargs": {"text": {"truncation": "only_second"}}}
        ),
        note="only the document is cut, at 320 tokens of a pair",
    ),
    _rerank(
        "truncation-left", build=classifier("bert", tokenizer={"truncation_side": "left"}),
        note="pairs keep their end",
    ),
    _rerank("classifier-bin", build=classifier("bert", edits=[saving.weights_as_bin()]), note="only pytorch_model.bin"),
    _rerank("classifier-sharded", build=classifier("bert", edits=[saving.sharded]), note="two safetensors files"),
    _rerank("llama-classifier", build=classifier("llama", tokenizer=_LEFT), note="Llama with a score head"),
    _rerank("mistral-classifier", build=classifier("mistral", tokenizer=_LEFT), note="Mistral, sliding window"),
    _rerank("gemma-classifier", build=classifier("gemma3"), note="Gemma3 text with a score head"),
    _rerank("gpt2-classifier", build=classifier("gpt2"), note="GPT-2, right padding"),
    _rerank(
        "template-in-config",
        build=classifier(
            "qwen3-reranker", tokenizer={**_LEFT, "chat_template": PAIR_TEMPLATE},
            edits=[saving.template_in_tokenizer_config],
        ),
        note="the chat template in tokenizer_config.json",
    ),
    _rerank("vocab-txt", build=classifier("bert", edits=[saving.vocabulary_files]), note="no tokenizer.json"),
    _rerank("logit-pair", build=yes_or_no(template=None), note="LogitScore without a template"),
    _rerank("logit-one-word", build=yes_or_no(only_yes=True, activation=Identity()), note="the logit of one word"),
    _rerank("plain-causal", build=yes_or_no(plain=True), note="a language model's checkpoint, no modules.json"),
)  # fmt: skip
"""All rerankers."""

LATE = (
    _rerank("colbert", build=multi_vector(prompts=MARKS), note="ColBERT in files of 6.2: expanded queries, skip list"),
    _rerank("colbert-plain", build=multi_vector(expansion=None, skiplist=()), note="no expansion, no skip list"),
    _rerank(
        "colbert-attended",
        build=multi_vector(expansion={**EXPANSION, "attend": True}, similarity_fn_name="meanmaxsim"),
        note="expansion that is attended to; the mean over a query's tokens",
    ),
    _rerank(
        "colbert-min", build=multi_vector("modernbert", expansion={**EXPANSION, "strategy": "min"}),
        note="long queries are not cut (GTE-ModernColBERT)",
    ),
    _rerank("colbert-raw", build=multi_vector("xlmr", normalize=False), note="vectors of any length"),
    _rerank(
        "colbert-pooled", build=multi_vector(last=[HierarchicalTokenPooling(pool_factor=2)]),
        note="half as many vectors as tokens",
    ),
    _rerank("colbert-decoder", build=multi_vector("qwen3", expansion=None), note="a decoder, which pads on the left"),
    _rerank("colbert-pylate", build=multi_vector(edits=[as_pylate]), note="as PyLate saves it"),
    _rerank("colbertv2", build=stanford, note="as Stanford's code saves it (colbertv2.0)"),
    _rerank("colbert-local", build=multi_vector(), local=True, note="by the path of its folder"),
)  # fmt: skip
"""ColBERT models as rerankers."""

_refused = partial(Layout, kind="dense", expected="refused")

REFUSED = (
    _refused("colbert", build=colbert("MultiVectorEncoder"), note="a vector per token, saved by 6.2"),
    _refused("colbert-pylate", build=colbert("ColBERT"), note="the same as PyLate saves it"),
    _refused("colbert-v2", build=colbert(), note="a plain checkpoint of class HF_ColBERT"),
    _refused("splade-as-dense", build=splade("bert"), note="a sparse model in the dense stage"),
    _refused("reranker-as-dense", build=classifier("bert"), note="a CrossEncoder in the dense stage"),
    _refused("clip", build=images(), note="texts and images"),
    _refused("clip-in-folder", build=images("0_CLIPModel"), note="clip-ViT-B-32"),
    _refused("own-code", build=code_of_its_own, note="an architecture that only its own code knows"),
    _refused("own-module", build=module_of_its_own, note="a module that only its own code knows"),
    _refused("adapter", build=adapter(), note="LoRA matrices alone"),
    _refused("adapter-beside", build=adapter(dense("bert")), note="LoRA matrices beside a whole model"),
    _refused("onnx-only", build=other_weights("onnx/model.onnx"), note="weights for ONNX runtime"),
    _refused("gguf-only", build=other_weights("model-Q4_K_M.gguf"), note="weights for llama.cpp"),
    _refused("without-tokenizer", build=without_tokenizer(), note="the library makes one without words"),
    _refused("without-words", build=without_tokenizer(settings=True), note="tokenizer_config.json alone"),
    _refused("encoder-as-sparse", kind="sparse", build=dense("bert"), note="a dense model in the sparse stage"),
    _refused("colbert-without-head", kind="rerank", build=colbert(), note="no projection of token vectors"),
)  # fmt: skip
"""What is none of the three kinds, or cannot be loaded."""

LAYOUTS: tuple[Layout, ...] = (*dense_layouts.TABLE, *SPARSE, *RERANK, *LATE, *REGISTERED, *REFUSED)
"""Every layout."""

BY_KEY: Mapping[str, Layout] = {layout.key: layout for layout in LAYOUTS}
"""By kind and name, such as ``dense/bge-m3``."""

COMPANION = BY_KEY["dense/bert-mean"]
"""The dense model that sparse models and rerankers run beside."""
