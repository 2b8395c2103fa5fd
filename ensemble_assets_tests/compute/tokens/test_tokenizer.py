"""Token ids are those of the tokenizer, made once per vocabulary, and no text escapes with an error."""

from __future__ import annotations

import json
import traceback

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError, StageError
from ensemble_assets.compute.tokens import tokenizer as module
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets_tests.compute.running.doubles import BARE, BERT, IDS, ROBERTA, model_folder, tokenizer
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

TEXTS = st.lists(st.text(alphabet="abcxyz ALPHAstorm.,é漢\u200b", max_size=60), max_size=8)


@pytest.fixture(scope="module", params=[BERT, ROBERTA, BARE])
def files(request, tmp_path_factory) -> ModelFiles:
    return locate(model_folder(tmp_path_factory.mktemp("models") / request.param, template=request.param))


@given(texts=TEXTS, max_tokens=st.integers(4, 20))
def test_ids_equal_the_tokenizers_own_truncated_encoding(files, texts, max_tokens):
    table = tokenise(pl.Series(texts, dtype=pl.String), files, max_tokens)
    reference = tokenizer(files.folder.name)
    reference.enable_truncation(max_tokens)
    for row, text in enumerate(texts):
        encoding = reference.encode(text)
        assert table.ids[table.offsets[row] : table.offsets[row + 1]].tolist() == encoding.ids
        assert table.truncated[row] == bool(encoding.overflowing)
    assert len(table) == len(texts)


def test_slices_do_not_change_ids(files, monkeypatch):
    texts = ["alpha beta", "", "storms", "x" * 50, "gamma"] * 3
    whole = tokenise(texts, files, 16)
    monkeypatch.setattr(module, "_SLICE_TEXTS", 2)
    monkeypatch.setattr(module, "_SLICE_CHARACTERS", 20)
    parts = tokenise(iter(texts), files, 16)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_array_equal(whole.offsets, parts.offsets)


def test_full_lengths_are_counted_beyond_the_cap(files):
    bodies = tokenise_bodies(["x" * 50, "alpha"], load_vocabulary(files), cap=5)
    assert bodies.full_lengths.tolist() == [50, 1]
    assert (bodies.starts.tolist(), len(bodies.ids)) == ([0, 5], 6)


def test_no_room_beside_the_special_tokens_is_a_settings_error(tmp_path):
    files = locate(model_folder(tmp_path / "bert"))
    with pytest.raises(SettingsError, match="max_tokens is 2"):
        tokenise(["alpha"], files, 2)


def test_fingerprint_ignores_truncation_and_padding_and_sees_behaviour(tmp_path):
    plain = locate(model_folder(tmp_path / "plain"))
    padded = tokenizer()
    padded.enable_padding(length=8)
    padded.enable_truncation(4)
    cased = tokenizer(lowercase=False)
    for name, made in {"padded": padded, "cased": cased}.items():
        model_folder(tmp_path / name)
        made.save(str(tmp_path / name / "tokenizer.json"))
    fingerprints = [
        load_vocabulary(ModelFiles(tmp_path / name, "local", name)).fingerprint for name in ("plain", "padded", "cased")
    ]
    assert fingerprints[0] == load_vocabulary(plain).fingerprint == fingerprints[1] != fingerprints[2]


def test_models_with_equal_files_share_a_vocabulary(tmp_path):
    for name in ("one", "two", "cased"):
        model_folder(tmp_path / name)
    tokenizer(lowercase=False).save(str(tmp_path / "cased" / "tokenizer.json"))
    one, two, cased = (load_vocabulary(ModelFiles(tmp_path / name, "local", name)) for name in ("one", "two", "cased"))
    assert one is two
    assert one != cased


def test_order_of_keys_in_the_file_does_not_matter(tmp_path):
    model_folder(tmp_path / "one")
    model_folder(tmp_path / "two")
    path = tmp_path / "two" / "tokenizer.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(settings.items())), indent=1))
    one, two = (load_vocabulary(ModelFiles(tmp_path / name, "local", name)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_special_and_unknown_tokens_are_known_as_no_words(tmp_path):
    known = load_vocabulary(locate(model_folder(tmp_path / "bert")))
    assert known.not_words == tuple(IDS[word] for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    assert known.words[IDS["storm"]] == "storm"
    assert known.size == len(IDS)


class _Quoting:
    """A tokenizer that fails as real ones may: with the text in its message."""

    def encode_batch_fast(self, texts, add_special_tokens):
        for text in texts:
            self.encode(text, add_special_tokens)
        return []

    def encode(self, text, add_special_tokens):
        if "broken" in text:
            raise ValueError(f"cannot encode {text!r}")


def test_a_failing_tokenizer_names_the_row_and_never_the_text(tmp_path):
    known = load_vocabulary(locate(model_folder(tmp_path / "bert")))
    quoting = Vocabulary(known.fingerprint, known.size, known.template, known.not_words, _Quoting())
    texts = ["alpha", "beta", "my broken " + "terces"[::-1]]  # written so that a traceback's source lines lack it
    with pytest.raises(StageError, match=r"text 2 of its list \(ValueError\)") as caught:
        tokenise_bodies(texts, quoting, 8)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert "secret" in texts[2]
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_folder_without_tokenizer_is_unavailable(tmp_path):
    model_folder(tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnavailableError, match="no usable tokenizer"):
        load_vocabulary(ModelFiles(tmp_path / "empty", "local", "x"))


def test_prefix_is_put_before_every_text(files):
    known = load_vocabulary(files)
    with_prefix = tokenise_bodies(["alpha", ""], known, 16, prefix="query ")
    written_out = tokenise_bodies(["query alpha", "query "], known, 16)
    np.testing.assert_array_equal(with_prefix.ids, written_out.ids)


@pytest.mark.models
def test_embedded_encoders_share_one_vocabulary():
    dense, sparse = (load_vocabulary(locate(MODELS[slug])) for slug in ("all-minilm-l6-v2", "splade-tiny"))
    assert dense.fingerprint == sparse.fingerprint
    assert dense.template == sparse.template


@pytest.mark.models
@pytest.mark.parametrize("slug", ["all-minilm-l6-v2", "splade-tiny"])
def test_ids_equal_transformers_on_the_embedded_models(slug):
    from transformers import AutoTokenizer

    files = locate(MODELS[slug])
    reference = AutoTokenizer.from_pretrained(str(files.folder), local_files_only=True)
    texts = ["", " . ", "Überraschung 漢字 🙂 \u200b zero", "word " * 400, "[SEP] and [MASK] in a text", "a\tb\nc"]
    table = tokenise(texts, files, 64)
    expected = reference(texts, truncation=True, max_length=64)["input_ids"]
    assert [table.ids[a:b].tolist() for a, b in zip(table.offsets, table.offsets[1:], strict=False)] == expected
