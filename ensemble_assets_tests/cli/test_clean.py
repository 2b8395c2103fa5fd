"""``clean`` lists everything that a run wrote, removes what is named, and touches nothing else."""

from __future__ import annotations

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
    for name in ("cache", "artifacts", "journals", "qdrant", "incidents", "key", "locks"):
        assert any(line.startswith(name) for line in out.splitlines())
    assert "0.2 MB" in out
    assert files(written) == before


def test_clean_removes_what_is_named(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = clean(capsys, "cache", "artifacts", "--yes", "--output-dir", str(written / "out"))
    assert (code, out.count("removed")) == (0, 2)
    assert files(written) == {"out/guide/x_texts.json", "out/guide.report.html", "key"}


@pytest.mark.parametrize("name", ["locks", "bundles"])
def test_clean_refuses_what_is_not_its_own(name: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = clean(capsys, name, "--yes")
    assert code == 2
    assert "expected some of cache, artifacts" in err
