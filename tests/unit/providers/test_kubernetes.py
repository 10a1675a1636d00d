"""KubernetesProvider without a cluster: its settings, and answers that no cluster gives on demand.

``Fake`` is a small HTTP server that speaks as much of the API server's language as the provider does; a whole
cluster is in ``tests/engines``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ReplicaStatus, SettingError
from scalezero_wsgi.model import MissingExtra
from scalezero_wsgi.providers import KubernetesProvider, make_provider
from scalezero_wsgi.providers.base import ListingProvider, WatchingProvider
from scalezero_wsgi.providers.kubernetes import api as kubernetes_api
from scalezero_wsgi.providers.kubernetes import objects
from scalezero_wsgi.providers.kubernetes import provider as kubernetes
from scalezero_wsgi.testing import HOSTILE_NAMES

NOW = 1_700_000_000.0
OBJECTS = "/apis/apps/v1/namespaces/fn/deployments"
CORE = "/api/v1/namespaces/fn"
SCALE = f"{OBJECTS}/hello/scale"
Event = dict[str, Any]


def status_object(code: int, reason: str = "", name: str = "", message: str = "no") -> dict[str, Any]:
    details = {"name": name} if name else {}
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


@dataclass
class Fake:
    """Answers by a script: per path, and for a watch one script after the other."""

    answers: dict[str, Any] = field(default_factory=dict)
    watches: dict[str, list[list[Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    port: int = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                fake.asked.append((self.command, parts.path, query))
                fake.tokens.append(self.headers.get("Authorization", ""))
                if "watch" in query:
                    scripts = fake.watches.get(parts.path) or [[]]
                    with contextlib.suppress(ConnectionError):  # it need not be heard to the end
                        self.watch(scripts.pop(0) if len(scripts) > 1 else scripts[0])
                else:
                    self.answer(fake.answers.get(parts.path))

            def do_PATCH(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.asked.append((self.command, self.path, {"type": self.headers["Content-Type"]}))
                fake.sent.append(json.loads(body))
                answer = fake.answers.get("PATCH")
                self.answer(answer.pop(0) if isinstance(answer, list) else answer or {})

            def answer(self, answer: Any) -> None:
                if callable(answer):
                    answer = answer()
                if answer is None:
                    answer = status_object(404, "NotFound", self.path.split("?")[0].split("/")[-1])
                if isinstance(answer, list):
                    with contextlib.suppress(ConnectionError):
                        self.drip(answer)
                    return
                code = answer.get("code", 200) if isinstance(answer, dict) else 200
                if isinstance(answer, tuple):
                    code, answer = answer
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response_only(code)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Date", formatdate(NOW, usegmt=True))
                with contextlib.suppress(ConnectionError):  # it need not be waited for
                    self.end_headers()
                    self.wfile.write(body)

            def drip(self, pieces: list[bytes]) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(b"".join(pieces))))
                self.end_headers()
                for piece in pieces:
                    time.sleep(0.1)
                    self.wfile.write(piece)

            def watch(self, script: list[Any]) -> None:
                if script and isinstance(script[0], dict) and script[0].get("kind") == "Status":
                    return self.answer(script[0])
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for step in script:
                    if isinstance(step, (int, float)):
                        time.sleep(step)
                        continue
                    line = step if isinstance(step, bytes) else json.dumps(step).encode() + b"\n"
                    if line == b"break":
                        self.close_connection = True
                        return None
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.write(b"0\r\n\r\n")
                return None

        return Handler

    # What a cluster would have

    def deployment(self, version: int = 5, **parts: Any) -> dict[str, Any]:
        self.put(thing := deployment(version, **parts))
        return thing

    def put(self, *things: dict[str, Any], path: str = OBJECTS) -> None:
        self.answers[path] = {"metadata": {"resourceVersion": "9"}, "items": list(things)}

    def endpoints(self, *pods: str, version: str = "7") -> dict[str, Any]:
        found = endpoints(*pods, version=version)
        self.put(found, path=f"{CORE}/endpoints")
        return found

    def pods(self, *pods: dict[str, Any]) -> None:
        self.answers[f"{CORE}/pods"] = {"items": list(pods)}

    def paths(self) -> list[str]:
        return [path.removeprefix(CORE).removeprefix(OBJECTS) or "object" for _, path, _ in self.asked]


def deployment(
    version: int = 5, *, replicas: int = 1, available: int | None = None, generation: int = 1, **parts: Any
) -> dict[str, Any]:
    status = {} if available is None else {"availableReplicas": available}
    meta = {"name": "hello", "uid": "u", "generation": generation, "resourceVersion": str(version)}
    return {
        "metadata": meta | parts.get("metadata", {}),
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": 1, **status, **parts.get("status", {})},
    }


def endpoints(*pods: str, version: str = "7") -> dict[str, Any]:
    addresses = [
        {"ip": f"10.0.0.{number}", "targetRef": {"kind": "Pod", "name": pod}}
        for number, pod in enumerate(pods, 1)
    ]
    subsets = [{"addresses": addresses, "ports": [{"port": 8080}]}] if pods else None
    return {"metadata": {"name": "hello", "resourceVersion": version}, "subsets": subsets}


def pod(name: str = "p", **status: Any) -> dict[str, Any]:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name}, "status": ready | status}


def going(name: str) -> dict[str, Any]:
    return pod(name) | {"metadata": {"name": name, "deletionTimestamp": "2023-11-14T22:13:20Z"}}


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return pod(conditions=[], containerStatuses=[{"state": {"waiting": {"reason": reason}}, **more}])


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    server = ThreadingHTTPServer(("127.0.0.1", 0), fake.handler())
    server.daemon_threads = True
    fake.port = server.server_port
    fake.answers[SCALE] = {"status": {"selector": "f=hello"}}
    fake.pods(pod("p"), pod("q"))
    fake.answers[f"{CORE}/services/hello"] = {"spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


NO_TLS = {"insecure-skip-tls-verify": True}  # for plain HTTP too a client would load all of the system's CAs


def kubeconfig(path: Path, server: str, user: Any = None) -> Path:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server, **NO_TLS}}],
        "users": [{"name": "u", "user": {"token": "secret-token"} if user is None else user}],
        "contexts": [
            {"name": "x", "context": {"cluster": "c", "user": "u"}},
            {"name": "y", "context": {"cluster": "z"}},
        ],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def make(fake: Fake, tmp_path: Path) -> Callable[..., KubernetesProvider]:
    def make(**keywords: Any) -> KubernetesProvider:
        file = kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{fake.port}")
        return KubernetesProvider(**{"namespace": "fn", "kubeconfig": file, "timeout": 10, **keywords})

    return make


@pytest.fixture
def kube(make: Callable[..., KubernetesProvider]) -> KubernetesProvider:
    return make(address="pod")


# Settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return kubeconfig(tmp_path / "config", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("keyword", "value", "says"),
    [
        ("namespace", "No", "at most 63"),
        ("namespace", None, "at most 63"),
        ("namespace", "a/b", "at most 63"),
        ("kind", "deployment", "Deployment"),
        ("kind", "v1/widgets", "group/version/plural"),
        ("kind", None, "group/version/plural"),
        ("service", "{nam}", "{name}"),
        ("service", "{", "{name}"),
        ("service", 5, "{name}"),
        ("address", "host", "'service' or 'pod'"),
        ("timeout", "soon", "not a duration"),
        ("timeout", 0, "more than 0"),
        ("pending_timeout", -1, "not a duration"),
        ("context", "z", "Context 'z' not found"),
        ("context", "y", "'z'"),
    ],
)
def test_a_wrong_keyword_is_named(config: Path, keyword: str, value: object, says: str) -> None:
    with pytest.raises(SettingError) as raised:
        KubernetesProvider(**{"kubeconfig": config, keyword: value})  # type: ignore[arg-type]
    assert keyword in str(raised.value)
    assert repr(value) in str(raised.value)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "a: [", "users: []", "[]", "token: secret-token: [", "clusters: 5\nusers: []\ncontexts: []"]
)
def test_a_kubeconfig_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="kubeconfig") as raised:
        KubernetesProvider(kubeconfig=path)
    assert str(path) in str(raised.value)
    assert "secret-token" not in str(raised.value)
    assert raised.value.__cause__ is None or "secret-token" not in str(raised.value.__cause__)
    with pytest.raises(SettingError, match="not found"):
        KubernetesProvider(kubeconfig=tmp_path / "none")


def test_a_context_without_its_user(tmp_path: Path, config: Path) -> None:
    text = config.read_text(encoding="utf-8").replace("user: u", "user: nobody")
    config.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="nobody"):
        KubernetesProvider(kubeconfig=config)


def test_where_the_configuration_comes_from(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", str(tmp_path / "account"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(SettingError, match=r"~/\.kube/config"):
        KubernetesProvider()
    monkeypatch.setenv("KUBECONFIG", str(config))
    KubernetesProvider()
    (tmp_path / "account").mkdir()
    for name in ("token", "namespace", "ca.crt"):
        (tmp_path / "account" / name).write_text("x", encoding="utf-8")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingError, match="KUBERNETES_SERVICE_HOST"):
        KubernetesProvider()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    KubernetesProvider()
    KubernetesProvider(context="x")  # of a kubeconfig, also in a pod
    with pytest.raises(ProviderError, match="cannot be asked"):  # the CA is none
        KubernetesProvider().get_replicas("hello", "")


def test_by_url(fake: Fake, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{fake.port}")
    fake.deployment(available=1)
    fake.endpoints("p")
    url = f"kubernetes://?namespace=fn&address=pod&kubeconfig={file}&timeout=10000ms&pending_timeout=1m"
    kube = make_provider(url)
    assert isinstance(kube, KubernetesProvider)
    assert kube.get_replicas("hello", "").endpoint == "http://10.0.0.1:8080"
    assert make_provider(f"{url}&service=").get_replicas("hello", "").endpoint is None
    sets = f"kubernetes://?kind=StatefulSet&kubeconfig={file}&service={{name}}-web&context=x"
    assert isinstance(make_provider(sets), KubernetesProvider)
    assert isinstance(kube, WatchingProvider)
    assert isinstance(kube, ListingProvider)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kubernetes://?replicas=1", "'replicas'.*namespace, kind"),
        ("kubernetes://?namespace=a&namespace=b", "given twice"),
        ("kubernetes://cluster?namespace=a", "'kubernetes://\\?namespace=fn'"),
        ("kubernetes:///path", "'kubernetes://"),
        ("kubernetes://?namespace=No", "namespace"),
    ],
)
def test_a_wrong_url_is_named(url: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        make_provider(url)


def test_without_the_library(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightkube.config.kubeconfig", None)
    with pytest.raises(MissingExtra, match=r"lightkube.*scalezero_wsgi\[kubernetes\]"):
        KubernetesProvider(kubeconfig=config)


def test_making_one_asks_nobody(fake: Fake, make: Callable[..., KubernetesProvider]) -> None:
    make()
    assert fake.asked == []


# One look


def test_hostile_names_are_not_asked_for(fake: Fake, kube: KubernetesProvider) -> None:
    for name in (*HOSTILE_NAMES, "A", "-a", "a-", "a..b", "a" * 254, "a,metadata.name=b"):
        for call in (
            lambda name=name: kube.get_replicas(name, ""),
            lambda name=name: kube.set_replicas(name, "", 1),
            lambda name=name: kube.get_replicas("hello", name or "."),
            lambda name=name: kube.wait_for_change(name, "", ReplicaStatus(0, 0), 0),
        ):
            with pytest.raises(FunctionNotFound):
                call()
    assert fake.asked == []


def test_at_zero_one_question_is_enough(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(replicas=0, available=2)  # the old ones, which go
    status = kube.get_replicas("hello", "")
    assert (status.replicas, status.available_replicas, status.endpoint) == (0, 0, None)
    assert fake.asked == [("GET", OBJECTS, {"fieldSelector": "metadata.name=hello"})]
    assert fake.tokens == ["Bearer secret-token"]


def test_warm_costs_two_questions_and_the_proof_is_remembered(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(available=2, replicas=2)
    fake.endpoints("p", "q")
    for _ in range(3):
        status = kube.get_replicas("hello", "fn")
        assert (status.available_replicas, status.endpoint) == (2, "http://10.0.0.1:8080")
    assert fake.paths() == ["object", "/endpoints", "/hello/scale", "/pods", *["object", "/endpoints"] * 2]
    assert ("GET", f"{CORE}/pods", {"labelSelector": "f=hello"}) in fake.asked
    fake.asked.clear()
    fake.endpoints("p", version="8")
    assert kube.get_replicas("hello", "fn").available_replicas == 1
    assert fake.paths() == ["object", "/endpoints", "/pods"]


def test_a_pod_that_goes_is_left_out(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(available=1)
    fake.endpoints("p")
    fake.pods(going("p"))
    assert kube.get_replicas("hello", "").available_replicas == 0
    fake.endpoints("p", "q")
    fake.pods(going("p"), pod("q"))
    status = kube.get_replicas("hello", "")
    assert (status.available_replicas, status.endpoint) == (1, "http://10.0.0.2:8080")


def test_an_object_that_speaks_of_an_older_wish_is_not_believed(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(available=1, generation=2)
    fake.endpoints("p")
    assert kube.get_replicas("hello", "").available_replicas == 0


def test_addresses_without_a_pod_count(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(available=1)
    outside = {
        "addresses": [{"ip": "fd00::1"}],
        "ports": [{"name": "a", "port": 1}, {"name": "http", "port": 2}],
    }
    fake.put({"metadata": {"resourceVersion": "1"}, "subsets": [outside]}, path=f"{CORE}/endpoints")
    assert kube.get_replicas("hello", "").endpoint == "http://[fd00::1]:2"


@pytest.mark.parametrize(
    ("spec", "endpoint"),
    [
        ({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}, "http://10.96.0.7:80"),
        ({"clusterIP": "None", "ports": [{"port": 8080}]}, "http://hello.fn.svc:8080"),
        ({"ports": None}, "http://hello.fn.svc"),
    ],
)
def test_the_endpoint_of_a_service(
    fake: Fake, make: Callable[..., KubernetesProvider], spec: dict[str, Any], endpoint: str
) -> None:
    fake.deployment(available=1)
    fake.endpoints("p")
    fake.answers[f"{CORE}/services/hello"] = {"spec": spec}
    assert make().get_replicas("hello", "").endpoint == endpoint


def test_without_services_the_pods_decide(fake: Fake, make: Callable[..., KubernetesProvider]) -> None:
    kube = make(service=None)
    fake.deployment(available=1)
    fake.pods(going("p"))
    assert kube.get_replicas("hello", "").available_replicas == 0
    fake.pods(pod("p"), going("q"))
    assert kube.get_replicas("hello", "").available_replicas == 1
    assert f"{CORE}/endpoints" not in [path for _, path, _ in fake.asked]


def test_without_a_selector_the_object_is_believed(
    fake: Fake, make: Callable[..., KubernetesProvider]
) -> None:
    fake.answers[SCALE] = {"status": {"selector": ""}}
    fake.deployment(available=1)
    assert make(service=None).get_replicas("hello", "").available_replicas == 1
    assert f"{CORE}/pods" not in [path for _, path, _ in fake.asked]


def test_a_custom_kind_is_counted_by_its_scale(fake: Fake, make: Callable[..., KubernetesProvider]) -> None:
    kube = make(kind="example.com/v1/widgets", service=None)
    path = "/apis/example.com/v1/namespaces/fn/widgets"
    fake.put({"metadata": {"uid": "w"}}, path=path)
    fake.answers[f"{path}/gear/scale"] = {"spec": {"replicas": 3}, "status": {"replicas": 2}}
    status = kube.get_replicas("gear", "")
    assert (status.replicas, status.available_replicas) == (3, 2)
    fake.answers[f"{path}/gear/scale"] = {"spec": {"replicas": None}, "status": {"replicas": 2}}
    assert kube.get_replicas("gear", "").available_replicas == 0
    del fake.answers[f"{path}/gear/scale"]
    fake.answers[f"{path}/gear/scale"] = status_object(404, "NotFound", "gear")
    with pytest.raises(FunctionNotFound):
        kube.get_replicas("gear", "")
    fake.answers[f"{path}/gear/scale"] = status_object(404, "NotFound", message="no such resource")
    with pytest.raises(ProviderError, match="404 no such resource"):
        kube.get_replicas("gear", "")


def test_not_found_is_said_by_the_server_only(fake: Fake, kube: KubernetesProvider) -> None:
    fake.put()
    with pytest.raises(FunctionNotFound):
        kube.get_replicas("hello", "")
    fake.answers["PATCH"] = status_object(404, "NotFound", "hello")
    with pytest.raises(FunctionNotFound):
        kube.set_replicas("hello", "", 1)
    fake.answers["PATCH"] = status_object(404, "NotFound", message="no such resource")
    with pytest.raises(ProviderError, match="404 no such resource"):
        kube.set_replicas("hello", "", 1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "no JSON object"),
        (b"[]", "no JSON object"),
        ({}, "no list"),
        ({"items": 5, "metadata": {"resourceVersion": "1"}}, "no list"),
        ({"items": []}, "no list"),
        (status_object(500, message="boom"), "500 boom"),
        (status_object(403, message='User "x" cannot list resource'), "403 .*cannot list"),
        (status_object(429), "429"),
    ],
)
def test_odd_answers_are_errors(fake: Fake, kube: KubernetesProvider, answer: Any, says: str) -> None:
    fake.answers[OBJECTS] = answer
    with pytest.raises(ProviderError, match=says):
        kube.get_replicas("hello", "")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]"])
def test_a_refusal_without_a_status_object(fake: Fake, kube: KubernetesProvider, body: bytes) -> None:
    fake.answers[OBJECTS] = (502, body)
    with pytest.raises(ProviderError, match=r"refused GET .*: 502$"):
        kube.get_replicas("hello", "")


def test_missing_endpoints_and_impossible_services(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(available=1)
    fake.put(path=f"{CORE}/endpoints")
    with pytest.raises(ProviderError, match=r"no endpoints 'hello' in namespace 'fn'.*scalezero\.service"):
        kube.get_replicas("hello", "")
    fake.deployment(available=1, metadata={"annotations": {"scalezero.service": "../x"}})
    with pytest.raises(ProviderError, match="cannot be the name of a Service"):
        kube.get_replicas("hello", "")


def test_an_answer_that_drips_ends_in_time(fake: Fake, make: Callable[..., KubernetesProvider]) -> None:
    fake.answers[OBJECTS] = [b" "] * 50
    begun = time.monotonic()
    with pytest.raises(ProviderError, match="ReadTimeout"):
        make(timeout=0.3).get_replicas("hello", "")
    assert time.monotonic() - begun < 2


def test_an_answer_that_does_not_come_ends_in_time(
    fake: Fake, make: Callable[..., KubernetesProvider]
) -> None:
    fake.answers[OBJECTS] = lambda: time.sleep(1.5)
    begun = time.monotonic()
    with pytest.raises(ProviderError, match="Timeout"):
        make(timeout=0.2).get_replicas("hello", "")
    assert time.monotonic() - begun < 1.2


def test_a_token_never_gets_into_a_message(fake: Fake, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "c", f"http://127.0.0.1:{fake.port}", {"token": "secret\ntoken"})
    with pytest.raises(ProviderError, match="LocalProtocolError") as raised:
        KubernetesProvider(kubeconfig=file).get_replicas("hello", "")
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_kubeconfig_that_was_written_anew_counts_after_a_refusal(
    fake: Fake, tmp_path: Path, make: Callable[..., KubernetesProvider]
) -> None:
    kube = make()
    fake.answers[OBJECTS] = status_object(401, message="Unauthorized")
    with pytest.raises(ProviderError, match="401"):
        kube.get_replicas("hello", "")
    kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{fake.port}", {"token": "new"})
    fake.deployment(replicas=0)
    assert kube.get_replicas("hello", "").replicas == 0
    assert fake.tokens == ["Bearer secret-token", "Bearer new"]
    (tmp_path / "kubeconfig").unlink()
    assert kube.get_replicas("hello", "").replicas == 0, "the client is kept while it works"


def test_scaling_sends_a_merge_patch_and_tries_a_conflict_again(fake: Fake, kube: KubernetesProvider) -> None:
    conflict = status_object(409, "Conflict")
    fake.answers["PATCH"] = [conflict, conflict, {}]
    kube.set_replicas("hello", "", 3)
    assert fake.sent == [{"spec": {"replicas": 3}}] * 3
    assert fake.asked[0] == ("PATCH", SCALE, {"type": "application/merge-patch+json"})
    fake.answers["PATCH"] = [conflict] * 3
    with pytest.raises(ProviderError, match="409"):
        kube.set_replicas("hello", "", 3)


def test_the_list_is_read_to_its_end(fake: Fake, kube: KubernetesProvider) -> None:
    pages: list[Any] = [
        {"metadata": {"continue": "c1"}, "items": [{"metadata": {"name": "a"}}, {"metadata": {}}]},
        {"metadata": {}, "items": [{"metadata": {"name": "b"}}]},
    ]
    fake.answers[OBJECTS] = lambda: pages.pop(0)
    assert kube.list_functions() == [Function("a", "fn"), Function("b", "fn")]
    assert [query for _, _, query in fake.asked] == [{"limit": "500"}, {"limit": "500", "continue": "c1"}]


# The watch


def event(thing: dict[str, Any], kind: str = "MODIFIED") -> Event:
    return {"type": kind, "object": thing}


def test_from_the_object_to_its_endpoints(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment()
    fake.endpoints()
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [[event(deployment(5)), event(deployment(6, available=1)), 5]]
    fake.watches[f"{CORE}/endpoints"] = [
        [event(endpoints(version="8")), 0.2, event(endpoints("p", version="9")), 5]
    ]
    threads = threading.enumerate()
    original = fake.answers[OBJECTS]

    def objects_now() -> dict[str, Any]:
        watched = [query for _, path, query in fake.asked if path == OBJECTS and "watch" in query]
        return {**original, "items": [deployment(6, available=1)]} if watched else original

    fake.answers[OBJECTS] = objects_now
    begun = time.monotonic()
    status = kube.wait_for_change("hello", "", seen, 10)
    assert (status.available_replicas, status.endpoint) == (1, "http://10.0.0.1:8080")
    assert time.monotonic() - begun < 3
    watches = [(path, query) for _, path, query in fake.asked if "watch" in query]
    assert [path for path, _ in watches] == [OBJECTS, f"{CORE}/endpoints"]
    assert {query["resourceVersion"] for _, query in watches} == {"9"}
    ours = [each for each in threading.enumerate() if "process_request_thread" not in each.name]
    assert len(ours) <= len(threads), ours


@pytest.mark.parametrize(
    "broken",
    [
        [status_object(410, "Gone")],
        [{"type": "ERROR", "object": status_object(410, "Expired")}],
        [{"type": "ERROR", "object": {}}],
        [status_object(500)],
        [status_object(429)],
        [b"no json\n"],
        [b'{"type": "ADDED"}\n'],
        [b"break"],
        [],
    ],
)
def test_a_watch_that_breaks_begins_anew(
    fake: Fake, kube: KubernetesProvider, broken: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_WATCH_PAUSE", 0.04)
    fake.deployment(replicas=0)
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [broken, broken, [event(deployment(replicas=2)), 5]]
    begun = time.monotonic()
    status = kube.wait_for_change("hello", "", seen, 10)
    assert (status.replicas, status.available_replicas) == (2, 0)
    assert 0.07 <= time.monotonic() - begun <= 4, "with a breath between"


def test_a_change_during_a_broken_watch_is_not_lost(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(replicas=0)
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [[0.1, b"break"]]
    threading.Timer(0.05, fake.deployment, kwargs={"replicas": 2}).start()
    assert kube.wait_for_change("hello", "", seen, 5).replicas == 2


@pytest.mark.parametrize("code", [401, 403])
def test_a_watch_that_is_refused_is_an_error(fake: Fake, kube: KubernetesProvider, code: int) -> None:
    fake.deployment(replicas=0)
    fake.watches[OBJECTS] = [[status_object(code, message="cannot watch")]]
    seen = kube.get_replicas("hello", "")
    with pytest.raises(ProviderError, match=rf"watch .*: {code} cannot watch"):
        kube.wait_for_change("hello", "", seen, 5)


@pytest.mark.parametrize(
    "script", [[5], [event(deployment(replicas=0)), 5], [0.1, event(deployment(replicas=0)), 5]]
)
def test_a_watch_without_a_change_ends_on_time(
    fake: Fake, kube: KubernetesProvider, script: list[Any]
) -> None:
    fake.deployment(replicas=0)
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [script]
    begun = time.monotonic()
    assert kube.wait_for_change("hello", "", seen, 0.2) == seen
    assert 0.19 <= time.monotonic() - begun <= 1.0
    assert kube.wait_for_change("hello", "", seen, 0) == seen


def test_events_without_end_do_not_hold_it(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(replicas=0)
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [[0.02, event(deployment(replicas=0))] * 100]
    begun = time.monotonic()
    assert kube.wait_for_change("hello", "", seen, 0.3) == seen
    assert 0.29 <= time.monotonic() - begun <= 1.0


def test_events_without_end_do_not_hide_a_failure(
    fake: Fake, kube: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pods are looked at again, however busy the object is."""
    monkeypatch.setattr(kubernetes, "_REFRESH_AFTER", 0.3)
    fake.deployment()
    seen = kube.get_replicas("hello", "")
    fake.watches[OBJECTS] = [[0.02, event(deployment())] * 200]
    timer = threading.Timer(0.15, fake.pods, [waiting("ImagePullBackOff")])
    timer.start()
    begun = time.monotonic()
    assert kube.wait_for_change("hello", "", seen, 4).failure == "its image cannot be pulled"
    assert 0.14 <= time.monotonic() - begun < 2
    timer.join()


def test_a_function_that_is_deleted(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment(replicas=0)
    seen = kube.get_replicas("hello", "")

    def objects_now() -> dict[str, Any]:
        watched = any("watch" in query for _, _, query in fake.asked)
        return {"metadata": {"resourceVersion": "9"}, "items": [] if watched else [deployment(replicas=0)]}

    fake.answers[OBJECTS] = objects_now
    fake.watches[OBJECTS] = [[event(deployment(replicas=0), "DELETED"), 5]]
    with pytest.raises(FunctionNotFound):
        kube.wait_for_change("hello", "", seen, 5)


def test_a_failure_is_seen_at_the_next_look_and_kept_between(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment()
    fake.pods(waiting("ImagePullBackOff"))
    seen = kube.get_replicas("hello", "")
    assert seen.failure == "its image cannot be pulled"
    fake.watches[OBJECTS] = [[event(deployment(6)), 5]]
    assert kube.wait_for_change("hello", "", seen, 0.2) == seen
    fake.pods(pod(conditions=[]))
    fake.watches[OBJECTS] = [[0.2]]
    assert kube.wait_for_change("hello", "", seen, 5).failure is None


def test_an_error_after_an_event_is_told(fake: Fake, kube: KubernetesProvider) -> None:
    fake.deployment()
    seen = kube.get_replicas("hello", "")
    fake.put(path=f"{CORE}/endpoints")
    available = deployment(6, available=1)
    fake.watches[OBJECTS] = [[event(available), 5]]
    timer = threading.Timer(0.05, fake.put, [available])
    timer.start()
    with pytest.raises(ProviderError, match="needs a Service"):
        kube.wait_for_change("hello", "", seen, 5)
    timer.join()


# What the objects say


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, (1, None)),
        ({"scalezero.min": "2", "scalezero.max": " 5 "}, (2, 5)),
        ({"scalezero.min": "7", "scalezero.max": "5"}, (5, 5)),
        ({"scalezero.min": "0", "scalezero.max": "0"}, (1, None)),
        ({"scalezero.min": "-1", "scalezero.max": "many"}, (1, None)),
        ({"scalezero.min": "٣", "scalezero.max": "1" * 5000}, (1, None)),
        ({"scalezero.min": "1.5", "scalezero.max": ""}, (1, None)),
    ],
)
def test_bounds(annotations: dict[str, str], expected: tuple[int, int | None]) -> None:
    assert objects.bounds(annotations) == expected


def test_labels_and_annotations(fake: Fake, kube: KubernetesProvider) -> None:
    notes = {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}", "scalezero.max": "2"}
    fake.deployment(replicas=0, metadata={"labels": {"l": "m"}, "annotations": notes})
    status = kube.get_replicas("hello", "")
    assert status.labels == {"l": "m"}
    assert status.annotations == {"a": "b", "scalezero.max": "2"}
    assert status.max_replicas == 2


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("Deployment", {"readyReplicas": 2}, 0),  # too young for minReadySeconds
        ("Deployment", {"readyReplicas": 2, "availableReplicas": 1}, 1),
        ("Deployment", {"availableReplicas": True}, 0),
        ("Deployment", None, 0),
        ("StatefulSet", {"readyReplicas": 2}, 2),
        ("StatefulSet", {"readyReplicas": 2, "availableReplicas": 0}, 0),
        ("StatefulSet", {"availableReplicas": None, "readyReplicas": 1}, 1),
    ],
)
def test_counts(kind: str, status: Any, expected: int) -> None:
    assert objects.claimed(objects.KINDS[kind], {"status": status}, None) == expected


def unschedulable(since: object, status: str = "False") -> dict[str, Any]:
    found = {"type": "PodScheduled", "status": status, "reason": "Unschedulable", "lastTransitionTime": since}
    return pod(conditions=[found])


ENDED = {"lastState": {"terminated": {"exitCode": 3}}}
OOM = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
LATE = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
NO_PODS = {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}]}
INIT: dict[str, Any] = {"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}


@pytest.mark.parametrize(
    ("status", "pods", "expected"),
    [
        ({}, [], None),
        ({}, [pod()], None),
        ({}, [waiting("CrashLoopBackOff", **ENDED)], "its container ends again and again (exit status 3)"),
        (
            {},
            [waiting("CrashLoopBackOff", **OOM)],
            "its container ends again and again (it ran out of memory)",
        ),
        ({}, [waiting("CrashLoopBackOff")], "its container ends again and again"),
        ({}, [pod(conditions=[], **INIT)], "its container ends again and again"),
        ({}, [waiting("ErrImagePull")], None),
        ({}, [waiting("ImagePullBackOff")], "its image cannot be pulled"),
        ({}, [waiting("ErrImageNeverPull")], "its image is not there and must not be pulled"),
        ({}, [waiting("InvalidImageName")], "its image has an impossible name"),
        ({}, [waiting("CreateContainerError")], "its container cannot be created"),
        ({}, [waiting("ContainerCreating")], None),
        ({}, [waiting("ImagePullBackOff"), pod("q")], None),
        ({}, [waiting("ImagePullBackOff"), going("q")], "its image cannot be pulled"),
        ({}, [waiting("ImagePullBackOff") | {"metadata": {"deletionTimestamp": "now"}}], None),
        ({}, [waiting("ImagePullBackOff"), pod(phase="Failed")], "its image cannot be pulled"),
        ({}, [unschedulable("2023-11-14T22:13:00Z")], "no node takes it"),
        ({}, [unschedulable("2023-11-14T22:13:15Z")], None),
        ({}, [unschedulable("2023-11-14T22:13:00Z", "True")], None),
        ({}, [unschedulable(None)], None),
        (LATE, [pod()], "it did not become available within its progress deadline"),
        (LATE | {"observedGeneration": 0}, [waiting("ImagePullBackOff")], None),
        (NO_PODS, [], "its pods cannot be created"),
        (NO_PODS, [pod()], None),
    ],
)
def test_failures(status: dict[str, Any], pods: list[Any], expected: str | None) -> None:
    thing = deployment(status=status)
    assert objects.failure(thing, pods, NOW, pending_timeout=10) == expected


def test_how_long_a_pod_is_pending_is_told_by_the_clusters_clock(
    fake: Fake, make: Callable[..., KubernetesProvider]
) -> None:
    fake.deployment()
    fake.pods(unschedulable("2023-11-14T22:13:00Z"))  # 20 s before NOW, and years before this machine's
    assert make(pending_timeout="10m").get_replicas("hello", "").failure is None
    assert make(pending_timeout=15).get_replicas("hello", "").failure == "no node takes it"


def test_an_answer_without_a_date_is_dated_here() -> None:
    assert abs(kubernetes_api._epoch(None) - time.time()) < 5
    assert kubernetes_api._epoch("Tue, 14 Nov 2023 22:13:20 GMT") == NOW
