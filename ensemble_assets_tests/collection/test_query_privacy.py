"""The key is private and made once; ids that could say something never leave as they are."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ensemble_assets.collection.query_privacy import (
    ID_RULES,
    KEY_BYTES,
    IdRule,
    load_or_create_key,
    public_id,
    public_ids,
    query_hash,
)
from ensemble_assets.common.errors import InputError

KEY = bytes(range(32))
QUESTION = "how do I reset my password"


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "key"
    key = load_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert load_or_create_key(tmp_path / "other") != key


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_many_creators_at_once_get_the_same_key(tmp_path: Path, pool: type[ThreadPoolExecutor]) -> None:
    paths = [tmp_path / f"key{n}" for n in range(20) for _ in range(4)]
    with pool(max_workers=8) as workers:
        keys = list(workers.map(load_or_create_key, paths))
    by_path = dict(zip(paths, keys, strict=True))
    assert [by_path[path] for path in paths] == keys
    assert len(set(keys)) == 20
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(InputError, match=rf"mode {mode:04o}: others may read or change the key.*chmod 600"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="does not hold exactly 32 bytes"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_a_key_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(InputError, match="not a regular file"):
            load_or_create_key(tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be made or read.*paths\.key_file"):
        load_or_create_key(tmp_path / "file" / "key")


def test_the_hash_is_half_of_hmac_sha_256() -> None:
    expected = hmac.new(KEY, "größe?".encode(), hashlib.sha256).hexdigest()[:32]
    assert query_hash(KEY, "größe?") == expected


@given(a=st.text(), b=st.text(), other=st.binary(min_size=32, max_size=32))
def test_hashes_depend_on_text_and_key(a: str, b: str, other: bytes) -> None:
    assert (query_hash(KEY, a) == query_hash(KEY, b)) == (a == b)
    assert (query_hash(KEY, a) == query_hash(other, a)) == (other == KEY)


SHOWN = [
    *("0", "1", "42", "300", "1037798", "q1", "Q12", "q-3", "q_3", "q.3", "q:3", "PLAIN-2", "test12", "test_12"),
    *(
        "topic-51",
        "query7",
        "TREC-CAR-7"[:6] + "7",
        "630-262",
        "12a",
        "id-5",
        "question-1",
        "dev-12.3",
        "nq-100",
        "qid44",
    ),
]
HIDDEN = [
    # e-mail, names, user names
    *("ann@example.org", "ann.lee", "ann-lee", "annlee", "anna5", "smith1980", "john1", "j.smith.3", "O'Neil"),
    # phone numbers, cards, dates, addresses
    *("+49-170-1234567", "0170-1234567", "555-1234", "5551234567", "+4917012345678", "4111-1111-1111-1111"),
    *("1980-05-17", "17.05.1980", "17.5.80", "123-45-6789", "192.168.0.1", "10.0.0.1", "12:30:15", "1037798-123"),
    # keys, hashes, unknown machine ids
    *("sk-a8f3b2c1d4e5f607", "AKIA1234567890ABCD", "5dd465dacc027a086d65bc6c", "d41d8cd98f00b204e9800998ecf8427e"),
    *("7c9e6679-7425-40de-944b-e07fc1f90ae7", "ghp16C7e42F292c6912E7710c838347Ae178B4a", "12345678"),
    # text: the query, its words, slugs, anything with a blank
    *(
        QUESTION,
        QUESTION.upper(),
        "reset my password",
        "reset",
        "Reset-1",
        "how-to-reset",
        "password7",
        "resetpassword",
    ),
    *(
        "q 1",
        " q1",
        "q1 ",
        "q\t1",
        "q1\n",
        "",
        "?",
        "q1?",
        "frage-größe",
        "naïve",
        "日本",
        "q" * 50,
        "1" * 50,
        "../../etc",
    ),
]


@pytest.mark.parametrize("query_id", SHOWN)
def test_plain_counters_are_shown(query_id: str) -> None:
    assert public_id(KEY, query_id, QUESTION) == query_id


@pytest.mark.parametrize("query_id", HIDDEN)
def test_ids_that_could_say_something_are_hidden(query_id: str) -> None:
    public = public_id(KEY, query_id, QUESTION)
    assert public.startswith("q-")
    assert len(public) == 26
    assert all(c in "0123456789abcdef" for c in public[2:])


@pytest.mark.parametrize(
    ("query_id", "text"),
    [
        ("1984", "1984"),
        ("1984", "who wrote 1984?"),
        ("q911", "who calls 911"),
        ("test-7", "a test of memory"),
        ("PLAIN-2", "plain words"),
        ("topic-1", "TOPIC models"),
        ("topic-1", "sub topics: topic"),
    ],
)
def test_an_id_that_repeats_a_word_of_its_query_is_hidden(query_id: str, text: str) -> None:
    assert public_id(KEY, query_id, text).startswith("q-")
    assert public_id(KEY, query_id, text, ids_are_public=True).startswith("q-")
    assert public_id(KEY, query_id, QUESTION) == query_id


@pytest.mark.parametrize(
    ("query_id", "shown"),
    [
        ("5dd465dacc027a086d65bc6c", True),
        ("smith1980", True),
        ("TREC-COVID-12", True),
        ("ann@example.org", False),
        ("two words", False),
        ("how-to-reset", False),
        ("xresetx", False),
        ("q" * 50, False),
    ],
)
def test_vouched_ids_are_shown_unless_they_are_text(query_id: str, shown: bool) -> None:
    assert (public_id(KEY, query_id, QUESTION, ids_are_public=True) == query_id) is shown


@given(query_id=st.text(), text=st.text(), vouched=st.booleans())
def test_a_public_id_is_the_id_or_hides_it(query_id: str, text: str, vouched: bool) -> None:
    public = public_id(KEY, query_id, text, ids_are_public=vouched)
    assert public == public_id(KEY, query_id, text, ids_are_public=vouched)
    assert not any(c.isspace() for c in public)
    assert public.isascii()
    if public != query_id:
        assert public.startswith("q-")
        assert len(public) == 26


@given(
    words=st.lists(st.text(alphabet="abcdefghij", min_size=2, max_size=8), min_size=1, max_size=4),
    tail=st.integers(0, 99),
)
def test_no_id_that_is_made_of_the_querys_words_is_shown(words: list[str], tail: int) -> None:
    text = " ".join(words)
    for query_id in (
        text,
        "-".join(words),
        "_".join(words),
        f"{words[0]}-{tail}",
        f"q-{words[-1]}",
        f"{words[0]}{tail}",
    ):
        assert public_id(KEY, query_id, text) != query_id
        assert public_id(KEY, query_id, text, ids_are_public=True) != query_id


@given(a=st.text(max_size=5), b=st.text(max_size=5))
def test_different_ids_get_different_public_ids(a: str, b: str) -> None:
    assume(a != b)
    assert len(set(public_ids(KEY, [(a, "x"), (b, "y")]))) == 2


def test_equal_public_ids_are_an_error_that_names_both_queries() -> None:
    with pytest.raises(InputError, match="query 3: gets the same public id as query 1"):
        public_ids(KEY, [("1", "x"), ("2", "y"), ("1", "z")])


@pytest.mark.parametrize("rule", ID_RULES, ids=[rule.name for rule in ID_RULES])
def test_every_rule_hides_something_that_the_others_would_show(rule: IdRule) -> None:
    others = [other for other in ID_RULES if other is not rule and (other.always or not rule.always)]
    pairs = [*((query_id, QUESTION) for query_id in HIDDEN), ("7", "7")]
    assert [i for i, t in pairs if not rule.holds(i, t) and all(other.holds(i, t) for other in others)]
