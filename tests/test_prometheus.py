"""docs/observability.md in Prometheus: its example is scraped, its names are the exporter's, its alerts are tried."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from backends import NO_PROMTOOL, find_promtool, required
from pages import DOCS, blocks, read
from processes import PATIENCE, steady_port
from servers import environment, wait_for

from fastapi_otpless_session.emulator import Emulator, serve

pytestmark = pytest.mark.varied

PAGE = read(DOCS / "observability.md")
RULES = DOCS / "alerts.yml"
MADE_UP = Path(__file__).parent / "alerts_test.yml"
EVERY_INSTRUMENT = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest

from fastapi_otpless_session import telemetry

metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
for instrument in list(vars(telemetry).values()):
    if isinstance(instrument, metrics.Counter):
        instrument.add(1)
    elif isinstance(instrument, metrics.Histogram):
        instrument.record(0.2)
telemetry.count_served()
telemetry.revocations_waiting.set(1)
print(generate_latest().decode())
"""


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def names_in(scraped: str) -> set[str]:
    """Return the names of the time series in what an exporter gave."""
    return {name for name in re.findall(r"^(\w+)", scraped, re.MULTILINE) if name.startswith("otpless")}


@pytest.fixture(scope="module")
def exported() -> str:
    """What the exporter has of every instrument."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", EVERY_INSTRUMENT], check=True, capture_output=True, text=True, timeout=PATIENCE
    ).stdout


class TestNames:
    def test_the_names_in_the_page_are_the_exporters(self, exported: str) -> None:
        [table] = [table for table in PAGE.tables if "in Prometheus" in table.head]
        named = {row[1].strip("`") for row in table.rows}
        histogram = r"(_seconds)_(bucket|sum|count)$"
        assert {re.sub(histogram, r"\1", name) for name in names_in(exported) if not name.endswith("_created")} == named

    def test_durations_are_in_buckets_of_seconds(self, exported: str) -> None:
        bounds = re.findall(r'upstream_duration_seconds_bucket\{.*?le="([\d.]+)"', exported)
        assert [float(bound) for bound in bounds] == [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]

    def test_the_alerts_ask_for_nothing_else(self, exported: str) -> None:
        asked = {name for rule in alerts() for name in re.findall(r"otpless_\w+", rule["expr"])}
        assert asked
        assert asked <= names_in(exported)

    def test_the_alerts_ask_for_values_that_there_are(self) -> None:
        [table] = [table for table in PAGE.tables if "in Prometheus" in table.head]
        known = {value for row in table.rows for value in re.findall(r"`(\w[\w-]*)`", row[3])}
        asked = [
            (rule["alert"], {label, *values.split("|")})
            for rule in alerts()
            for label, values in re.findall(r'(\w+)!?=~?"([^"]*)"', rule["expr"])
        ]
        assert len(asked) > 1
        assert [name for name, values in asked if not values <= known] == []


class TestAlerts:
    def test_the_page_has_them_all(self) -> None:
        [table] = [table for table in PAGE.tables if table.head[0] == "alert"]
        assert [row[0].strip("`") for row in table.rows] == [rule["alert"] for rule in alerts()]

    def test_each_is_tried_where_it_fires_and_where_it_does_not(self) -> None:
        tried = [each for test in yaml.safe_load(MADE_UP.read_text())["tests"] for each in test["alert_rule_test"]]
        names = {rule["alert"] for rule in alerts()}
        assert {each["alertname"] for each in tried if each.get("exp_alerts")} == names
        assert {each["alertname"] for each in tried if not each.get("exp_alerts")} == names

    def test_promtool_finds_nothing_wrong(self) -> None:
        _promtool("check", "rules", str(RULES))

    def test_they_fire_as_they_should_on_made_up_series(self) -> None:
        _promtool("test", "rules", str(MADE_UP))

    def test_a_wrong_threshold_would_be_noticed(self, tmp_path: Path) -> None:
        promtool = required(find_promtool(), NO_PROMTOOL)
        (tmp_path / "docs").mkdir()
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "made_up.yml").write_text(MADE_UP.read_text())
        (tmp_path / "docs" / "alerts.yml").write_text(RULES.read_text().replace("[10m])) > 5", "[10m])) > 50"))
        ran = subprocess.run(  # noqa: S603
            [promtool, "test", "rules", "tests/made_up.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode != 0
        assert "OtplessTokensReused" in ran.stdout + ran.stderr


def _promtool(*arguments: str) -> None:
    promtool = required(find_promtool(), NO_PROMTOOL)
    ran = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
    assert ran.returncode == 0, ran.stdout + ran.stderr


class TestExample:
    @pytest.fixture
    def emulator(self) -> Iterator[tuple[Emulator, str]]:
        emulator = Emulator()
        with serve(emulator) as url:
            yield emulator, url

    @pytest.fixture
    def shop(self, emulator: tuple[Emulator, str], tmp_path: Path) -> Iterator[str]:
        """The page's main.py, served as it stands."""
        [block] = [block for block in blocks("python") if block.page == PAGE.name and block.section == "in-prometheus"]
        (tmp_path / "main.py").write_text(block.text, encoding="utf-8")
        port, log = steady_port(), tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)],
                cwd=tmp_path,
                env={**os.environ, **environment(emulator[1], tmp_path / "sessions.db")},
                stdout=output,
                stderr=output,
            )
            try:
                wait_for(1, log, process)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)

    def test_a_scrape_shows_what_people_did(self, emulator: tuple[Emulator, str], shop: str) -> None:
        user = emulator[0].sign_in()
        token = user["sessionInfo"]["sessionToken"]
        with httpx.Client(base_url=shop, headers={"X-Session-Token": token}) as client:
            assert client.post("/auth/login?channel=header", json=user).status_code == 200
            for _ in range(3):
                assert client.get("/orders").status_code == 200
            assert client.post("/auth/logout").status_code == 204
            scraped = client.get("/metrics", follow_redirects=True).text
        values = _samples(scraped)
        assert values['otpless_session_sign_ins_total{outcome="signed_in"}'] == 1
        assert values['otpless_session_resolutions_total{outcome="session",source="memory"}'] >= 2
        assert values['otpless_session_sign_outs_total{outcome="signed_out"}'] == 1
        assert values['otpless_upstream_duration_seconds_count{call="revoke-session",outcome="answer"}'] == 1
        assert values["otpless_upstream_breakers_open{}"] == 0
        assert token.rpartition(".")[2] not in scraped


def _samples(scraped: str) -> dict[str, float]:
    """Return the samples by name and labels, but for those that name the instrumentation."""
    found = {}
    for name, labels, value in re.findall(r"^(otpless\w+)(\{.*\})? (\S+)$", scraped, re.MULTILINE):
        kept = [label for label in re.findall(r'\w+="[^"]*"', labels) if not label.startswith("otel_scope_")]
        found[f"{name}{{{','.join(sorted(kept))}}}"] = float(value)
    return found
