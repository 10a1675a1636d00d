"""KubernetesProvider against a whole cluster: API server, scheduler, controllers and kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
import yaml

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ReplicaStatus
from scalezero_wsgi.providers import KubernetesProvider
from scalezero_wsgi.providers.kubernetes import api as kubernetes_api
from scalezero_wsgi.testing import ProviderBench, ProviderContract
from tests.engines.engine import build_image, engine, stopped
from tests.engines.kubernetes_cluster import APPS, CORE, Cluster
from tests.servers.harness import Server, free_port, gunicorn, serving
from tests.support.waiting import until

pytestmark = pytest.mark.engine

ROLE = Path(__file__).with_name("kubernetes_role.yaml")
NEVER_READY = {"readinessProbe": {"exec": {"command": ["/bin/busybox", "false"]}, "periodSeconds": 1}}
NS = "fn"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = engine("SCALEZERO_TEST_KUBERNETES")
    build_image(f"unix://{directory}/docker.sock", tmp_path_factory.mktemp("kubernetes"))
    cluster = Cluster(directory)
    for namespace in (NS, "full", "empty"):
        path = f"{CORE}/{namespace}"
        if cluster.http.get(path).status_code == 200:
            cluster.delete(path)
            until(lambda path=path: cluster.http.get(path).status_code == 404, timeout=60)  # type: ignore[misc]
        cluster.create(CORE, "v1", "Namespace", namespace, {})
    yield cluster
    cluster.http.close()


def provider(cluster: Cluster, **keywords: Any) -> KubernetesProvider:
    defaults = {"namespace": NS, "address": "pod", "kubeconfig": cluster.kubeconfig, "timeout": 2}
    return KubernetesProvider(**{**defaults, **keywords})


@pytest.fixture(scope="module")
def kube(cluster: Cluster) -> KubernetesProvider:
    return provider(cluster)


def reach(
    kube: KubernetesProvider,
    name: str,
    condition: Callable[[ReplicaStatus], Any],
    timeout: float = 45,
    namespace: str = "",
) -> ReplicaStatus:
    """Watch until ``condition`` holds."""
    deadline = time.monotonic() + timeout
    status = kube.get_replicas(name, namespace)
    while not condition(status):
        assert time.monotonic() < deadline, f"it stays {status}"
        status = kube.wait_for_change(name, namespace, status, 5)
    return status


def available(status: ReplicaStatus) -> bool:
    return status.available_replicas > 0


def answers(status: ReplicaStatus) -> bool:
    assert status.endpoint is not None
    return requests.get(status.endpoint, timeout=5).text == "hello from busybox\n"


@pytest.fixture(scope="module")
def functions(cluster: Cluster) -> None:
    cluster.function("ready", NS, annotations={"scalezero.min": "2", "scalezero.max": "3"})
    cluster.function("broken", NS, container={"image": "scalezero-test/none:1"})


class TestContract(ProviderContract):
    @pytest.fixture
    def bench(self, cluster: Cluster, functions: None, tmp_path: Path) -> Iterator[ProviderBench]:
        def at(port: int) -> KubernetesProvider:
            file = cluster.kubeconfig_for(tmp_path / str(port), {"token": "t"}, f"https://127.0.0.1:{port}")
            return provider(cluster, kubeconfig=file)

        # A fake: it takes connections and never answers. The real server is stopped in a test of its own.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield ProviderBench(
                provider=provider(cluster),
                ready=Function("ready"),
                unknown=Function("unknown"),
                bounds=(2, 3),
                broken=Function("broken"),
                down=at(free_port()),
                hanging=at(silent.getsockname()[1]),
                refusing=provider(
                    cluster, kubeconfig=cluster.kubeconfig_for(tmp_path / "no", {"token": "no"})
                ),
            )


# What counts as available


def test_an_endpoint_must_be_ready_too(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("apart", NS, replicas=1, service=None)
    cluster.service("apart", NS, {"function": "nobody"})
    until(lambda: cluster.deployment("apart", NS)["status"].get("availableReplicas") == 1)
    status = kube.get_replicas("apart", "")
    assert (status.replicas, status.available_replicas, status.endpoint) == (1, 0, None)
    assert kube.wait_for_change("apart", "", status, 1.2) == status
    threads = threading.active_count()
    timer = threading.Timer(
        0.3,
        cluster.patch,
        [f"{CORE}/{NS}/services/apart", {"spec": {"selector": {"function": "apart"}}}],
    )
    timer.start()
    begun = time.monotonic()
    status = kube.wait_for_change("apart", "", status, 20)
    assert (status.available_replicas, answers(status)) == (1, True)
    assert time.monotonic() - begun < 10
    timer.join()
    assert threading.active_count() == threads


def test_without_a_service_the_error_says_so(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("alone", NS, replicas=1, service=None)
    until(lambda: cluster.deployment("alone", NS)["status"].get("availableReplicas") == 1)
    with pytest.raises(ProviderError, match=r"no endpoints 'alone' in namespace 'fn'.*needs a Service"):
        kube.get_replicas("alone", "")
    with pytest.raises(ProviderError, match="needs a Service"):
        kube.wait_for_change("alone", "", ReplicaStatus(0, 0), 1)
    status = provider(cluster, service=None).get_replicas("alone", "")
    assert (status.available_replicas, status.endpoint) == (1, None)


def test_the_service_is_named_by_annotation_or_template(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("noted", NS, annotations={"scalezero.service": "other"}, service="other", replicas=1)
    cluster.function("made", NS, service="made-web", replicas=1)
    assert answers(reach(kube, "noted", available))
    assert answers(reach(provider(cluster, service="{name}-web"), "made", available))


def test_the_endpoint_is_the_service_or_a_pod(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("where", NS, replicas=1)
    by_pod = reach(kube, "where", available)
    by_service = provider(cluster, address="service").get_replicas("where", NS)
    address = cluster.get(f"{CORE}/{NS}/services/where")["spec"]["clusterIP"]
    assert by_service.endpoint == f"http://{address}:80"
    assert by_pod.endpoint == f"http://{cluster.pods('where', NS)[0]['status']['podIP']}:8080"
    assert by_pod.labels == {"app": "where"}


def test_a_pod_that_goes_counts_neither_as_available_nor_as_failed(
    cluster: Cluster, kube: KubernetesProvider
) -> None:
    """It ignores SIGTERM, as pid 1 does without a handler, and so serves for 20 s more."""
    cluster.function("slow-end", NS, pod={"terminationGracePeriodSeconds": 20})
    kube.set_replicas("slow-end", "", 1)
    first = reach(kube, "slow-end", available)
    old = cluster.pods("slow-end", NS)[0]["metadata"]["name"]
    kube.set_replicas("slow-end", "", 0)
    status = kube.get_replicas("slow-end", "")
    assert (status.replicas, status.available_replicas, status.failure) == (0, 0, None)
    until(lambda: "deletionTimestamp" in cluster.pods("slow-end", NS)[0]["metadata"])
    kube.set_replicas("slow-end", "", 1)
    second = reach(kube, "slow-end", available)
    assert old in [pod["metadata"]["name"] for pod in cluster.pods("slow-end", NS)], "it went too early"
    assert second.endpoint != first.endpoint
    assert (second.available_replicas, answers(second)) == (1, True)


def test_flapping_never_ends_at_a_pod_that_goes(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("flap", NS, replicas=1)
    reach(kube, "flap", available)
    for _ in range(8):
        kube.set_replicas("flap", "", 0)
        kube.set_replicas("flap", "", 1)
        assert answers(reach(kube, "flap", available))


@pytest.mark.parametrize("kind", ["StatefulSet", "ReplicaSet"])
def test_other_kinds(cluster: Cluster, kind: str) -> None:
    name = kind.lower()
    cluster.function(name, NS, kind=kind)
    kube = provider(cluster, kind=kind)
    assert Function(name, NS) in kube.list_functions()
    status = kube.get_replicas(name, "")
    assert (status.replicas, status.available_replicas) == (0, 0)
    kube.set_replicas(name, "", 1)
    assert answers(reach(kube, name, available))
    kube.set_replicas(name, "", 0)
    assert reach(kube, name, lambda status: not status.replicas).available_replicas == 0


def test_a_custom_resource(cluster: Cluster) -> None:
    """With its own place for the desired count, and no controller: the test reports the status."""
    counts: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    paths = {
        "specReplicasPath": ".spec.size",
        "statusReplicasPath": ".status.running",
        "labelSelectorPath": ".status.selector",
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}, "scale": paths},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": counts, "status": counts}}},
    }
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget"}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    crd = f"{crds}/widgets.example.com"
    if cluster.http.get(crd).status_code == 200:
        cluster.delete(crd)
        until(lambda: cluster.http.get(crd).status_code == 404)
    cluster.create(
        crds, "apiextensions.k8s.io/v1", "CustomResourceDefinition", crd.split("/")[-1], {"spec": spec}
    )
    widgets = f"/apis/example.com/v1/namespaces/{NS}/widgets"
    until(lambda: cluster.http.get(widgets).status_code == 200)
    cluster.create(widgets, "example.com/v1", "Widget", "gear", {"spec": {"size": 0}})
    cluster.service("gear", NS, None)
    kube = provider(cluster, kind="example.com/v1/widgets")
    assert kube.list_functions() == [Function("gear", NS)]
    seen = kube.get_replicas("gear", "")
    assert (seen.replicas, seen.available_replicas) == (0, 0)
    kube.set_replicas("gear", "", 2)
    assert cluster.get(f"{widgets}/gear")["spec"]["size"] == 2
    seen = kube.wait_for_change("gear", "", seen, 5)
    assert (seen.replicas, seen.available_replicas) == (2, 0)

    def report() -> None:
        status = {"running": 2, "readyReplicas": 1}
        cluster.patch(f"{widgets}/gear/status", {"status": status})
        subset = {"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 8080}]}
        cluster.create(f"{CORE}/{NS}/endpoints", "v1", "Endpoints", "gear", {"subsets": [subset]})

    timer = threading.Timer(0.3, report)
    timer.start()
    status = reach(kube, "gear", available, timeout=10) if _retry_missing(kube, seen) else seen
    timer.join()
    assert (status.available_replicas, status.endpoint) == (1, "http://10.1.2.3:8080")
    with pytest.raises(FunctionNotFound):
        kube.set_replicas("cog", "", 1)
    with pytest.raises(FunctionNotFound):
        kube.get_replicas("cog", "")


def _retry_missing(kube: KubernetesProvider, seen: ReplicaStatus) -> bool:
    """The endpoints come a moment after the status; meanwhile their absence is an error, as it should be."""
    with contextlib.suppress(ProviderError):
        kube.wait_for_change("gear", "", seen, 5)
    time.sleep(0.3)
    return True


def test_a_kind_that_the_cluster_does_not_know(cluster: Cluster) -> None:
    kube = provider(cluster, kind="example.com/v1/nothings")
    for call in (
        lambda: kube.get_replicas("hello", ""),
        lambda: kube.set_replicas("hello", "", 1),
        lambda: kube.list_functions(),
        lambda: kube.wait_for_change("hello", "", ReplicaStatus(0, 0), 1),
    ):
        with pytest.raises(ProviderError, match="404"):
            call()


def test_functions_are_listed_for_the_namespace(cluster: Cluster) -> None:
    assert provider(cluster, namespace="empty").list_functions() == []
    cluster.function("listed", NS)
    assert Function("listed", NS) in provider(cluster).list_functions()


# Failures

MISSING_MAP = {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "a"}}}]}


@pytest.mark.parametrize(
    ("name", "parts", "failure"),
    [
        (
            "crash",
            {"container": {"command": ["/bin/sh", "-c", "exit 7"]}},
            "ends again and again (exit status 7)",
        ),
        (
            "never",
            {"container": {"image": "scalezero-test/none:1"}},
            "image is not there and must not be pulled",
        ),
        (
            "pull",
            {"container": {"image": "127.0.0.1:9/none:1", "imagePullPolicy": "Always"}},
            "image cannot be pulled",
        ),
        ("config", {"container": MISSING_MAP}, "a ConfigMap or a Secret"),
        ("nowhere", {"pod": {"nodeSelector": {"no": "such"}}}, "no node takes it"),
        ("late", {"container": NEVER_READY, "spec": {"progressDeadlineSeconds": 2}}, "progress deadline"),
    ],
)
def test_what_will_not_start(cluster: Cluster, name: str, parts: dict[str, Any], failure: str) -> None:
    kube = provider(cluster, pending_timeout="1s")
    # A Deployment that was complete before knows no progress deadline: this one is made with a replica.
    cluster.function(f"f-{name}", NS, replicas=int(name == "late"), **parts)
    kube.set_replicas(f"f-{name}", "", 1)
    status = reach(kube, f"f-{name}", lambda status: status.failure, timeout=60)
    assert failure in str(status.failure)
    assert status.available_replicas == 0
    kube.set_replicas(f"f-{name}", "", 0)
    assert reach(kube, f"f-{name}", lambda status: not status.replicas).failure is None


def test_a_pending_pod_is_hope_for_a_while(cluster: Cluster) -> None:
    cluster.function("pending", NS, replicas=1, pod={"nodeSelector": {"no": "such"}})
    kube = provider(cluster, pending_timeout=60)
    until(lambda: any("conditions" in pod["status"] for pod in cluster.pods("pending", NS)))
    assert kube.get_replicas("pending", "").failure is None
    assert provider(cluster, pending_timeout=0).get_replicas("pending", "").failure == "no node takes it"


def test_pods_that_the_cluster_refuses(cluster: Cluster) -> None:
    cluster.create(
        f"{CORE}/full/resourcequotas", "v1", "ResourceQuota", "q", {"spec": {"hard": {"pods": "0"}}}
    )
    quota = f"{CORE}/full/resourcequotas/q"
    until(lambda: "hard" in cluster.get(quota).get("status", {}))
    cluster.function("crowded", "full")
    kube = provider(cluster)
    kube.set_replicas("crowded", "full", 1)
    status = reach(kube, "crowded", lambda status: status.failure, namespace="full")
    assert status.failure == "its pods cannot be created"


def test_a_function_that_is_deleted_while_it_is_waited_for(
    cluster: Cluster, kube: KubernetesProvider
) -> None:
    cluster.function("gone", NS)
    timer = threading.Timer(0.3, cluster.delete, [f"{APPS}/{NS}/deployments/gone"])
    timer.start()
    begun = time.monotonic()
    with pytest.raises(FunctionNotFound):  # after other changes: the controller annotates a new Deployment
        reach(kube, "gone", lambda status: False, timeout=15)
    assert time.monotonic() - begun < 2, "it did not wait for its time-out"
    timer.join()


# The API server in trouble


def test_a_server_that_hangs_and_comes_back(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("hung", NS)
    seen = kube.get_replicas("hung", "")
    with stopped(cluster.apiserver):
        for call in (
            lambda: kube.get_replicas("hung", ""),
            lambda: kube.set_replicas("hung", "", 1),
            lambda: kube.wait_for_change("hung", "", seen, 1),
        ):
            begun = time.monotonic()
            with pytest.raises(ProviderError):
                call()
            assert time.monotonic() - begun < 5
    until(lambda: _works(lambda: kube.get_replicas("hung", "")))
    until(lambda: _works(lambda: kube.set_replicas("hung", "", 1)))
    assert answers(reach(kube, "hung", available))


def test_a_server_that_hangs_during_a_watch(cluster: Cluster, kube: KubernetesProvider) -> None:
    cluster.function("hung2", NS)
    seen = kube.get_replicas("hung2", "")
    outcome: list[Any] = []

    def wait() -> None:
        begun = time.monotonic()
        with contextlib.suppress(ProviderError):
            outcome.append(kube.wait_for_change("hung2", "", seen, 1.5))
        outcome.append(time.monotonic() - begun)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    with stopped(cluster.apiserver):
        thread.join(10)
    thread.join(10)
    assert outcome[-1] < 5
    until(lambda: _works(lambda: kube.get_replicas("hung2", "")))


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ProviderError:
        return False
    return True


# Credentials


RULES = yaml.safe_load(ROLE.read_text(encoding="utf-8"))["rules"]


def use_all(kube: KubernetesProvider) -> None:
    """Whatever the middleware may ask of a provider, in every state that asks for a permission of its own."""
    assert Function("role", NS) in kube.list_functions()
    kube.set_replicas("role", "", 1)
    status = reach(kube, "role", available)
    assert status.endpoint is not None
    kube.set_replicas("role", "", 0)
    kube.wait_for_change("role", "", kube.get_replicas("role", ""), 0.5)
    unready = kube.get_replicas("role-apart", "")
    assert kube.wait_for_change("role-apart", "", unready, 0.5) == unready


@pytest.fixture(scope="module")
def role_functions(cluster: Cluster) -> None:
    cluster.function("role", NS)
    cluster.function("role-apart", NS, replicas=1, service=None)
    cluster.service("role-apart", NS, {"function": "nobody"})
    until(lambda: cluster.deployment("role-apart", NS)["status"].get("availableReplicas") == 1)


def allowed(
    cluster: Cluster, name: str, rules: list[Any], directory: Path, **keywords: Any
) -> KubernetesProvider:
    """A provider with a service account that may do this and no more."""
    token = directory / f"{name}.token"
    token.write_text(cluster.account(name, NS), encoding="utf-8")
    cluster.allow(name, NS, rules)
    file = cluster.kubeconfig_for(directory / name, {"tokenFile": str(token)})
    return provider(cluster, kubeconfig=file, **keywords)


def test_the_smallest_role_is_enough(cluster: Cluster, role_functions: None, tmp_path: Path) -> None:
    kube = allowed(cluster, "small", RULES, tmp_path, address="service")
    until(lambda: _works(kube.list_functions))
    use_all(kube)
    without_services = [rule for rule in RULES if rule["resources"] != ["services"]]
    kube = allowed(cluster, "smaller", without_services, tmp_path)
    until(lambda: _works(kube.list_functions))
    use_all(kube)


@pytest.mark.parametrize(
    ("resource", "verb"), [(rule["resources"][0], verb) for rule in RULES for verb in rule["verbs"]]
)
def test_no_part_of_the_role_can_be_left_out(
    cluster: Cluster, role_functions: None, tmp_path: Path, resource: str, verb: str
) -> None:
    rules = [
        {
            **rule,
            "verbs": [each for each in rule["verbs"] if (rule["resources"][0], each) != (resource, verb)],
        }
        for rule in RULES
    ]
    rules = [rule for rule in rules if rule["verbs"]]
    name = f"no-{verb}-{resource.replace('/', '-')}"
    kube = allowed(cluster, name, rules, tmp_path, address="service")
    # Until the binding is known, another permission is missing.
    missing = rf'403 .*cannot {verb} resource "{resource}"'
    deadline = time.monotonic() + 60
    while True:
        with pytest.raises(ProviderError) as raised:
            use_all(kube)
        if raised.match(missing) if _matches(missing, raised.value) else time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert _matches(missing, raised.value), raised.value


def _matches(pattern: str, error: Exception) -> bool:
    return re.search(pattern, str(error)) is not None


def test_a_token_that_is_rotated(cluster: Cluster, role_functions: None, tmp_path: Path) -> None:
    kube = allowed(cluster, "rotated", RULES, tmp_path)
    until(lambda: _works(kube.list_functions))
    token = cluster.token_of("rotated", NS)
    name = next(
        secret["metadata"]["name"]
        for secret in cluster.get(f"{CORE}/{NS}/secrets")["items"]
        if secret["metadata"]["name"].startswith("rotated-token")
    )
    cluster.delete(f"{CORE}/{NS}/secrets/{name}")  # its token is void; the account gets another one
    until(lambda: cluster.token_of("rotated", NS) not in ("", token))
    until(lambda: not _works(kube.list_functions))
    (tmp_path / "rotated.token").write_text(cluster.token_of("rotated", NS), encoding="utf-8")
    assert Function("role", NS) in kube.list_functions(), "the very next call has the new token"


def test_in_a_pod(
    cluster: Cluster, role_functions: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service account's files as the kubelet mounts them, with a token and a CA that change."""
    host, port = cluster.server.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", str(tmp_path))
    (tmp_path / "namespace").write_text(NS, encoding="utf-8")
    (tmp_path / "token").write_text("old", encoding="utf-8")
    shutil.copy(Path(str(cluster.directory), "pki", "apiserver.crt"), tmp_path / "ca.crt")
    kube = KubernetesProvider(namespace=NS, address="pod", timeout=2)
    with pytest.raises(ProviderError, match="401"):
        kube.list_functions()
    token = cluster.account("pod", NS)
    cluster.allow("pod", NS, RULES)
    (tmp_path / "token").write_text(token, encoding="utf-8")
    until(lambda: _works(kube.list_functions))
    good = (tmp_path / "ca.crt").read_text(encoding="utf-8")
    _make_ca(tmp_path / "ca.crt")
    kube = KubernetesProvider(namespace=NS, address="pod", timeout=2)
    with pytest.raises(ProviderError, match="certificate"):
        kube.list_functions()
    (tmp_path / "ca.crt").write_text(good, encoding="utf-8")
    assert Function("role", NS) in kube.list_functions(), "the call after the one that failed has the new CA"


def _make_ca(path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-days", "1"]  # noqa: RUF005
        + ["-keyout", os.devnull, "-out", str(path)],
        check=True,
        capture_output=True,
    )


# End to end


@contextlib.contextmanager
def site(
    cluster: Cluster, log: Path, *options: str, worker: str = "gthread", **settings: Any
) -> Iterator[Server]:
    query = urlencode(
        {"namespace": NS, "address": "pod", "kubeconfig": str(cluster.kubeconfig), "timeout": "2s"}
    )
    env = {"SITE_PROVIDER": f"kubernetes://?{query}", "SITE_SETTINGS": json.dumps(settings)}
    app = "tests.engines.kubernetes_site:app"
    with gunicorn(app, log, *(options or ("--threads", "32")), worker=worker, env=env) as server:
        yield server


def burst(server: Server, path: str, count: int) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: server.get(path, timeout=60).status_code, range(count)))


def test_fifty_first_requests(cluster: Cluster, tmp_path: Path) -> None:
    cluster.function("fifty", NS)
    reached = cluster.generation("fifty", NS)
    with site(cluster, tmp_path / "log", "--workers", "2", "--threads", "32") as server:
        assert burst(server, "/function/fifty/", 50) == [200] * 50
        assert cluster.generation("fifty", NS) == reached + 1, "one change of the desired count"
        assert cluster.deployment("fifty", NS)["spec"]["replicas"] == 1
        cluster.scale("fifty", NS, 0)  # behind the middleware's back
        assert burst(server, "/function/fifty/", 50) == [200] * 50
        cluster.scale("fifty", NS, 0)
        until(lambda: cluster.pods("fifty", NS) == [])
        reached = cluster.generation("fifty", NS)
        assert burst(server, "/function/fifty/", 50) == [200] * 50
        assert cluster.generation("fifty", NS) == reached + 1
        assert server.log.count("Traceback") == 0, server.log


def test_serve_needs_no_application(cluster: Cluster, tmp_path: Path) -> None:
    cluster.function("served", NS)
    port = free_port()
    query = urlencode({"namespace": NS, "address": "pod", "kubeconfig": str(cluster.kubeconfig)})
    url, bind = f"kubernetes://?{query}", f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "scalezero_wsgi", "serve", url, "--bind", bind]
    with serving(command, port, tmp_path / "log", {"SCALEZERO_ALLOW": f"served.{NS}"}) as server:
        listed = server.get("/").json()["functions"]
        assert [(each["function"], each["state"]) for each in listed] == [(f"served.{NS}", "at zero")]
        assert burst(server, "/function/served/", 100) == [200] * 100, server.log
        until(lambda: [each["state"] for each in server.get("/").json()["functions"]] == ["ready"])
        assert server.get("/readyz").status_code == 200
    assert "Traceback" not in server.log


def test_an_idle_deployment_goes_to_zero_and_is_woken_again(cluster: Cluster, tmp_path: Path) -> None:
    cluster.function("idle", NS)
    with site(cluster, tmp_path / "log", idle_after=2, idle_default="all") as server:
        for _ in range(2):
            assert server.get("/function/idle/", timeout=60).status_code == 200, server.log
            used_at = time.monotonic()
            until(lambda: cluster.deployment("idle", NS)["spec"]["replicas"] == 0)
            assert time.monotonic() >= used_at + 2.0
        print(f"\nkubernetes: gone {time.monotonic() - used_at:.2f} s after the end of its last use, of 2 s")


def test_added_latency(cluster: Cluster, tmp_path: Path) -> None:
    """From the first answer through Kubernetes' own service proxy to the first one through the middleware."""
    rounds = int(os.environ.get("SCALEZERO_TEST_ROUNDS", "7"))
    names = [f"quick-{number}" for number in range(rounds)]
    for name in names:
        cluster.function(name, NS)
    with site(cluster, tmp_path / "log") as server, cluster.client() as probing:
        server.get("/ping")
        added = [1000 * _added(cluster, probing, server, name) for name in names]
    print(
        f"\nkubernetes: added ms {[round(each, 1) for each in added]}, median {statistics.median(added):.1f}"
    )
    assert statistics.median(added) <= 50


def _added(cluster: Cluster, probing: Any, server: Server, name: str) -> float:
    served: list[float] = []

    def probe() -> None:
        deadline = time.monotonic() + 60
        while not served and time.monotonic() < deadline:
            if cluster.serves(probing, name, NS):
                served.append(time.monotonic())

    thread = threading.Thread(target=probe)
    thread.start()
    assert server.get(f"/function/{name}/").status_code == 200
    answered = time.monotonic()
    thread.join()
    cluster.scale(name, NS, 0)
    return answered - served[0]


def test_the_api_server_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("warm", "cold"):
        cluster.function(name, NS)
    with site(cluster, tmp_path / "log", "--threads", "8", cache_expiry=0.25, stale_for=6) as server:
        assert server.get("/function/warm/").status_code == 200
        command = cluster.kill_apiserver()
        try:
            killed = time.monotonic()
            while time.monotonic() < killed + 8:  # longer than its entry may be served otherwise
                assert server.get("/function/warm/").status_code == 200
                time.sleep(0.1)
            begun = time.monotonic()
            assert server.get("/function/cold/").status_code == 502
            assert time.monotonic() - begun < 10
            assert server.get("/function/warm/").status_code == 200, server.log
        finally:
            cluster.start_apiserver(command)
        until(lambda: server.get("/function/warm/").status_code == 200, timeout=30)
        until(lambda: server.get("/function/cold/").status_code == 200, timeout=60)


def test_a_gevent_worker(cluster: Cluster, tmp_path: Path) -> None:
    cluster.function("green", NS)
    options = ("--worker-connections", "100")
    with site(cluster, tmp_path / "log", *options, worker="gevent") as server, ThreadPoolExecutor(30) as pool:
        server.get("/ping")
        first = [pool.submit(server.get, "/function/green/", 60) for _ in range(30)]
        time.sleep(0.1)
        begun = time.monotonic()
        assert server.get("/ping").text == "pong"
        assert time.monotonic() - begun < 0.5
        assert not any(each.done() for each in first), "the function was there too soon for this test"
        assert [each.result().status_code for each in first] == [200] * 30
