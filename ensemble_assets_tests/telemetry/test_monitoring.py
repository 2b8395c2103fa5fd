"""Alert rules, dashboard and runbook name only what exists, and the rules fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, REASONS
from ensemble_assets.telemetry.metrics import METRICS, full_name

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RUNBOOK = (FOLDER / "runbook.md").read_text()

_SERIES = {
    full_name("rag", spec.name) + suffix: {"collection", *spec.labels} | ({"le"} if suffix == "_bucket" else set())
    for spec in METRICS.values()
    for suffix in (("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",))
}


def _metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\brag_[a-z0-9_]+", text))


def _labels_in(query: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", query)
    selected = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query)
    return {label.strip() for group in grouped for label in group.split(",")} | set(selected)


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_every_query_names_series_and_labels_that_exist(query):
    named = _metrics_in(query)
    assert named
    assert named <= _SERIES.keys()
    assert _labels_in(query) <= set.intersection(*(_SERIES[name] for name in named))


def test_the_dashboard_shows_every_metric():
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in QUERIES for name in _metrics_in(query)}
    assert shown == {full_name("rag", name) for name in METRICS}


def test_legends_use_labels_of_their_query():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert used <= set.union(*(_SERIES[name] for name in _metrics_in(target["expr"]))), panel["title"]


def test_dashboard_panels_have_ids_titles_and_places_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_the_runbook_explains_every_alert_and_only_those():
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/monitoring/runbook.md#{rule['alert'].lower()}"
    for section in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]:
        assert all(f"**{part}.**" in section for part in ("Symptom", "Look at", "Do")), section.split("\n")[0]


def test_the_runbook_names_only_what_exists():
    code = re.findall(r"`([^`]+)`", RUNBOOK)
    plain_names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in _SERIES}
    assert {word for word in code if re.fullmatch(r"rag_\w+", word)} <= plain_names
    assert {
        word for word in code if re.fullmatch(r"(mitigation|worker|lease|telemetry|fallback)\.[a-z_]+", word)
    } <= EVENTS.keys()
    reasons = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", RUNBOOK, re.MULTILINE)
    assert {word for cell in reasons for word in re.findall(r"`(\w+)`", cell)} <= set(REASONS)
    assert {word for word in code if word.endswith("_bytes")} <= FIELDS.keys() | plain_names


def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


def test_promtool_accepts_the_rules_and_every_query_of_the_dashboard(tmp_path):
    recorded = [{"record": f"query:{n}", "expr": query.replace("$collection", ".*")} for n, query in enumerate(QUERIES)]
    queries = tmp_path / "queries.yaml"
    queries.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    command = [_promtool(), "check", "rules", str(FOLDER / "alerts.yaml"), str(queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


CASES = {
    "EnsembleGpuPeakNearCeiling": (
        'rag_gpu_peak_bytes{collection="a", stage="dense", device="cuda:0"}', [11.5e9, 11.9e9], [11.4e9, 12e9]
    ),
    "EnsembleGpuPeakOverCeiling": (
        'rag_gpu_peak_bytes{collection="a", stage="dense", device="cuda:0"}', [12e9, 15e9], [11.99e9]
    ),
    "EnsembleRerankFallback": (
        'rag_rerank_fallback_total{collection="a", reason="model_unavailable", source="fused_order"}', [1, 300], [0]
    ),
    "EnsembleSparseCoverageLow": ('rag_sparse_coverage_ratio{collection="a"}', [0, 0.79], [0.8, 1]),
    "EnsembleLatencyBudgetExceeded": ('rag_latency_budget_ratio{collection="a", against="sla"}', [1.11, 2], [0.6, 1.1]),
    "EnsembleStageFailed": ('rag_stage_failures_total{collection="a", stage="export"}', [1], [0]),
    "EnsembleRunOverdue": ('rag_last_run_timestamp_seconds{collection="a", stage="export"}', [0, 40_000], [50_000]),
    "EnsembleTelemetryDropsValues": ('rag_dropped_attributes_total{collection="a", stage="dense"}', [1], [0]),
}  # fmt: skip
"""Per alert: a series, values at which it fires and values at which it does not."""

_EVALUATED_AT = "48h"


def _case(alert: str, series: str, value: float, fires: bool) -> dict:
    limit = 'rag_latency_budget_limit_ratio{collection="a", against="sla"}'
    count = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{number}+0x3000"} for name, number in ((series, value), (limit, 1.1))
        ],
        "promql_expr_test": [
            {"expr": count, "eval_time": _EVALUATED_AT, "exp_samples": [{"labels": "{}", "value": int(fires)}]}
        ],
    }


def _tested(cases: list[dict], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "cases.yaml"
    path.write_text(
        json.dumps({"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "1h", "tests": cases})
    )
    return subprocess.run([_promtool(), "test", "rules", str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_an_alert_fires_at_its_limit_and_not_before(alert, tmp_path):
    series, firing, quiet = CASES[alert]
    right = [_case(alert, series, value, True) for value in firing] + [_case(alert, series, v, False) for v in quiet]
    done = _tested(right, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _tested([_case(alert, series, firing[0], False)], tmp_path).returncode != 0, "the test itself can fail"


def test_a_cpu_host_has_no_gpu_alert(tmp_path):
    series = 'rag_gpu_peak_bytes{collection="a", stage="dense", device="cpu"}'
    done = _tested([_case("EnsembleGpuPeakOverCeiling", series, 5e10, False)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
