"""The report is one accessible page that needs no network, tolerates what is missing and shows no text of anybody."""

from __future__ import annotations

import copy
import dataclasses
import html
import importlib.resources
import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common import stages
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.report.charts import SMALL_WIDTH, Bar, Limit, bars, curve, histogram, thinned
from ensemble_assets.report.facts import Facts, Memory, Stage
from ensemble_assets.report.page import page_of
from ensemble_assets.report.read_facts import read_facts
from ensemble_assets.report.small_pictures import small_pictures
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.span_record import telemetry_section
from ensemble_assets_tests.telemetry.canaries import CANARIES, leaks
from ensemble_assets_tests.telemetry.full_run import telemetry

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = ("Time", "Quality", "Models", "Memory", "Scores", "Reranking", "Coverage and fallbacks", "Settings")


def _run(folder):
    run = telemetry(TelemetryOptions(journal_folder=folder))
    for number, stage in enumerate(("dense", "sparse", "fusion", "rerank"), start=1):
        with run.stage(stage, items=10 * number, device="cuda:0", peak_bytes=number * 10**9) as span:
            if stage in ("dense", "sparse"):
                span.set(tokens=5000)
            for second in range(5):
                span.emit(
                    "device.memory", device="cuda:0", sampled_at=10.0 * number + second, used_bytes=second * 10**9
                )
    return run


def _manifest(run):
    return {
        "schema_version": "v4.1",
        "generated_at": "2026-01-02T03:04:05.678901",
        "collection": "docling",
        "chunk_count": 738,
        "feature_toggles": {
            "enable_rerank": True,
            "provenance": [
                {"key": "enable_rerank", "value": True, "layer": "default", "source": "default"},
                {"key": "models.sparse", "value": ["splade-tiny"], "layer": "environment",
                 "source": "environment variable EMBEDDER_SPARSE_MODELS"},
            ],
        },
        "dense_run": {"seconds": 4.0, "truncated": 3, "device": "cuda:0", "models": [{"slug": "all-minilm-l6-v2"}]},
        "sparse_run": {
            "latency_ms": 500.0, "fallback_count": 7, "fallback_reason": "no_tokens",
            "vectors": {"total": 738, "available": 731, "coverage_ratio": 731 / 738},
            "payload": {"fallback_reasons": {"no_tokens": 7}},
        },
        "rerank_run": {"status": "partial", "fallback_count": 2, "fallback_reason": "out_of_memory",
                       "fallback_source": "runtime", "payload": {"latency_ms": 800.0}},
        "telemetry": telemetry_section(run.records()),
        "performance_baseline": {"dense_only_seconds": 4.5, "limit_ratio": 1.1, "vs_own_dense": 1.32},
        "warnings": ["a", "b"],
    }  # fmt: skip


def _ranked(folder):
    lines = [
        {"query_id": f"q{q}", "chunk_ids": ["a", "b", "c"], "ranks": [1, 2, 3],
         "fused_ranks": [2, 1, 3] if q else [1, 2, 3], "fused_scores": [0.03, 0.02, 0.01],
         "rerank_scores": [1.5, -0.5, None], "scores": [0.9, 0.5, 0.1]}
        for q in range(4)
    ]  # fmt: skip
    (folder / "ultimate_embeddings_v4_rerank.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def bundle(tmp_path):
    run = _run(tmp_path)
    (tmp_path / "processing_summary.json").write_text(json.dumps(_manifest(run)))
    _ranked(tmp_path)
    return tmp_path


@pytest.fixture
def whole(bundle):
    return {
        "bundle": bundle,
        "journal": next(bundle.glob("telemetry-*.jsonl")),
        "candidates": pl.DataFrame(
            {
                "dense_score": [0.5, 0.75, None],
                "sparse_score": [3.0, None, 4.0],
                "lexical_score": [7.0, None, 9.0],
                "score": [0.1, 0.2, 0.3],
            }
        ),
        "quality": {
            "dense": {"nDCG@10": 0.645, "MAP": 0.6},
            "lexical": {"nDCG@10": 0.51, "MAP": 0.5},
            "reranked": {"nDCG@10": 0.72, "MAP": 0.66},
        },
    }  # fmt: skip


def _page(whole):
    return page_of(read_facts(**whole))


def _page_of_bundle(bundle):
    return page_of(read_facts(bundle))


class Outline(HTMLParser):
    """Tags with their attributes, and whether every tag was closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self._open, self.texts = [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_warnings_are_in_words_where_this_installation_wrote_them_and_a_number_elsewhere(bundle):
    facts = read_facts(bundle)
    assert "Warnings" not in _headings(page_of(facts))
    page = page_of(replace(facts, warning_texts=("3 texts were cut", "a <b> file was left out")))
    assert "Warnings" in _headings(page)
    assert {"3 texts were cut", "a <b> file was left out"} <= {text for tag, text in Outline(page).texts if tag == "td"}


def _headings(page):
    return [text for tag, text in Outline(page).texts if tag == "h2"]


def test_a_whole_bundle_gives_every_section(whole):
    assert _headings(_page(whole)) == list(SECTIONS)


def test_the_page_needs_nothing_from_elsewhere(whole):
    page = _page(whole)
    outline = Outline(page)
    for _, attributes in outline.tags:
        for name in ("src", "href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith("#")
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in outline.tags}
    assert "url(" not in page
    assert "@import" not in page
    policy = [meta["content"] for meta in outline.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_pictures_and_tables_can_be_read_without_seeing_them(whole):
    page = _page(whole)
    outline = Outline(page)
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(pictures) == 10
    for picture in pictures:
        title, description = picture[0], picture[1]
        assert picture.get("role") == "img"
        assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert re.search(r"\d", description.text), "the description says the figures"
    assert len(re.findall("<caption>", page)) == len(outline.all("table")) == 6
    assert all(header["scope"] in ("row", "col") for header in outline.all("th"))
    assert outline.all("html")[0]["lang"] == "en"
    headings = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def _luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_light_and_dark(scheme):
    """WCAG 2.2: 4.5 for text, 3 for what must be seen in figures."""
    page = page_of(Facts(collection="a", generated_at="", schema="v4.0", chunks=None, stages=()))
    light, dark = re.findall(r":root \{([^}]*--paper[^}]*)\}", page)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", light if scheme == "light" else dark))

    def contrast(name):
        bright, dark = sorted((_luminance(colours[name]), _luminance(colours["paper"])), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    assert min(contrast("ink"), contrast("soft")) >= 4.5
    assert min(contrast("bar"), contrast("limit")) >= 3


def test_the_figures_are_those_of_the_bundle(whole):
    page = html.unescape(_page(whole))
    facts = read_facts(whole["bundle"], whole["journal"], whole["candidates"], whole["quality"])
    assert [stage.name for stage in facts.stages] == ["dense", "sparse", "fusion", "rerank"]
    assert facts.baseline_seconds == 4.5
    assert facts.moves.tolist() == [0, 0] + 3 * [1, -1]
    assert facts.top_changed == (3, 4)
    assert {name: values.tolist() for name, values in facts.scores.items()} == {
        "dense": [0.5, 0.75], "sparse": [3.0, 4.0], "lexical": [7.0, 9.0], "fused": [0.1, 0.2, 0.3],
        "reranked": 4 * [1.5, -0.5],
    }  # fmt: skip
    (memory,) = facts.memory
    assert (memory.device, len(memory.times), float(memory.used.max())) == ("cuda:0", 20, 4e9)
    assert facts.fallbacks == (("sparse", "no_tokens", "", 7), ("rerank", "out_of_memory", "runtime", 2))
    assert facts.toggles == (
        ("enable_rerank", "on", "default", "default"),
        ("models.sparse", "splade-tiny", "environment", "environment variable EMBEDDER_SPARSE_MODELS"),
    )
    for text in (
        "99.1%",
        "0.7200",
        "75%",
        "3 of 4 queries",
        "the limit of 10 % over dense-only baseline",
        "ceiling 12 GB",
        "this run's dense stage: 1.32",
    ):
        assert text in page, text


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["queries.jsonl", "qrels/test.tsv"], " Judged by qrels/test.tsv."),
        (["queries.jsonl", "qrels/test-00000-of-00001.parquet"], " Judged by qrels/test-00000-of-00001.parquet."),
        (["queries.jsonl", "qrels-of-mrs-miller.txt"], " Judged by a file of another name."),
        (["queries.jsonl"], ""),
        ([1, 2], " Judged by a file of another name."),
        (None, ""),
    ],
)
def test_the_file_that_judged_is_named_if_its_name_says_nothing_else(bundle, files, shown):
    path = bundle / "processing_summary.json"
    manifest = {**json.loads(path.read_text()), "query_files": files, "quality": {"dense": {"MAP": 0.5}}}
    path.write_text(json.dumps(manifest))
    assert f"Means over the judged queries.{shown}</p>" in page_of(read_facts(bundle))


def test_the_journal_knows_how_long_the_export_took(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    with run.stage("export") as span:
        section = telemetry_section([span.record()])
        (tmp_path / "processing_summary.json").write_text(json.dumps({"telemetry": section}))
    (alone,) = read_facts(tmp_path, None, None, None).stages
    (known,) = read_facts(tmp_path, run.journal_path, None, None).stages
    assert alone.seconds is None
    assert known.seconds == span.record().attributes["latency_seconds"]


def test_without_a_stored_baseline_the_page_says_what_it_compares_with(bundle):
    manifest = json.loads((bundle / "processing_summary.json").read_text())
    manifest["performance_baseline"] = {}
    (bundle / "processing_summary.json").write_text(json.dumps(manifest))
    page = _page_of_bundle(bundle)
    assert "There is no limit without a stored baseline" in page
    assert "the limit of" not in page
    assert "times this run's dense stage." in html.unescape(page)
    assert "dense-only baseline" not in page


def _keys(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from _keys(item, (*path, key))


def test_any_part_of_the_manifest_may_be_missing_or_of_another_type(bundle):
    path = bundle / "processing_summary.json"
    manifest = json.loads(path.read_text())
    wrong = itertools.cycle((None, [], "text", 7, {"a": {"b": None}}))
    for keys in list(_keys(manifest)):
        changed = copy.deepcopy(manifest)
        holder = changed
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = next(wrong)
        path.write_text(json.dumps(changed))
        Outline(_page_of_bundle(bundle))


def test_a_v40_bundle_and_an_empty_manifest_give_a_page(tmp_path):
    (tmp_path / "processing_summary.json").write_text("{}")
    assert _headings(_page_of_bundle(tmp_path)) == []


def test_reused_rows_give_no_ratio_waiting_is_shown_and_probes_are_called_so() -> None:
    stage = Stage("dense", "active", seconds=1.0, items=3.0, reused=3.0, wait_seconds=44.25)
    facts = Facts("guide", "", "v4.1", 3, (stage,), ratios={"vs_own_dense": 4.72}, derived=True)
    page = page_of(replace(facts, quality={"dense": {"nDCG@10": 1.0}}))
    assert "4.72" not in page
    assert "Rows of an earlier run were taken over" in page
    assert "44.2" in page
    assert "derived probes" in page
    fresh = page_of(replace(facts, stages=(replace(stage, reused=None),), derived=False))
    assert "4.72" in fresh
    assert "derived probes" not in fresh


def test_stages_that_were_off_are_listed_with_their_reason(tmp_path):
    run = telemetry()
    with run.stage("dense"):
        pass
    with run.stage("rerank") as span:
        span.skip("feature_disabled")
    (tmp_path / "processing_summary.json").write_text(json.dumps({"telemetry": telemetry_section(run.records())}))
    assert "skipped (feature_disabled)" in _page_of_bundle(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "there is no processing_summary.json in it"), ("{", "JSON"), ("[]", "JSON object")]
)
def test_a_folder_that_is_no_bundle_is_a_clear_error(tmp_path, content, says):
    if content is not None:
        (tmp_path / "processing_summary.json").write_text(content)
    with pytest.raises(ArtefactError, match=says):
        _page_of_bundle(tmp_path)


def test_broken_lines_of_the_ranked_lists_are_left_out(bundle):
    with next(bundle.glob("*_rerank.jsonl")).open("a") as stream:
        stream.write('{"ranks": "text"}\n[1]\nnot json\n{"ranks": [null, "1"], "fused_ranks": [NaN]}\n')
    facts = read_facts(bundle, None, None, None)
    assert len(facts.moves) == 8


@pytest.mark.parametrize("canary", CANARIES)
def test_no_canary_in_a_bundle_gets_onto_the_page(bundle, whole, canary):
    """Old manifests kept a query in ``rerank_run.payload.query``; here the canary stands in every string and key."""
    manifest = json.loads((bundle / "processing_summary.json").read_text())

    def spoiled(value):
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()} | {canary: canary}
        if isinstance(value, list):
            return [*map(spoiled, value), canary]
        return canary if isinstance(value, str) else value

    planted = {**spoiled(manifest), "collection": "docling", "quality": {canary: {"MAP": 1.0}, "dense": {canary: 0.5}}}
    planted["rerank_run"]["payload"]["query"] = canary
    (bundle / "processing_summary.json").write_text(json.dumps(planted))
    lists = next(bundle.glob("*_rerank.jsonl"))
    lists.write_text(lists.read_text().replace('"a"', json.dumps(canary)).replace('"q1"', json.dumps(canary)))
    assert leaks(page_of(read_facts(bundle, whole["journal"])).encode(), (canary,)) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50) | st.lists(st.integers(-30, 30).map(float), min_size=1))
def test_a_histogram_has_every_value_in_one_bar(values):
    picture = ET.fromstring(histogram("t", np.array(values), "u").inline("h"))
    counts = [int(rect[0].text.rsplit(": ", 1)[1]) for rect in picture.iter("rect")]
    assert sum(counts) == len(values)
    assert all(float(rect.get("y")) >= 0 and float(rect.get("height")) >= 0 for rect in picture.iter("rect"))


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), max_size=8),
    st.lists(st.floats(0, 2e4), max_size=2),
)
def test_bars_and_limits_stay_inside_the_picture_and_to_scale(spans, limits):
    rows = [Bar(f"b{i}", start, length) for i, (start, length) in enumerate(spans)]
    picture = ET.fromstring(bars("t", rows, [Limit("l", at) for at in limits], "s").inline("b"))
    width, height = map(float, picture.get("viewBox").split()[2:])
    extent = max([*(s + n for s, n in spans), *limits], default=0)
    extent = extent if extent > 1e-9 else 1
    for rect, (start, length) in zip(picture.iter("rect"), spans, strict=True):
        assert float(rect.get("x")) + float(rect.get("width")) <= width
        assert float(rect.get("y")) + float(rect.get("height")) <= height
        assert float(rect.get("x")) == pytest.approx(130 + 420 * start / extent, abs=0.06)
        assert float(rect.get("width")) == pytest.approx(max(420 * length / extent, 1), abs=0.06)


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=30), st.floats(0.1, 1e5))
def test_a_curve_stays_below_its_highest_line_and_above_the_axis(values, limit):
    times = np.arange(len(values), dtype=np.float64)
    picture = ET.fromstring(curve("t", times, np.array(values), [Limit("l", limit)], "GB").inline("c"))
    points = [tuple(map(float, p.split(","))) for p in picture.find("polyline").get("points").split()]
    assert len(points) == len(values)
    assert all(60 <= x <= 620 and 20 <= y <= 150 for x, y in points)
    assert max(values) == 0 or min(y for _, y in points) == pytest.approx(
        150 - 130 * max(values) / (1.05 * max(*values, limit)), abs=0.06
    )


def _busy(devices: int) -> Facts:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 4000, 5000))
    return Facts(
        collection="big", generated_at="", schema="v4.1", chunks=10**7,
        stages=tuple(Stage(name, "completed", seconds=1234.5678, ceiling_bytes=12e9) for name in stages.TIMED_STAGES),
        memory=tuple(Memory(f"GPU-{n}", times, rng.uniform(1e9, 12e9, 5000)) for n in range(devices)),
        scores={name: rng.normal(0, 1, 50_000) for name in stages.list_names()},
        moves=rng.integers(-99, 100, 50_000).astype(np.float64), top_changed=(4000, 9000),
    )  # fmt: skip


@pytest.mark.parametrize("devices", [1, 8])
def test_small_pictures_fit_a_materialisation_whatever_the_run(devices):
    made = small_pictures(_busy(devices))
    assert list(made) == ["stage_times", "memory_over_time", "scores", "rerank_moves"]
    assert sum(len(chart.image()) * 4 / 3 + len(chart.words) for chart in made.values()) < 9_500
    for chart in made.values():
        assert ET.fromstring(chart.image()).tag.endswith("svg")
        assert "<script" not in chart.image()
        assert chart.words


def test_without_facts_there_are_no_small_pictures():
    assert small_pictures(Facts(collection="a", generated_at="", schema="v4.0", chunks=None, stages=())) == {}


@given(st.lists(st.floats(0, 1e10), min_size=1, max_size=200))
def test_a_thinned_curve_keeps_its_peak(used):
    times, kept = thinned(np.arange(len(used), dtype=np.float64), np.array(used), 48)
    assert len(times) == len(kept) <= 48
    assert kept.max() == max(used)


def test_a_list_added_to_the_table_is_in_the_report_without_another_edit(whole, monkeypatch):
    """BM25 was added by hand and missed in eight places; the table of lists is the only one now."""
    added = stages.RankedListKind("titles", "Titles alone", "fusion", first_stage=True)
    monkeypatch.setattr(stages, "LISTS", (*stages.LISTS, added))
    candidates = whole["candidates"].with_columns(titles_score=pl.Series([1.0, 2.0, 3.0]))
    quality = {**whole["quality"], "titles": {"nDCG@10": 0.3333}}
    facts = read_facts(whole["bundle"], whole["journal"], candidates, quality)
    assert facts.scores["titles"].tolist() == [1.0, 2.0, 3.0]
    assert facts.quality["titles"] == {"nDCG@10": 0.3333}
    page = page_of(facts)
    assert "0.3333" in page
    headings = [text for tag, text in Outline(page).texts if tag == "h3"]
    assert headings[headings.index("Dense") :][:6] == ["Dense", "Sparse", "BM25", "Fused", "Reranked", "Titles alone"]
    assert "Titles alone: 1 to 3" in small_pictures(facts)["scores"].words


def test_the_page_is_part_of_the_package():
    """Packages ship every file below ``ensemble_assets``; the template must lie there."""
    assert (importlib.resources.files("ensemble_assets.report") / "page.html.j2").is_file()


def test_names_cannot_become_markup(whole):
    hostile = "<script>alert(1)</script>"
    facts = read_facts(**whole)
    memory = tuple(dataclasses.replace(curve, device=hostile) for curve in facts.memory)
    toggles = ((hostile, hostile, hostile, hostile),)
    page = page_of(dataclasses.replace(facts, collection=hostile, memory=memory, toggles=toggles))
    assert "<script" not in page
    assert html.escape(hostile) in page


@pytest.mark.parametrize("times", [(36.4, 16.1, 32.6), (36.4, 1.0, 0.5), (0.1, 50.0, 60.0)])
def test_the_names_of_limits_stay_inside_the_small_picture(times):
    """A character of these labels is at most 6.5 pixels wide."""
    rows = [Bar(str(number), sum(times[:number]), length) for number, length in enumerate(times)]
    drawn = bars("Seconds", rows, [Limit("the limit of 10 %", 1.1 * times[0])], "s", SMALL_WIDTH)
    ((x, anchor),) = re.findall(r'<text class="small halo" x="([0-9.]+)" y="[0-9.]+"( text-anchor="end")?>', drawn.body)
    length = 6.5 * len("the limit of 10 %")
    assert float(x) - length >= 0 if anchor else float(x) + length <= SMALL_WIDTH
