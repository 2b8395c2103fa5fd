"""Chunks of documents fit, lose nothing, know their headings, and are read by a run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("semantic_text_splitter", reason="needs ensemble-assets[documents]")
pytest.importorskip("markdownify", reason="needs ensemble-assets[documents]")

from ensemble_assets.cli.main import main
from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.readers.formats import _DOCUMENTS
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.documents.cutting import Cutting
from ensemble_assets.documents.sections import READERS, Section


def words(text: str) -> int:
    return len(text.split())


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=60), st.booleans(), st.integers(0, 4))
def test_parts_fit_and_hold_every_word_in_order(texts: list[str], markdown: bool, overlap: int) -> None:
    whole = [f"{word}{number}" for number, word in enumerate(texts)]
    parts = Cutting(words, 8, overlap).parts(Section(" ".join(whole), markdown=markdown))
    assert all(words(part) <= 8 and len(part) <= 32 for part in parts)
    assert list(dict.fromkeys(word for part in parts for word in part.split())) == whole


def test_neighbours_share_words_and_leave_room_for_headings() -> None:
    section = Section(" ".join(f"w{number}" for number in range(40)), path=("one two", "three"))
    apart, shared = (Cutting(words, 20, overlap).parts(section) for overlap in (0, 5))
    assert sum(map(words, apart)) == 40 < sum(map(words, shared))
    roomy = Cutting(words, 20, 0, room_for_headings=True).parts(section)
    assert max(map(words, roomy)) <= 20 - 4


def test_tokens_of_a_long_text_without_a_paragraph_are_counted_in_short_pieces_only() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return words(text)

    parts = Cutting(count, 64, 8).parts(Section("word " * 5_000))
    assert " ".join(parts).split() == ["word"] * sum(map(words, parts))
    assert max(counted) <= 4 * 64


def test_one_page_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "deep.html").write_text("<div>" * 3000 + "deep" + "</div>" * 3000)
    (tmp_path / "docs" / "fine.md").write_text("Fine.\n")
    code, _, said = cut(capsys, str(tmp_path / "docs"), "--into", str(tmp_path / "corpora" / "docs"))
    assert code == 1
    assert "deep.html is nested too deeply to be read. Flatten it" in said.replace(": is", " is")
    assert '"Fine."' in (tmp_path / "corpora" / "docs" / "documents.jsonl").read_text()


def test_documents_behind_a_link_out_of_the_folder_are_named_and_read_only_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("docs", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.md").write_text(f"Text of {name}.\n")
    (tmp_path / "docs" / "out").symlink_to(tmp_path / "elsewhere")
    arguments = (str(tmp_path / "docs"), "--into", str(tmp_path / "corpora" / "docs"))
    code, _, said = cut(capsys, *arguments)
    written = tmp_path / "corpora" / "docs" / "documents.jsonl"
    assert (code, "Text of elsewhere" in written.read_text()) == (1, False)
    assert "out/elsewhere.md" in said
    assert "link out of the folder" in said
    assert cut(capsys, *arguments, "--set", "chunks.follow_links=on")[0] == 0
    assert "Text of elsewhere" in written.read_text()


def test_columns_of_a_table_do_not_replace_what_a_chunk_says_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "t.csv").write_text("chunk_id,id,text,token_count,place\na,7,one,99,x\nb,7,two,99,y\n")
    cut(capsys, str(tmp_path / "docs"), "--into", str(tmp_path / "corpora" / "docs"))
    lines = (tmp_path / "corpora" / "docs" / "documents.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(each["id"], each["place"]) for each in records] == [("a", "x"), ("b", "y")]
    assert all(each["token_count"] < 10 for each in records)


def cut(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["chunk", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = tmp_path / "docs"
    (documents / "deep").mkdir(parents=True)
    (documents / "guide.md").write_text("# Guide\n\n## Returns\n\n" + "Returns are due in May. " * 150)
    (documents / "deep" / "shop.html").write_text("<h1>Shop</h1><p>Lamps need oil.</p>")
    (documents / "prices.csv").write_text("id,name,price\np-1,Lamp,10\n")
    (documents / "blank.txt").write_text(" \n")
    (documents / "paper.pdf").write_bytes(b"%PDF")
    (documents / "queries.tsv").write_text("query_id\ttext\n1\twhen\n")
    (documents / "deep" / "COPYING").write_text("All rights reserved.")
    (documents / ".gitignore").write_text("of another program")
    return documents


@pytest.mark.models
def test_the_next_command_can_be_pasted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "all mine" / "my notes"
    _, out, _ = cut(capsys, str(folder), "--into", str(into))
    following = out.splitlines()[-1].removeprefix("Next: ")
    assert shlex.split(following)[2:] == ["--chunked-dir", str(into.parent), "--collections", into.name]


@pytest.mark.models
def test_a_folder_becomes_a_collection(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "corpora" / "notes"
    code, out, err = cut(capsys, str(folder), "--into", str(into))
    assert code == 0
    assert f"ensemble-assets run --chunked-dir {into.parent} --collections notes" in out
    assert "Without any text: blank.txt" in err
    assert "Not read: 1 .pdf, 1 without an ending. Save documents among them as" in err
    assert "Not read: queries.tsv, by name files of queries or judgements" in err
    records = [json.loads(line) for line in (into / "documents.jsonl").read_text().splitlines()]
    assert out.startswith(f"4 documents, {len(records)} chunks of at most 254 tokens")
    frame, _ = read_chunks(into, 256)
    assert frame["chunk_id"].to_list() == [record["id"] for record in records]
    assert not frame["cut"].any()
    assert {record["source_file"] for record in records} == {"guide.md", "deep/shop.html", "prices.csv"}
    assert "p-1" in frame["chunk_id"].to_list()
    returns = [record for record in records if record["source_file"] == "guide.md"]
    assert len(returns) > 2
    assert all(record["section_path"] == ["Guide", "Returns"] for record in returns)
    assert max(record["token_count"] for record in records) <= 254
    first = (into / "documents.jsonl").read_bytes()
    assert cut(capsys, str(folder), "--into", str(into))[0] == 0
    assert (into / "documents.jsonl").read_bytes() == first

    titled, _ = read_chunks(into, 256, limits=ReadLimits(prepend_headings=True))
    by_id = dict(zip(titled["chunk_id"], titled["text"], strict=True))
    assert by_id["guide.md:0"].startswith("Guide ## Returns Returns are due"), "its own heading stands there already"
    assert by_id["guide.md:1"].startswith("Guide > Returns Returns are due")
    assert (titled["chunk_id"] == frame["chunk_id"]).all()


@pytest.mark.models
def test_chunks_cannot_share_more_than_they_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cut(capsys, str(folder), "--into", str(tmp_path / "notes"), "--tokens", "64", "--overlap", "64")
    assert code == 2
    assert "--overlap 64: a chunk has at most 64 tokens" in err


@pytest.mark.models
def test_documents_that_cannot_be_read_are_left_out_named_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "deep" / "old.txt").write_bytes("Käse".encode("latin-1"))
    (folder / "broken.csv").write_text('id,text\n1,"never ends\n2,b,c,d\n')
    code, out, err = cut(capsys, str(folder), "--into", str(tmp_path / "notes"))
    assert code == 1
    assert out.startswith("4 documents, 2 left out, ")
    assert "Next: ensemble-assets run" in out
    assert "Left out: deep/old.txt, byte 1: is not UTF-8. Save the document as UTF-8" in err
    assert "Left out: broken.csv: is no table that can be read" in err
    records = [json.loads(line) for line in (tmp_path / "notes" / "documents.jsonl").read_text().splitlines()]
    assert {record["source_file"] for record in records} == {"guide.md", "deep/shop.html", "prices.csv"}


@pytest.mark.models
def test_documents_of_which_none_can_be_read_leave_the_chunks_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "docs" / name).write_bytes(b"\xe4")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "documents.jsonl").write_text("{}\n")
    code, _, err = cut(capsys, str(tmp_path / "docs"), "--into", str(tmp_path / "notes"))
    assert code == 2
    assert all(
        part in err for part in ("docs: has 2 document(s), and none can be read", "a.txt, byte 0", "b.md, byte 0")
    )
    assert (tmp_path / "notes" / "documents.jsonl").read_text() == "{}\n"


@pytest.mark.models
def test_room_is_left_for_headings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "notes"
    assert cut(capsys, str(folder), "--into", str(into), "--set", "chunks.headings=prepend")[0] == 0
    frame, _ = read_chunks(into, 256, limits=ReadLimits(prepend_headings=True))
    assert not frame["cut"].any()


@pytest.mark.models
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--tokens", "300"], "--tokens 300: all-minilm-l6-v2 reads at most 254"),
        (["--set", "chunks.heading=prepend"], "chunks.headings"),
    ],
)
def test_bad_usage_is_said(
    more: list[str], expected: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cut(capsys, str(folder), "--into", str(tmp_path / "x"), *more)
    assert code == 2
    assert expected in err
    assert not (tmp_path / "x").exists()


@pytest.mark.models
def test_a_folder_without_documents_and_no_folder_are_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name, expected in (("empty", "has no document"), ("nowhere", "there is no such folder")):
        code, _, err = cut(capsys, str(tmp_path / name), "--into", str(tmp_path / "x"))
        assert (code, expected in err) == (2, True)


@pytest.mark.parametrize("package", ["markdownify", "semantic_text_splitter"])
def test_a_missing_package_is_one_sentence(package: str, folder: Path) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\nfrom ensemble_assets.cli.main import main\nmain(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "chunk", str(folder), "--into", str(folder / "x")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        "Error: cutting documents needs more packages: pip install 'ensemble-assets[documents]'"
    )


def test_every_kind_that_can_be_cut_is_named_where_it_is_met() -> None:
    assert set(READERS) <= set(_DOCUMENTS)
