"""``clean`` lists everything that a run wrote, removes what is named, and touches nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ensemble_assets.cli.main import main


def clean(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["clean", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, name in (("PATHS_CACHE_DIR", "cache"), ("KEY_FILE", "key"), ("PATHS_LOCK_DIR", "locks")):
        monkeypatch.setenv(f"EMBEDDER_{variable}", str(tmp_path / name))
    for file in ("out/guide/x_texts.json", "out/guide.report.html", "out/.artifacts/guide/a.npy", "cache/m.bin", "key"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 200_000)
    return tmp_path


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_clean_lists_and_removes_nothing(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(written)
    code, out, _ = clean(capsys, "--output-dir", str(written / "out"))
    assert code == 0
    for name in ("cache", "artifacts", "journals", "qdrant", "incidents", "key", "instance", "locks"):
        assert any(line.startswith(name) for line in out.splitlines())
    assert "0.2 MB" in out
    assert files(written) == before


def test_clean_removes_what_is_named(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = clean(capsys, "cache", "artifacts", "--yes", "--output-dir", str(written / "out"))
    assert (code, out.count("removed")) == (0, 2)
    assert files(written) == {"out/guide/x_texts.json", "out/guide.report.html", "key"}


def test_clean_without_a_terminal_says_how_to_confirm(
    written: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, errors = clean(capsys, "cache", "--output-dir", str(written / "out"))
    assert (code, "Give --yes" in errors, (written / "cache").exists()) == (2, True, True)


@pytest.mark.parametrize("home", ["", ".dagster_home"])
def test_clean_lists_the_keys_of_runs_with_and_without_an_instance(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``make run`` has its key in the checkout's instance, a plain run in the user's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBEDDER_KEY_FILE", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", home)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    keys = [tmp_path / ".dagster_home" / "ensemble_assets.key", tmp_path / "data" / "ensemble-assets" / "query.key"]
    for key in keys:
        key.parent.mkdir(parents=True)
        key.write_bytes(b"k" * 32)
    listed = clean(capsys)[1]
    lines = [line for line in listed.splitlines() if line.startswith(("key", "other-key"))]
    assert {Path(line.split()[-1]).absolute() for line in lines} == set(keys)
    assert clean(capsys, "other-key", "--yes")[0] == 0
    assert [key.exists() for key in keys] == ([True, False] if home else [False, True])


@pytest.mark.parametrize("name", ["locks", "instance", "bundles"])
def test_clean_refuses_what_is_not_its_own(name: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = clean(capsys, name, "--yes")
    assert code == 2
    assert "expected some of cache, artifacts" in err
