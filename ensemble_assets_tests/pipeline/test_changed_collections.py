"""What changed below the corpora root: the pure comparison, and the look at real folders."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.pipeline.changed_collections import Seen, diff_corpora, read_fingerprints, scan_corpora
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection

NAMES = st.sampled_from("abcdef")
CONTENTS = st.dictionaries(NAMES, st.sampled_from(["1", "2", "3"]))


def by_the_book(seen: Seen, read: dict[str, str], asked: dict[str, str], known: set[str]) -> dict[str, set[str]]:
    """The reference: one collection after another, in words."""
    found: dict[str, set[str]] = {"new": set(), "added": set(), "changed": set(), "removed": set()}
    for name in set("abcdef"):
        now = None if name in seen.waiting else seen.fingerprints.get(name)
        if name in seen.fingerprints and name not in known:
            found["new"].add(name)
        if name in known and name not in seen.fingerprints and name not in seen.waiting:
            found["removed"].add(name)
        if now is not None and read.get(name) != now and asked.get(name) != now:
            found["changed" if name in read else "added"].add(name)
    return found


@given(CONTENTS, st.sets(NAMES), CONTENTS, CONTENTS, st.sets(NAMES))
def test_the_comparison_agrees_with_the_reference_and_settles(
    now: dict[str, str], waiting: set[str], read: dict[str, str], asked: dict[str, str], known: set[str]
) -> None:
    seen = Seen({name: word for name, word in now.items() if name not in waiting}, tuple(sorted(waiting)))
    diff = diff_corpora(seen, read, asked, known)
    expected = by_the_book(seen, read, asked, known)
    assert {field: set(getattr(diff, field)) for field in expected} == expected
    assert set(diff.to_run) == expected["added"] | expected["changed"]
    assert not set(diff.requested) & (known - set(seen.fingerprints) - waiting), "what is gone is forgotten"

    settled = diff_corpora(seen, read, diff.requested, known | set(diff.new))
    assert (settled.new, settled.to_run, settled.requested) == ((), (), diff.requested), "asked for once"
    done = diff_corpora(seen, read | dict(seen.fingerprints), {}, known | set(diff.new))
    assert done.to_run == (), "what was read as it is needs no run, whoever ran it"


def test_content_that_comes_back_is_run_again() -> None:
    first = diff_corpora(Seen({"a": "1"}), {}, {}, set())
    second = diff_corpora(Seen({"a": "2"}), {"a": "1"}, first.requested, {"a"})
    third = diff_corpora(Seen({"a": "1"}), {"a": "2"}, second.requested, {"a"})
    assert (first.added, second.changed, third.changed) == (("a",), ("a",), ("a",))


def settings_of(pipeline: Pipeline, settle: float = 0.0) -> Settings:
    root = pipeline.root
    overrides = {
        "paths.chunked_dir": str(root / "corpora"),
        "paths.output_dir": str(root / "output"),
        "paths.cache_dir": str(root / "cache"),
        "operations.settle_seconds": settle,
    }
    return resolve(overrides).settings


def test_a_run_leaves_the_fingerprint_that_the_look_finds(pipeline: Pipeline) -> None:
    settings = settings_of(pipeline)
    before = scan_corpora(settings).fingerprints
    assert read_fingerprints(settings, list(before)) == {}
    assert pipeline.run().succeeded
    assert read_fingerprints(settings, ["notes", "others"]) == before
    write_collection(pipeline.root / "corpora" / "more", count=3)
    (pipeline.root / "corpora" / "notes" / "queries.jsonl").unlink()
    now = scan_corpora(settings).fingerprints
    assert set(now) == {"notes", "more"}
    assert now["notes"] != before["notes"]


def test_names_that_are_refused_are_said_and_hold_up_no_other(pipeline: Pipeline) -> None:
    corpora = pipeline.root / "corpora"
    for name in ("my notes", "my.notes", "bad\nname", "x" * 200, "fine"):
        write_collection(corpora / name, count=1)
    (corpora / "manual").mkdir()
    (corpora / "manual" / "first.md").write_text("# Read me")
    seen = scan_corpora(settings_of(pipeline))
    assert set(seen.fingerprints) == {"notes", "fine"}
    assert len(seen.refused) == 5
    assert any("'manual': has no chunk files, but 1 .md. Documents must be cut" in problem for problem in seen.refused)
    assert any("both get the name 'my_notes'. Rename one of the folders" in problem for problem in seen.refused)
    assert any("has control characters" in problem for problem in seen.refused)
    assert any("has more than 128 bytes" in problem for problem in seen.refused)
    assert not any("\n" in problem for problem in seen.refused)


def test_folders_that_are_being_written_wait_and_dates_in_the_future_do_not_hold_them_up(pipeline: Pipeline) -> None:
    file = pipeline.root / "corpora" / "notes" / "notes_chunks.json"
    changed = file.stat().st_mtime
    settings = settings_of(pipeline, settle=30.0)
    assert scan_corpora(settings, clock=lambda: changed + 1).waiting == ("notes",)
    assert scan_corpora(settings, clock=lambda: changed + 31).waiting == ()
    os.utime(file, (changed + 9999, changed + 9999))
    assert scan_corpora(settings, clock=lambda: changed + 1).waiting == ()


def test_without_time_collections_wait_for_the_next_look(pipeline: Pipeline) -> None:
    ticks = iter(range(0, 1000, 50))
    assert scan_corpora(settings_of(pipeline), seconds=40, clock=lambda: next(ticks)).waiting == ("notes",)


def test_a_name_that_leads_elsewhere_cannot_be_a_folder_but_a_link_to_one_can(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    write_collection(tmp_path / "far" / "away", count=1)
    (pipeline.root / "corpora" / "linked").symlink_to(tmp_path / "far" / "away")
    (pipeline.root / "corpora" / ".." / "corpora" / ".dotted").mkdir()
    assert set(scan_corpora(settings_of(pipeline)).fingerprints) == {"notes", "linked"}
