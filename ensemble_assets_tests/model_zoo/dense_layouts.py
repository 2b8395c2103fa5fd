"""The dense layouts: what people publish as SentenceTransformer models."""

from __future__ import annotations

from functools import partial

import torch

from ensemble_assets_tests.model_zoo.families import saving
from ensemble_assets_tests.model_zoo.families.dense import (
    INSTRUCTION,
    causal_checkpoint,
    convolution,
    dense,
    dropout,
    layer_mixture,
    layer_norm,
    normalize_first,
    plain_checkpoint,
    projection,
    two_projections,
)
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN
from ensemble_assets_tests.model_zoo.families.static import (
    as_model2vec,
    bag_of_words,
    encoder_route,
    in_folder,
    router,
    shared_then_routed,
    static,
    static_route,
    word_embeddings,
)

_E5 = {"query": "query: ", "document": "passage: "}
_NOMIC = {"query": "search_query: ", "document": "search_document: "}
_GEMMA = {"query": "task: search result | query: ", "document": "title: none | text: "}
_QWEN = {"query": INSTRUCTION, "document": ""}
_TASKS = {"nl2code_query": "Find the code for: ", "nl2code_document": "Candidate code: "}
_OLD = saving.before_version_6()
_ENTRY = {"pooling": "mean", "max_tokens": 512, "dimension": HIDDEN}
_of = partial(Layout, kind="dense")

TABLE = (
    _of("bert-mean", build=dense("bert"), note="6.2 layout"),
    _of("bge-en-v1.5", build=dense("bert", "cls", edits=[_OLD]), note="CLS, Normalize, in files of versions 2 to 5"),
    _of(
        "paraphrase-minilm", build=dense("bert", normalize=False, edits=[saving.before_version_6(limit=128)]),
        note="sentence_bert_config limits to 128 tokens where the tokenizer says 512",
    ),
    _of(
        "msmarco-dot", build=dense("bert", "cls", normalize=False, similarity_fn_name="dot"),
        note="no Normalize, similarity dot: ranked by dot products", ranking=True,
    ),
    _of("bert-mean-cosine", build=dense("bert", normalize=False, similarity_fn_name="cosine"), note="no Normalize"),
    _of(
        "do-lower-case", build=dense("bert-cased", edits=[saving.before_version_6(lower=True)]),
        note="cased tokenizer, sentence_bert_config says do_lower_case",
    ),
    _of("bge-m3", build=dense("xlmr-long", "cls", edits=[saving.before_version_6(limit=8192)]), note="8,192 tokens"),
    _of("e5", build=dense("xlmr", prompts=_E5), note="prompts for queries and documents (multilingual-e5)"),
    _of(
        "all-mpnet", build=dense("mpnet", edits=[saving.before_version_6(limit=384)]), note="MPNet, 384 tokens",
    ),
    _of("all-distilroberta", build=dense("roberta", edits=[_OLD]), note="RoBERTa, mean"),
    _of("msmarco-distilbert", build=dense("distilbert", "cls", normalize=False, edits=[_OLD]), note="DistilBERT, CLS"),
    _of("modernbert-embed", build=dense("modernbert", prompts=_NOMIC), note="8,192 tokens, prompts"),
    _of("gte-modernbert", build=dense("modernbert", "cls", normalize=False), note="8,192 tokens, CLS"),
    _of(
        "qwen3-embedding",
        build=dense(
            "qwen3", "lasttoken", prompts=_QWEN, tokenizer={"padding_side": "left"},
            edits=[saving.before_version_6(limit=8192), causal_checkpoint("qwen3")],
        ),
        note="Qwen3ForCausalLM in bf16, last token, left padding, query prompt",
    ),
    _of(
        "qwen3-fp32",
        build=dense("qwen3", "lasttoken", prompts=_QWEN, tokenizer={"padding_side": "left"}),
        note="the same as Qwen3Model in fp32",
    ),
    _of(
        "jina-code", build=dense("qwen2", "lasttoken", prompts=_TASKS, tokenizer={"padding_side": "left"}),
        note="Qwen2, last token, task prompts, none for queries and documents (jina-code-embeddings)",
    ),
    _of(
        "embeddinggemma",
        build=dense(
            "gemma3", after_pooling=two_projections(), prompts=_GEMMA, options={"use_bidirectional_attention": True}
        ),
        note="mean, two Dense, Normalize, prompts",
    ),
    _of(
        "gemma-plain", build=dense("gemma3", options={"use_bidirectional_attention": True}),
        note="Gemma3 text, bidirectional, mean, Normalize, no Dense",
    ),
    _of(
        "gtr-t5", build=dense("t5", after_pooling=projection(HIDDEN, 48, bias=False, tanh=False)),
        note="T5 encoder, mean, Dense, Normalize (gtr-t5, sentence-t5)",
    ),
    _of("static-retrieval", build=static(edits=[in_folder("0_StaticEmbedding")]), note="static-retrieval-mrl-en-v1"),
    _of("static-root", build=static(), note="StaticEmbedding in the root, as 6.2 saves it"),
    _of("potion", build=static(normalize=True, edits=[as_model2vec()]), note="model2vec config.json and tensor names"),
    _of(
        "router-two-encoders", build=router(encoder_route("bert"), encoder_route("distilbert", "cls")),
        note="one Transformer for queries, another for documents",
    ),
    _of("pool-weightedmean", build=dense("bert", "weightedmean"), note="SGPT's pooling"),
    _of("pool-max", build=dense("bert", "max", edits=[_OLD]), note="maximum over tokens"),
    _of("pool-sqrt-len", build=dense("bert", "mean_sqrt_len_tokens", normalize=False), note="sum over sqrt of length"),
    _of("pool-mean-cls", build=dense("bert", ("mean", "cls")), note="two poolings side by side; a list in its config"),
    _of(
        "instructor", build=dense("t5", include_prompt=False, after_pooling=projection(HIDDEN, 48), prompts=_E5),
        note="include_prompt false with Dense (instructor)",
    ),
    _of("no-prompt-pooled", build=dense("bert", include_prompt=False, prompts=_E5), note="include_prompt false, BERT"),
    _of("matryoshka", build=dense("bert", truncate_dim=32), note="truncate_dim 32 in its config"),
    _of("electra", build=dense("electra"), note="embeddings narrower than states"),
    _of("deberta", build=dense("deberta"), note="relative positions"),
    _of("nomic", build=dense("bert-as-nomic", prompts=_NOMIC), note="NomicBert, native in transformers 5, prompts"),
    _of(
        "llama-nemotron", build=dense("llama", options={"is_causal": False}, tokenizer={"padding_side": "left"}),
        note="Llama with is_causal false, mean",
    ),
    _of("weights-bf16", build=dense("bert", dtype=torch.bfloat16), note="saved in bf16"),
    _of("weights-fp16", build=dense("bert", dtype=torch.float16), note="saved in fp16"),
    _of("sharded", build=dense("bert", edits=[saving.sharded]), note="two safetensors files with an index"),
    _of("pytorch-bin", build=dense("bert", edits=[saving.weights_as_bin()]), note="only pytorch_model.bin"),
    _of("plain-bert", build=plain_checkpoint("bert"), note="transformers checkpoint without modules.json: mean"),
    _of("BERT_Mean.v1-L2", build=dense("bert"), note="capitals, dots and underscores in the id", owner="Some_Org.X"),
    # kinds beyond the published table
    _of("bin-beside-safetensors", build=dense("bert", edits=[saving.weights_as_bin(keep=True)]), note="both files"),
    _of(
        "transformer-in-folder", build=dense("bert", edits=[_OLD, saving.first_module_in("0_Transformer")]),
        note="weights in 0_Transformer, as version 0.x saved them",
    ),
    _of(
        "layers-in-folder-new", build=dense("roberta", edits=[saving.first_module_in("transformer")]),
        note="the 6.2 layout with its first module in a folder",
    ),
    _of("dense-tanh", build=dense("bert", after_pooling=projection(HIDDEN, 32), edits=[_OLD]), note="Dense, Tanh"),
    _of(
        "dense-residual", build=dense("bert", after_pooling=projection(HIDDEN, HIDDEN, use_residual=True)),
        note="Dense with a residual connection",
    ),
    _of("normalize-before-dense", build=dense("bert", after_pooling=normalize_first()), note="Normalize, then Dense"),
    _of("layer-norm", build=dense("bert", after_pooling=layer_norm()), note="LayerNorm after pooling"),
    _of(
        "cnn", build=dense("bert", before_pooling=convolution()), note="vectors depend on padding", expected="either",
    ),
    _of(
        "layer-mixture",
        build=dense("bert", before_pooling=layer_mixture(), options={"output_hidden_states": True}),
        note="WeightedLayerPooling over the layers' states",
    ),
    _of("lasttoken-right", build=dense("gpt2", "lasttoken"), note="GPT-2, last token, right padding"),
    _of("weightedmean-gpt2", build=dense("gpt2", "weightedmean", normalize=False), note="SGPT"),
    _of(
        "weightedmean-left", build=dense("mistral", "weightedmean", tokenizer={"padding_side": "left"}),
        note="position weights with left padding",
    ),
    _of(
        "e5-mistral", build=dense("mistral", "lasttoken", prompts=_QWEN, tokenizer={"padding_side": "left"}),
        note="Mistral with a sliding window, last token, instruction for queries",
    ),
    _of(
        "gte-qwen2", build=dense("qwen2", "lasttoken", prompts=_QWEN, options={"is_causal": False}),
        note="Qwen2 made bidirectional, last token, right padding",
    ),
    _of("plain-qwen2", build=plain_checkpoint("qwen2"), note="no modules.json: the library takes the last token"),
    _of(
        "default-prompt", build=dense("bert", prompts={"s2p": "represent: "}, default_prompt_name="s2p"),
        note="a default prompt for whatever has none of its own",
    ),
    _of(
        "prompt-passage", build=dense("bert", "cls", prompts={"query": "Q: ", "passage": "P: "}),
        note="a prompt named passage, which encode_document leaves out",
    ),
    _of(
        "arctic", build=dense("bert", "cls", edits=[_OLD], prompts={"query": "Represent this sentence: "}),
        note="snowflake-arctic-embed: a prompt for queries only, CLS",
    ),
    _of("gte-multilingual", build=dense("gte", "cls"), note="GTE architecture, native in transformers 5"),
    _of("jina-v3", build=dense("jina-v3", prompts=_E5), note="jina-embeddings-v3, native in transformers 5"),
    _of("eurobert", build=dense("eurobert"), note="EuroBERT, mean"),
    _of("albert", build=dense("albert"), note="shared layers (paraphrase-albert)"),
    _of("camembert", build=dense("camembert", edits=[_OLD]), note="sentence-camembert"),
    _of("bigbird", build=dense("bigbird"), note="BigBird with full attention"),
    _of("longformer", build=dense("longformer"), note="windowed attention; its inputs are padded to the window"),
    _of("xlnet", build=dense("xlnet"), note="left padding, no limit of positions"),
    _of("funnel", build=dense("funnel"), note="vectors depend on padding", expected="either"),
    _of("roberta-cased-cls", build=dense("roberta", "cls", prompts=_E5), note="byte-level pieces behind a prompt"),
    _of(
        "truncation-left", build=dense("bert", tokenizer={"truncation_side": "left"}),
        note="long texts keep their end",
    ),
    _of(
        "no-limit-named", build=dense("bert", tokenizer={"model_max_length": int(1e30)}),
        note="model_max_length 1e30: the positions are the limit",
    ),
    _of(
        "limit-beyond-tokenizer", build=dense("xlmr", edits=[saving.json_with("sentence_bert_config.json",
            max_seq_length=256)]),
        note="6.2 settings with max_seq_length 256",
    ),
    _of(
        "query-length", build=dense("bert", module={"query_length": 32, "document_length": 128}),
        note="query_length 32 and document_length 128 (6.2)",
    ),
    _of(
        "processing-kwargs",
        build=dense("bert", module={"processing_kwargs": {"text": {"max_length": 96, "truncation": True}}}),
        note="processing_kwargs limit the texts to 96 tokens",
    ),
    _of(
        "no-specials",
        build=dense("bert", module={"processing_kwargs": {"text": {"add_special_tokens": False}}}),
        note="processing_kwargs leave special tokens out",
    ),
    _of("similarity-euclidean", build=dense("bert", normalize=False, similarity_fn_name="euclidean"), note="euclidean"),
    _of(
        "matryoshka-prompted", build=dense("modernbert", prompts=_NOMIC, truncate_dim=24, normalize=False),
        note="truncate_dim 24, prompts, 8,192 tokens",
    ),
    _of("static-truncated", build=static(truncate_dim=16), note="static embeddings cut to 16 components"),
    _of(
        "model2vec-mapped", build=static(normalize=True, edits=[as_model2vec(quantised=True)]),
        note="model2vec with shared rows and weights of pieces",
    ),
    _of("router-static-query", build=router(static_route, encoder_route("bert")), note="static queries"),
    _of("router-after-pooling", build=shared_then_routed, note="one encoder, a projection per side"),
    _of("word-embeddings", build=word_embeddings(), note="GloVe and mean pooling", expected="either"),
    _of("word-weights", build=word_embeddings(weights=True), note="weighted word embeddings", expected="either"),
    _of("word-lstm", build=word_embeddings(lstm=True), note="an LSTM over word embeddings", expected="either"),
    _of("bag-of-words", build=bag_of_words, note="word counts and a projection", expected="either"),
    _of(
        "dense-on-tokens",
        build=dense("bert", before_pooling=projection(HIDDEN, 40, tanh=False, module_input_name="token_embeddings")),
        note="a Dense module over token states, before pooling",
    ),
    _of("dropout", build=dense("bert", after_pooling=dropout()), note="a Dropout module, idle here"),
    _of(
        "bge-m3-by-file", build=dense("xlmr-long", "cls", edits=[saving.before_version_6(limit=8192)]),
        note="chosen in a models file", entry={"pooling": "cls", "max_tokens": 8192, "dimension": HIDDEN},
    ),
    _of(
        "e5-by-file", build=dense("xlmr", prompts=_E5), note="chosen in a models file with the same prefixes",
        entry={"query_prefix": "query: ", "document_prefix": "passage: ", **_ENTRY},
    ),
    _of(
        "embeddinggemma-by-file",
        build=dense(
            "gemma3", after_pooling=two_projections(), prompts=_GEMMA, options={"use_bidirectional_attention": True}
        ),
        note="chosen in a models file as docs/models.md shows",
        entry={"query_prefix": _GEMMA["query"], "document_prefix": _GEMMA["document"], **_ENTRY, "max_tokens": 2048},
    ),
    _of("local-folder", build=dense("bert", prompts=_E5), note="chosen by the path of its folder", local=True),
    _of("vocab-txt", build=dense("bert", edits=[_OLD, saving.vocabulary_files]), note="no tokenizer.json"),
    _of("vocab-merges", build=dense("roberta", edits=[_OLD, saving.vocabulary_files]), note="vocab.json, merges.txt"),
    _of(
        "pooling-elsewhere",
        build=dense("bert", "cls", edits=[saving.module_in(1, "2_Pooling", decoy={"pooling_mode": "mean"})]),
        note="modules.json names 2_Pooling; a stale 1_Pooling says mean",
    ),
    _of(
        "stella", build=dense("bert", after_pooling=projection(HIDDEN, 96, tanh=False), normalize=False,
            edits=[saving.module_in(2, "2_Dense_96")]),
        note="a Dense module in 2_Dense_96, wider than the encoder",
    ),
    _of(
        "tokenizer-arguments",
        build=dense("bert", edits=[_OLD, saving.json_as("sentence_bert_config.json",
            {"tokenizer_args": {"model_max_length": 100}})]),
        note="tokenizer_args limit the texts to 100 tokens",
    ),
    _of(
        "tensors-of-2019", build=dense("bert", edits=[saving.weights_as_bin(), saving.old_tensor_names]),
        note="gamma and beta in pytorch_model.bin",
    ),
    _of("plain-mlm-as-encoder", build=plain_checkpoint("bert", "mlm"), note="a masked LM's checkpoint"),
    _of("plain-t5", build=plain_checkpoint("t5"), note="T5 without modules.json"),
    _of("plain-causal", build=plain_checkpoint("llama", "causal"), note="a language model without modules.json"),
    _of("ernie", build=dense("ernie", "cls"), note="ERNIE with task types"),
    _of("mt5", build=dense("mt5"), note="mT5 encoder"),
    _of("sgpt-bloom", build=dense("bloom", "weightedmean"), note="Bloom: ALiBi, weighted mean"),
    _of("gpt-neox", build=dense("gptneox", "lasttoken"), note="GPT-NeoX, last token, right padding"),
    _of("distiluse", build=dense("distilbert", after_pooling=projection(HIDDEN, 48), normalize=False, edits=[_OLD]),
        note="mean, Dense with Tanh, no Normalize"),
    _of("first-and-last", build=dense("llama", ("cls", "lasttoken")), note="two tokens side by side, left padding"),
)  # fmt: skip
"""All dense layouts."""
