"""Make the hash and the public id that stand for a query outside of the ``queries`` artefact.

Query text is only in that artefact and in memory. Everything else has ``query_hash`` and ``public_id``. Each deployment
has a key of its own: without it nobody can compare a guessed text with a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.common.errors import InputError

KEY_BYTES = 32
MAX_PUBLIC_ID = 40
"""Characters of the longest id that is shown."""

_HASH_DIGITS = 32
"""128 bits: two texts of a collection never get the same hash by chance."""

_ID_DIGITS = 24


def load_or_create_key(path: Path) -> bytes:
    """Return the deployment's key: 32 random bytes in a file that only its owner may read, made on first use.

    Several processes may do this at once: the finished file is linked into place, and the later ones read the first
    one's key. A missing folder is made with mode 0700. A file that cannot be used, that others may read or write, or
    that does not hold 32 bytes is an ``InputError``.
    """
    try:
        key = _read_key(path)
        if key is None:
            _create_key(path)
            key = _read_key(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(
            str(path), f"the key file cannot be made or read ({reason})", "Set paths.key_file to a place you own"
        ) from None
    if key is None:
        raise InputError(str(path), "the key file vanished while it was being read", "Run again")
    return key


def _read_key(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise InputError(str(path), "the key file is not a regular file", "Remove it, and a new key is made")
        if state.st_mode & 0o077:
            raise InputError(
                str(path),
                f"the key file has mode {stat.S_IMODE(state.st_mode):04o}: others may read or change the key",
                "Run chmod 600 on it; if others may have read it, remove it, and a new key is made (hashes change)",
            )
        key = os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(key) != KEY_BYTES:
        raise InputError(
            str(path),
            f"the key file does not hold exactly {KEY_BYTES} bytes",
            "Restore it from a copy, or remove it, and a new key is made (hashes change)",
        )
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def query_hash(key: bytes, text: str) -> str:
    """Return the first half of HMAC-SHA-256 of the text in UTF-8 under ``key``, 32 hex digits."""
    return _keyed(key, text)[:_HASH_DIGITS]


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class IdRule:
    """A condition, in words, for showing an id unchanged; ``holds`` tests (query id, query text).

    With ``always`` it applies even if the operator vouches for the ids (``queries.ids_are_public``).
    """

    name: str
    holds: Callable[[str, str], bool]
    always: bool


_PLAIN = re.compile(r"[A-Za-z0-9_.:-]+")
_PREFIX = (
    "(?:[A-Za-z]{1,2}|dev|eval|faq|item|msmarco|nfcorpus|plain|qid|query|question|test|topic|train|trec|val|valid)"
)
_COUNTER = re.compile(
    rf"(?:{_PREFIX}(?:[-_.:]{_PREFIX})?[-_.:]?)?\d{{1,7}}(?:[-_.:]\d{{1,4}})?[A-Za-z]?", re.IGNORECASE
)
_GROUPED_NUMBER = re.compile(r"\d{2,}[-_.:]\d{2,}[-_.:]\d|\d{3}[-_.:]\d{4}|\d+[.:]\d+[.:]\d+")
_WORD = re.compile(r"[^\W\d_]{2,}|\d{3,}")
_LONG_WORD = 4


def _names_no_word(query_id: str, text: str) -> bool:
    """Test that the id has no word of the text.

    Words are runs of two letters or three digits. Words of four characters also count inside a longer run.
    """
    shown = query_id.casefold()
    words = {word.casefold() for word in _WORD.findall(text)}
    if any(part in words for part in _WORD.findall(shown)):
        return False
    return not any(word in shown for word in words if len(word) >= _LONG_WORD)


ID_RULES: tuple[IdRule, ...] = (
    IdRule("letters, digits and -_.: only (so no blanks, no e-mail)", lambda i, t: bool(_PLAIN.fullmatch(i)), True),
    IdRule(f"at most {MAX_PUBLIC_ID} characters", lambda i, t: len(i) <= MAX_PUBLIC_ID, True),
    IdRule("not the query itself", lambda i, t: i.casefold() != t.strip().casefold(), True),
    IdRule("no word or longer number of the query", _names_no_word, True),
    IdRule("fewer than eight digits (phone and card numbers, dates)", lambda i, t: sum(map(str.isdigit, i)) < 8, False),
    IdRule("no grouped number (phone numbers, addresses)", lambda i, t: not _GROUPED_NUMBER.search(i), False),
    IdRule(
        "a counter: up to two prefixes (one or two letters, or a word such as query, test, topic), then a number",
        lambda i, t: bool(_COUNTER.fullmatch(i)),
        False,
    ),
)
"""An id is shown if every rule holds. Names, keys, hashes and slugs of the text do not pass."""


def public_id(key: bytes, query_id: str, text: str, *, ids_are_public: bool = False) -> str:
    """Return the id of a query outside of the ``queries`` artefact.

    It is the id itself if ``ID_RULES`` hold, otherwise ``q-`` and 24 hex digits of the id's keyed hash. The same id and
    key always give the same public id. With ``ids_are_public`` the operator vouches that the ids are not personal, so
    only the rules ``always`` apply.
    """
    if all(rule.holds(query_id, text) for rule in ID_RULES if rule.always or not ids_are_public):
        return query_id
    return "q-" + _keyed(key, f"query-id\0{query_id}")[:_ID_DIGITS]


def public_ids(key: bytes, queries: Iterable[tuple[str, str]], *, ids_are_public: bool = False) -> list[str]:
    """Return the public ids of (query id, text) pairs, in order; ``InputError`` if two queries get the same."""
    seen: dict[str, int] = {}
    ids = []
    for number, (query_id, text) in enumerate(queries, start=1):
        name = public_id(key, query_id, text, ids_are_public=ids_are_public)
        if name in seen:
            raise InputError(
                f"query {number}", f"gets the same public id as query {seen[name]}", "Give one of them another id"
            )
        seen[name] = number
        ids.append(name)
    return ids
