"""The dashboard asks for metrics that exist, by labels that they have, and for all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from webtest import TestApp

import scalezero_wsgi
from scalezero_wsgi import Function, ProviderError, ScaleZeroMiddleware
from scalezero_wsgi.events import DrainCancelled, Event, ProviderFailed, StartFailed
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from tests.support.fakes import UP, ZERO, ScriptedProvider

FILE = Path(scalezero_wsgi.__file__).parent / "integrations" / "grafana.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\bscalezero_\w+")


def labels_of_samples() -> dict[str, set[str]]:
    """The labels of each sample: a request's that is held and is then in the app, and some events'."""
    metrics, texts = PrometheusMetrics(), []

    def look(event: Event | None = None) -> None:
        texts.append(TestApp(metrics.exposition(middleware)).get("/").text)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        look()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    provider = metrics.count_calls(ScriptedProvider(ZERO, UP))
    middleware = ScaleZeroMiddleware(app, provider, hooks=[metrics, look])
    TestApp(metrics.wrap(middleware)).get("/function/hello")
    hello = Function("hello")
    for event in (
        StartFailed(hello, "", 1.0),
        DrainCancelled(hello, ""),
        ProviderFailed(hello, ProviderError("")),
    ):
        metrics(event)
    look()
    families = [family for text in texts for family in text_string_to_metric_families(text)]
    return {
        sample.name: set(sample.labels)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_each_panel_asks_for_what_there_is_and_together_for_all() -> None:
    labels = labels_of_samples()
    asked: set[str] = set()
    for target in TARGETS:
        expression = target["expr"]
        (metric,) = METRIC.findall(expression)
        assert metric in labels, expression
        asked.add(metric)
        named = set(re.findall(r"(\w+)=~", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            named |= {label.strip() for label in group.split(",")}
        assert named <= labels[metric], expression
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= named, expression
    parts = re.compile(r"_(bucket|count|sum)$")
    assert {parts.sub("", name) for name in labels} == {parts.sub("", name) for name in asked}


def test_the_variables_are_those_that_the_expressions_use() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text(encoding="utf-8")))
    assert used - {"__rate_interval", "__all"} == variables
    (functions,) = (each for each in DASHBOARD["templating"]["list"] if each["name"] == "function")
    assert functions["query"]["query"] == "label_values(scalezero_requests_total, function)"


def test_the_panels_lie_beside_each_other() -> None:
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
