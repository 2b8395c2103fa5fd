"""The models that come with the project give what the plain libraries give for them."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import torch
import transformers

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.choice import rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.describe import describe
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.compute.tokens.token_tables import pair_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import FolderSource, ModelSpec
from ensemble_assets_tests.compute.running.doubles import run_here
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

pytestmark = pytest.mark.models

TEXTS = [
    ".",
    "\u200b",
    "a",
    "Aspirin reduces the risk of heart attack in diabetic patients.",
    "naïve café, 漢字かな, Ελληνικά, עברית, 🙂🙃 and a \u0000 byte",
    "def main():\n    return [x ** 2 for x in range(10)]\n",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "word " * 400,
    "antidisestablishmentarianism " * 120,
    "x" * 3000,
    "Aspirin reduces the risk of heart attack in diabetic patients.",
]
QUERIES = ["does aspirin help against heart attacks", "café", "?"]
RUNTIME = Runtime(threads=1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain_vectors() -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(locate(MODELS["all-minilm-l6-v2"]).folder), device="cpu")
    return model.encode([*TEXTS, *QUERIES], normalize_embeddings=True)


@pytest.mark.parametrize(("precision", "least"), [("auto", 0.9999), ("bf16", 0.999)])
def test_dense_vectors_equal_sentence_transformers(plain_vectors, precision, least):
    context = ComputeContext(runner=in_process_runner(700), runtime=Runtime(precision, 1))
    (model,) = encode_dense(pl.Series(TEXTS), pl.Series(QUERIES), [MODELS["all-minilm-l6-v2"]], context).models
    got = np.concatenate([model.chunks, model.queries])
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    cosines = (got * plain_vectors).sum(axis=1)
    assert cosines.min() >= least
    assert model.record.truncated == 2


def sparse_reference(texts: list[str], max_tokens: int) -> np.ndarray:
    """Plain transformers, one text at a time: max over tokens of log1p(relu(logits))."""
    folder = str(locate(MODELS["splade-tiny"]).folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            rows.append(torch.log1p(torch.relu(network(**inputs).logits[0])).amax(dim=0).numpy())
    return np.stack(rows)


def test_sparse_weights_equal_the_plain_masked_language_model():
    spec = MODELS["splade-tiny"]
    files = locate(spec)
    table = tokenise(TEXTS, files, spec.max_tokens)
    got = run_here(table, sparse_factory(spec, files, RUNTIME, top_k=0), 700).outputs["weight"]
    np.testing.assert_allclose(got, sparse_reference(TEXTS, spec.max_tokens), atol=1e-4)


def test_the_sparse_stage_keeps_the_largest_of_those_weights():
    context = ComputeContext(runtime=RUNTIME)
    none = pl.Series([None] * len(TEXTS), dtype=pl.String)
    result = encode_sparse(pl.Series(TEXTS), none, pl.Series(QUERIES), [MODELS["splade-tiny"]], context, top_k=64)
    expected = sparse_reference([*TEXTS, *QUERIES], 256)
    for row in range(len(TEXTS)):
        indices, values = result.chunks.row(row)
        np.testing.assert_allclose(values, expected[row][indices], atol=1e-4)
        left_out = np.delete(expected[row], indices)
        assert len(indices) == min(64, (expected[row] > 0).sum())
        assert left_out.max() <= values.min() + 1e-4
    for row in range(len(QUERIES)):
        indices, values = result.queries.row(row)
        full = expected[len(TEXTS) + row]
        assert set(np.flatnonzero(full > 1e-4)) <= set(indices.tolist())
        np.testing.assert_allclose(values, full[indices], atol=1e-4)
    assert result.source.tolist() == [1] * len(TEXTS)


PAIRS = [(query, text) for query in (*QUERIES, "long query " * 100) for text in TEXTS]


@pytest.fixture(scope="module")
def random_reranker(tmp_path_factory) -> ModelSpec:
    """A small random CrossEncoder with the embedded models' vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "reranker"
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=1
    )
    network = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.2)
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate(MODELS["splade-tiny"]).folder / name, folder)
    return ModelSpec(
        "reranker", "rerank", "test/reranker", FolderSource(str(folder)), 1, 128, "cross_encoder", "Apache-2.0"
    )


@pytest.fixture(params=["random", "shipped"])
def reranker(request, random_reranker) -> ModelSpec:
    if request.param == "random":
        return random_reranker
    try:
        locate(MODELS["ensemble-reranker-tiny"])
    except ModelUnavailableError:
        pytest.skip("the shipped reranker's weights are not in this checkout")
    return MODELS["ensemble-reranker-tiny"]


def test_pairs_and_logits_equal_sentence_transformers(reranker):
    from sentence_transformers import CrossEncoder

    files = locate(reranker)
    spec = describe(reranker, files, None).spec
    known = load_vocabulary(files)
    plain = CrossEncoder(str(files.folder), max_length=spec.max_tokens, device="cpu")
    queries, chunks = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    rows = np.repeat(np.arange(len(PAIRS))[:, None], 2, axis=1)
    table = pair_table(
        tokenise_bodies(queries, known, spec.max_tokens),
        tokenise_bodies(chunks, known, spec.max_tokens),
        rows,
        known.template,
        spec.max_tokens,
    )
    inputs = plain.tokenizer(queries, chunks, truncation="longest_first", max_length=spec.max_tokens)
    for row, (ids, types) in enumerate(zip(inputs["input_ids"], inputs["token_type_ids"], strict=True)):
        assert table.ids[table.offsets[row] : table.offsets[row + 1]].tolist() == ids
        assert [int(at >= table.second_from[row]) for at in range(len(ids))] == types
    result = run_here(table, rerank_factory(reranker, files, RUNTIME), 700)
    expected = plain.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(result.outputs["logit"], expected, rtol=1e-4, atol=1e-4)
