"""Make token ids from texts: one tokenizer per vocabulary, ids in flat arrays.

The ids are *bodies*: they lack the special tokens. ``token_tables`` adds those, around single texts and pairs. So
encoders and rerankers with different limits share one tokenisation, which ``token_cache`` keeps.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ensemble_assets.common.atomic_files import file_hash
from ensemble_assets.common.errors import ModelUnavailableError, StageError, failure_word
from ensemble_assets.compute.tokens.token_tables import Template, TokenBodies
from ensemble_assets.models.model_files import ModelFiles

if TYPE_CHECKING:
    import polars as pl

_SLICE_TEXTS = 1024
_SLICE_CHARACTERS = 2_000_000
"""Most texts and characters tokenised at once. An encoding takes some 100 bytes per token: a slice takes 60 MB."""

_BEHAVIOUR = ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")
"""The parts of tokenizer.json that decide ids. Truncation, padding and decoder do not."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, ready to use.

    Attributes:
        fingerprint: 16 hex digits; equal where the same text gives the same ids.
        size: ids are below this.
        template: the special tokens that go around a text and a pair.
        not_words: ids of no piece of text: special tokens and the unknown token.
        tokenizer: without truncation and padding.
    """

    fingerprint: str
    size: int
    template: Template
    not_words: tuple[int, ...]
    tokenizer: Tokenizer = field(compare=False, repr=False)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The token string of every id, ``""`` where an id is not used."""
        words = [""] * self.size
        for word, index in self.tokenizer.get_vocab(with_added_tokens=True).items():
            words[index] = word
        return tuple(words)


@lru_cache(maxsize=8)
def load_vocabulary(files: ModelFiles) -> Vocabulary:
    """Load the tokenizer of a model; the same files, and equal ones, give the same object within a process.

    Raises:
        ModelUnavailableError: if the model has no usable fast tokenizer.
    """
    path = files.folder / "tokenizer.json"
    content = file_hash(path) if path.is_file() else f"{files.folder} {files.fingerprint}"
    if content not in _BY_CONTENT:
        tokenizer = _load_tokenizer(files)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = json.loads(tokenizer.to_str())
        template = _template(tokenizer, files)
        fingerprint = _fingerprint(settings)
        _BY_CONTENT[content] = Vocabulary(
            fingerprint, _size(tokenizer), template, _not_words(settings, tokenizer), tokenizer
        )
    return _BY_CONTENT[content]


_BY_CONTENT: dict[str, Vocabulary] = {}
"""Vocabularies of this process by the hash of their file: models often share one. Reading one takes 0.1 s."""


def _load_tokenizer(files: ModelFiles) -> Tokenizer:
    path = files.folder / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        from transformers import AutoTokenizer  # slow to import, and rarely needed

        loaded = AutoTokenizer.from_pretrained(str(files.folder), local_files_only=True, trust_remote_code=False)
        return Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:
        # the tokenizers library raises bare Exception for a file it cannot read, and nothing narrower
        raise ModelUnavailableError(
            f"{files.folder.name}: no usable tokenizer among the model's files ({type(error).__name__}). "
            "Choose a model or revision with a tokenizer.json"
        ) from error


def _fingerprint(settings: dict[str, Any]) -> str:
    parts = {key: settings.get(key) for key in _BEHAVIOUR}
    parts["added_tokens"] = sorted(parts["added_tokens"] or [], key=lambda token: int(token["id"]))
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _not_words(settings: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    special = {int(token["id"]) for token in settings["added_tokens"] or () if token.get("special")}
    model = settings["model"]
    unknown = model.get("unk_id") if model.get("unk_token") is None else tokenizer.token_to_id(model["unk_token"])
    return tuple(sorted(special if unknown is None else special | {int(unknown)}))


def _size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _template(tokenizer: Tokenizer, files: ModelFiles) -> Template:
    """Find the places of special tokens by tokenising one text and one pair."""
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "b")
    first, second = _span(pair, 0), _span(pair, 1)
    alone = _span(single, 0)
    kinds = pair.type_ids[second.start :]
    if len(set(kinds)) != 1 or any(pair.type_ids[: second.start]):
        raise ModelUnavailableError(
            f"{files.folder.name}: its tokenizer numbers the segments of a pair in a way that is not supported. "
            "Choose another model"
        )
    return Template(
        single_before=tuple(single.ids[: alone.start]),
        single_after=tuple(single.ids[alone.stop :]),
        pair_before=tuple(pair.ids[: first.start]),
        pair_between=tuple(pair.ids[first.stop : second.start]),
        pair_after=tuple(pair.ids[second.stop :]),
        second_segment=kinds[0] == 1,
    )


def _span(encoding: Encoding, sequence: int) -> range:
    positions = [at for at, number in enumerate(encoding.sequence_ids) if number == sequence]
    return range(positions[0], positions[-1] + 1)


def tokenise_bodies(
    texts: pl.Series | Iterable[str], vocabulary: Vocabulary, cap: int, prefix: str = ""
) -> TokenBodies:
    """Make token ids without special tokens, at most ``cap`` per text. Full lengths count the tokens beyond it too.

    Raises:
        StageError: if the tokenizer fails on a text; names its row, never its content.
    """
    ids, lengths, full = array("i"), array("q"), array("q")
    for part in _slices(texts):
        ready = [prefix + text for text in part] if prefix else part
        for encoding in _encode(vocabulary.tokenizer, ready, first_row=len(lengths)):
            body = encoding.ids
            full.append(len(body))
            if len(body) > cap:
                del body[cap:]
            lengths.append(len(body))
            ids.extend(body)
    starts = np.cumsum(_int64(lengths)) - _int64(lengths)
    return TokenBodies(np.frombuffer(ids, np.int32) if ids else np.empty(0, np.int32), starts, _int64(full), cap)


def _int64(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, np.int64) if values else np.empty(0, np.int64)


def _slices(texts: pl.Series | Iterable[str]) -> Iterator[list[str]]:
    """Cut the texts into lists whose encodings stay small, however long the texts are."""
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if len(part) >= _SLICE_TEXTS or characters >= _SLICE_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _encode(tokenizer: Tokenizer, texts: list[str], first_row: int) -> list[Encoding]:
    try:
        return list(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    except Exception as error:  # noqa: BLE001  # whatever it is, its message may quote the text
        name = failure_word(error)
    row = next((at for at, text in enumerate(texts) if not _encodes(tokenizer, text)), 0)
    # outside the handler, so that the original exception is not even attached as context
    raise StageError(f"the tokenizer failed on text {first_row + row} of its list ({name})")


def _encodes(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # noqa: BLE001  # only looking for the row that fails
        return False
    return True
