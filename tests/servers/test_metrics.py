"""Prometheus's metrics of a real gunicorn with several workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import create_environ, run_wsgi_app

from scalezero_wsgi import ScaleZeroMiddleware
from scalezero_wsgi.integrations.opentelemetry import OpenTelemetryTracing
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.providers import ProcessProvider
from tests.engines.engine import engine
from tests.servers.harness import Server, gunicorn
from tests.support.clock import Clock
from tests.support.fakes import FakeEngine
from tests.support.waiting import until
from tests.unit.integrations.test_grafana import TARGETS

pytestmark = pytest.mark.server

CONF = """
from scalezero_wsgi.integrations.gunicorn import *
from scalezero_wsgi.integrations.prometheus import child_exit
"""


def outcomes(server: Server) -> Counter[str]:
    """How many requests became what, in all workers together."""
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "scalezero_requests_total":
                counted[sample.labels["outcome"]] += int(sample.value)
    return counted


def test_the_metrics_of_all_workers_add_up_also_after_kills(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "metrics").mkdir()
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(CONF)
    options = ["-c", str(conf), "--workers", "4", "--threads", "4"]
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "STATE_DIR": str(tmp_path / "state")}
    provider = ProcessProvider({}, state_dir=tmp_path / "state")
    request.addfinalizer(lambda: provider.stop_all(5))
    with gunicorn("tests.servers.metrics_site:application", tmp_path / "log", *options, env=env) as server:
        sent = 0
        for _ in range(3):
            with ThreadPoolExecutor(8) as pool:
                codes = list(pool.map(lambda _: server.get("/function/hello").status_code, range(100)))
            assert codes == [200] * 100, server.log
            sent += len(codes)
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda victim=victim: len(server.workers()) == 4 and victim not in server.workers())  # type: ignore[misc]
        assert server.get("/function/nobody").status_code == 404
        counted = outcomes(server)
        served = counted["warm"] + counted["stale"] + counted["cold"] + counted["replayed"]
        assert (served, counted["missing"]) == (sent, 1), counted
        assert counted["cold"] >= 1
        assert "Traceback" not in server.log


@pytest.mark.engine
def test_promtool_finds_nothing_to_say(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    promtool = engine("SCALEZERO_TEST_PROMTOOL", "promtool")
    (tmp_path / "metrics").mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "STATE_DIR": str(tmp_path / "state")}
    provider = ProcessProvider({}, state_dir=tmp_path / "state")
    request.addfinalizer(lambda: provider.stop_all(5))
    options = ["--workers", "2", "--threads", "4"]
    with gunicorn("tests.servers.metrics_site:application", tmp_path / "log", *options, env=env) as server:
        for path in ("/function/hello", "/function/hello", "/function/nobody"):
            server.get(path)
        exposed = server.get("/metrics").text
    assert "scalezero_cold_start_seconds_bucket" in exposed
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=exposed, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.engine
def test_the_dashboards_expressions_are_prometheuss(tmp_path: Path) -> None:
    """As rules: promtool reads no expression by itself."""
    promtool = engine("SCALEZERO_TEST_PROMTOOL", "promtool")
    variables = {"$__rate_interval": "5m", "$function": "hello"}
    rules = []
    for number, target in enumerate(TARGETS):
        expression = target["expr"]
        for name, value in variables.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"rule_{number}", "expr": expression})
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [str(promtool), "check", "rules", str(tmp_path / "rules.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


@pytest.mark.soak
def test_a_hundred_thousand_invented_names_make_no_time_series() -> None:
    """In this process: each is a query of a provider, which here answers at once."""
    metrics, tracing = PrometheusMetrics(), OpenTelemetryTracing()
    provider = FakeEngine(Clock(), known=set())
    middleware = ScaleZeroMiddleware(lambda environ, start_response: [], provider, hooks=[metrics, tracing])
    application = metrics.wrap(tracing.wrap(middleware))

    def series() -> int:
        families = metrics.registry.collect()
        return sum(len(family.samples) for family in families)

    environ = create_environ()
    run_wsgi_app(application, {**environ, "PATH_INFO": "/function/nobody"})
    before = series()
    for number in range(100_000):
        asked = {**environ, "PATH_INFO": f"/function/invented-{number}"}
        assert run_wsgi_app(application, asked)[1] == "404 NOT FOUND"
    assert series() == before
    assert metrics.registry.get_sample_value(
        "scalezero_requests_total", {"function": "", "outcome": "missing"}
    ) == pytest.approx(100_001)
    assert len(tracing._told) == 0
