"""The Prometheus text is valid, whole, and taken by the real tools where they are installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.metrics import METRICS, Measurement, MetricValues, full_name
from ensemble_assets.telemetry.prometheus import registry, textfile_path, write_textfile
from ensemble_assets_tests.telemetry.full_run import report_everything, telemetry
from ensemble_assets_tests.telemetry.receivers import http_receiver


def _needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install prometheus prometheus-pushgateway)")
    return found


def _full_text(folder: Path) -> str:
    report_everything(telemetry(TelemetryOptions(textfile_folder=folder)))
    return textfile_path(folder, "docling").read_text()


def test_every_metric_is_in_the_text_with_its_help_type_and_labels(tmp_path):
    families = {family.name: family for family in text_string_to_metric_families(_full_text(tmp_path))}
    for spec in METRICS.values():
        family = families[full_name("rag", spec.name).removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.meaning)
        assert {frozenset(s.labels) - {"le"} for s in family.samples} == {frozenset(("collection", *spec.labels))}
    assert len(families) == len(METRICS)


def test_histograms_are_cumulative_and_end_with_their_count():
    values = MetricValues()
    values.add(Measurement("dense_latency_seconds", (("collection", "a"),), value) for value in (0.05, 0.06, 1e6))
    (family,) = text_string_to_metric_families(generate_latest(registry(values, "rag")).decode())
    samples = {(s.name.removeprefix("rag_dense_latency_seconds"), s.labels.get("le")): s.value for s in family.samples}
    assert samples["_bucket", "0.05"] == 1
    assert samples["_bucket", "0.1"] == 2
    assert samples["_bucket", "10800.0"] == 2
    assert samples["_bucket", "+Inf"] == samples["_count", None] == 3
    assert samples["_sum", None] == pytest.approx(1e6 + 0.11)


def test_the_namespace_and_the_switch_are_obeyed(tmp_path):
    with telemetry(TelemetryOptions(textfile_folder=tmp_path, namespace="team_a")).stage("fusion", items=1):
        pass
    assert "team_a_stage_items_total" in textfile_path(tmp_path, "docling").read_text()
    off = tmp_path / "off"
    with telemetry(TelemetryOptions(textfile_folder=off, metrics_enabled=False)).stage("fusion", items=1):
        pass
    assert not off.exists()


def test_a_reader_sees_the_old_text_or_the_new_one_never_a_part(tmp_path):
    small, large = MetricValues(), MetricValues()
    small.add([Measurement("stage_items_total", (("collection", "a"), ("stage", "dense")), 1)])
    large.add(Measurement("gpu_peak_bytes", (("collection", "a"), ("device", f"cuda:{i}")), i) for i in range(100))
    whole = {generate_latest(registry(values, "rag")).decode() for values in (small, large)}
    path = write_textfile(small, "rag", tmp_path, "a")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            write_textfile(large, "rag", tmp_path, "a")
            write_textfile(small, "rag", tmp_path, "a")

    writer = threading.Thread(target=write)
    writer.start()
    seen = {path.read_text() for _ in range(300)}
    stop.set()
    writer.join()
    assert seen <= whole
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "no temporary file is left"


def test_a_run_is_pushed_once_when_it_is_through(tmp_path):
    with http_receiver() as received:
        run = telemetry(TelemetryOptions(pushgateway=received.endpoint))
        report_everything(run)
    assert received.paths == ["PUT /metrics/job/ensemble_assets/collection/docling"]
    assert b'rag_stage_items_total{collection="docling",stage="export"} 3.0' in received.bodies[0]


def test_a_failed_stage_is_pushed_too():
    with http_receiver() as received:
        run = telemetry(TelemetryOptions(pushgateway=received.endpoint))
        with pytest.raises(RuntimeError), run.stage("dense"):
            raise RuntimeError
    assert b'rag_stage_failures_total{collection="docling",stage="dense"} 1.0' in received.bodies[0]


@pytest.mark.parametrize("status", [400, 500])
def test_a_gateway_that_refuses_is_an_event_not_a_failure(status):
    with http_receiver() as received:
        received.status = status
        with telemetry(TelemetryOptions(pushgateway=received.endpoint)).stage("export") as stage:
            pass
    (event,) = stage.record().events
    assert (event.name, event.facts) == (
        "telemetry.export_failed", {"exporter": "pushgateway", "error_type": "HTTPError"}
    )  # fmt: skip


def test_a_gateway_that_never_answers_costs_the_time_out_only():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        gateway = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with telemetry(TelemetryOptions(pushgateway=gateway, timeout_seconds=0.2)).stage("export") as stage:
            pass
    assert [event.facts["error_type"] for event in stage.record().events] == ["TimeoutError"]


@pytest.mark.parametrize("url", ["localhost:9091", "ftp://host", "http://"])
def test_a_gateway_that_is_no_url_is_refused_before_the_run(url):
    with pytest.raises(SettingsError, match="http://localhost:9091"):
        TelemetryOptions(pushgateway=url)


def test_promtool_finds_nothing_to_complain_about(tmp_path):
    done = subprocess.run(
        [_needs("promtool"), "check", "metrics"],
        input=_full_text(tmp_path),
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_real_prometheus_scrapes_the_text_file_and_a_real_push(tmp_path):
    """Prometheus scrapes our text file through node-exporter, and a real Pushgateway that a run pushed to."""
    prometheus, gateway = _needs("prometheus"), _needs("prometheus-pushgateway")
    text = _full_text(tmp_path)
    (tmp_path / "metrics").write_text(text)
    ports = [_free_port() for _ in range(3)]
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "scrape_configs": [
                    {"job_name": name, "honor_labels": True, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                    for name, port in (("textfile", ports[0]), ("pushed", ports[1]))
                ],
            }
        )
    )
    serve = _serving(tmp_path, ports[0])
    push_args = [gateway, f"--web.listen-address=127.0.0.1:{ports[1]}"]
    scrape = [
        prometheus, f"--config.file={config}", f"--web.listen-address=127.0.0.1:{ports[2]}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
    ]  # fmt: skip
    with _running(serve, ports[0], "/metrics"), _running(push_args, ports[1], "/-/ready"):
        report_everything(telemetry(TelemetryOptions(pushgateway=f"http://127.0.0.1:{ports[1]}")))
        with _running(scrape, ports[2], "/-/ready"):
            for job in ("textfile", "ensemble_assets"):
                query = f'{{job="{job}",collection="docling"}}'
                found = _until(lambda query=query: _query(ports[2], query))
                names = {series["metric"]["__name__"] for series in found}
                assert {full_name("rag", n) for n, s in METRICS.items() if s.kind != "histogram"} <= names
                assert {full_name("rag", n) + "_count" for n, s in METRICS.items() if s.kind == "histogram"} <= names


def _serving(folder: Path, port: int) -> list[str]:
    node_exporter = shutil.which("prometheus-node-exporter")
    if node_exporter is None:  # the file itself is then what is scraped
        return [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    return [
        node_exporter, f"--web.listen-address=127.0.0.1:{port}", f"--collector.textfile.directory={folder}",
        "--collector.disable-defaults", "--collector.textfile",
    ]  # fmt: skip


def _query(port: int, query: str) -> list[dict]:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]["result"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], port: int, ready: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: process.poll() is None and _answers(port, ready))
        yield
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _until(found, seconds: float = 60.0):
    """What ``found`` returns once it is true; a time-out here means that something hangs, not that it is slow."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.2)
    raise AssertionError("nothing came")
