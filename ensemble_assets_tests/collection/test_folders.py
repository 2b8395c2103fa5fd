"""Collection names are safe, unique and say which folder is meant."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.folders import choose, collection_name, discover, name_folders
from ensemble_assets.common.errors import InputError
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets_tests.collection.readers.folders import lines, write


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("docling", "docling"),
        ("Docs-2_b", "Docs-2_b"),
        ("my docs", "my_docs"),
        ("v1.2", "v1_2"),
        ("a+b=c", "a_b_c"),
        ("données", "données"),
        ("donne\u0301es", "données"),
        ("日本", "日本"),
        ("中文 文档", "中文_文档"),
        ("हिन्दी", "हिन्दी"),
        ("Отчёты 2026", "Отчёты_2026"),
        ("a📚", "a_-02e97b"),
        ("📦", "_-221887"),
        (".hidden", "_hidden"),
    ],
)
def test_letters_digits_dash_and_underscore_stay_and_names_beyond_ascii_stay_distinct(alias: str, name: str) -> None:
    assert collection_name(alias) == name


@pytest.mark.parametrize(
    "alias", ["", "  ", ".", "..", " .. ", "a/b", "../x", "/", "a\\b", "a\nb", "a\0b", "\x7f", "\x85", "x" * 129]
)
def test_names_that_lead_elsewhere_or_cannot_be_shown_are_refused(alias: str) -> None:
    with pytest.raises(InputError, match="Rename the folder"):
        collection_name(alias)


@given(alias=st.text(max_size=20))
def test_a_name_is_always_safe_to_use_as_a_file_name(alias: str) -> None:
    try:
        name = collection_name(alias)
    except InputError:
        return
    assert collection_folder(name) == name, "the folder of its bundle is called so"
    assert not {"/", "\\", ".", " ", "\n", ":", "%"} & set(name)
    assert collection_name(name) == name
    if alias.isascii():
        assert name == re.sub(r"[^A-Za-z0-9_-]", "_", alias), "as version 4.0 has it"


@given(st.sets(st.text(st.characters(exclude_categories=("Cs", "Cc"), min_codepoint=128), min_size=1, max_size=9)))
def test_names_beyond_ascii_are_distinct(aliases: set[str]) -> None:
    composed = {unicodedata.normalize("NFC", alias) for alias in aliases if alias.strip()}
    assert len({collection_name(alias) for alias in composed}) == len(composed)


def test_folders_with_the_same_name_are_an_error_that_names_both() -> None:
    names, refused = name_folders(["a b", "c", "a.b"])
    assert names == {"c": "c"}
    assert {alias: str(error) for alias, error in refused.items()} == {
        "a b": "collection 'a b': it and the folder 'a.b' both get the name 'a_b'. Rename one of the folders",
        "a.b": "collection 'a.b': it and the folder 'a b' both get the name 'a_b'. Rename one of the folders",
    }


def test_the_folder_that_is_called_so_has_the_name() -> None:
    names, refused = name_folders(["my docs", "my.docs", "my_docs"])
    assert names == {"my_docs": "my_docs"}
    assert {alias: str(error) for alias, error in refused.items()} == {
        alias: f"collection {alias!r}: it and the folder 'my_docs' both get the name 'my_docs'. "
        "Rename one of the folders"
        for alias in ("my docs", "my.docs")
    }


def test_sub_folders_with_chunk_files_are_the_collections(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b docs/deep/x_chunks.json": ["x"],
            "a/corpus.jsonl": lines({"_id": "1", "text": "x"}),
            "empty/readme.txt": "x",
            "only-queries/queries.jsonl": "",
            ".cache/x_chunks.json": ["x"],
            "loose.txt": "x",
        },
    )
    (tmp_path / "linked").symlink_to("a")
    found = discover(tmp_path)
    assert [(c.name, c.alias, c.folder) for c in found.collections] == [
        ("a", "a", tmp_path / "a"),
        ("b_docs", "b docs", tmp_path / "b docs"),
        ("linked", "linked", tmp_path / "linked"),
    ]


def test_a_collection_that_is_only_linked_folders_is_found_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, {"outside/x_chunks.json": ["x"], "root/c/readme.txt": "", "root/d/readme.txt": ""})
    (tmp_path / "root" / "c" / "docs").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "d" / "up").symlink_to("..")
    (tmp_path / "root" / "d" / "up2").symlink_to(".")
    assert [c.name for c in discover(tmp_path / "root").collections] == ["c", "d"]  # d reaches c's files through up


def test_clashing_folders_are_found_and_refused_only_if_they_hold_chunks(tmp_path: Path) -> None:
    write(tmp_path, {"a b/x_chunks.json": ["x"], "a.b/readme.txt": "x"})
    assert [c.name for c in discover(tmp_path).collections] == ["a_b"]
    write(tmp_path, {"a.b/x_chunks.json": ["x"]})
    write(tmp_path, {"c/x_chunks.json": ["x"], "x" * 200 + "/x_chunks.json": ["x"]})
    found = discover(tmp_path)
    assert [c.name for c in found.collections] == ["c"], "awkward folders do not stop the others"
    assert set(found.refused) == {"a b", "a.b", "x" * 200}
    with pytest.raises(InputError, match="both get the name 'a_b'"):
        choose(found, ["c", "a.b"])


def test_a_folder_that_holds_chunk_files_itself_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, {"x_chunks.json": ["x"]})
    with pytest.raises(InputError, match=r"holds chunk files itself.*Give its parent folder.*--collections"):
        discover(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a folder\. Set paths\.chunked_dir"):
        discover(tmp_path / "none")


def test_collections_are_chosen_by_name_or_folder_name(tmp_path: Path) -> None:
    write(tmp_path, {"b docs/x_chunks.json": ["x"], "a/x_chunks.json": ["x"]})
    found = discover(tmp_path)
    assert choose(found, []) == list(found.collections)
    assert [c.name for c in choose(found, ["b docs", "a", "b_docs"])] == ["b_docs", "a"]
    with pytest.raises(InputError, match=r"'c': is not there.*There are: a, b_docs"):
        choose(found, ["a", "c"])
