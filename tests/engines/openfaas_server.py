"""Speaks the REST API of an OpenFaaS gateway in front of real Docker containers.

No registry has a gateway or a provider. This is a server of its own that keeps to what the API says, in the
manner of faas-netes or of faasd, and that reports what it was asked. A replica is a container; it counts as
available once it runs and answers HTTP. Run as ``python -m tests.engines.openfaas_server FILE``; the file has
the fields of ``Config`` in JSON. It ends, and removes its containers, on SIGTERM.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

LABEL = "scalezero-test.openfaas"
DEFAULT_NAMESPACE = "openfaas-fn"
USER, PASSWORD = "admin", "s3cret/pass"

Key = tuple[str, str]


@dataclass
class Config:
    port: int
    docker: str  # the socket's path
    image: str
    run: str  # tells the containers of this server from all others
    manner: str = "faas-netes"  # or "faasd"
    zero: bool = True  # whether zero is accepted; the Community Edition refuses it
    token: str = ""  # takes this bearer token instead of basic authentication
    functions: list[dict[str, Any]] = field(default_factory=list)


class DockerConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def docker(path: str, method: str, target: str, content: object = None) -> Any:
    """Make one call of the Docker Engine API."""
    with contextlib.closing(DockerConnection(path)) as connection:
        body = None if content is None else json.dumps(content)
        connection.request(method, target, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.read()
        if answer.status >= 400 and not (method == "DELETE" and answer.status in (404, 409)):
            raise RuntimeError(f"{method} {target}: {answer.status} {found!r}")
        return json.loads(found) if found else None


def containers(path: str, run: str) -> list[dict[str, Any]]:
    filters = quote(json.dumps({"label": [f"{LABEL}={run}"]}))
    found: list[dict[str, Any]] = docker(path, "GET", f"/containers/json?all=1&filters={filters}")
    return found


def remove_containers(path: str, run: str) -> None:
    for each in containers(path, run):
        docker(path, "DELETE", f"/containers/{each['Id']}?force=1")


class Deployment:
    """A function: how many containers there shall be, and those that are."""

    def __init__(self, config: Config, spec: dict[str, Any]) -> None:
        self.config = config
        self.name: str = spec["name"]
        self.namespace: str = spec.get("namespace", DEFAULT_NAMESPACE)
        self.full_name = f"{self.name}.{self.namespace}"
        self.spec = spec
        self.replicas = 0
        self.changes: list[tuple[int, int]] = []  # from, to
        self.ports: dict[str, int] = {}  # of those that have answered, by container
        self.started = 0
        self.available_since = 0.0
        self.lock = threading.Lock()

    def scale(self, replicas: int) -> None:
        with self.lock:
            if replicas != self.replicas:
                self.changes.append((self.replicas, replicas))
            self.replicas = replicas
            ours = self.containers()
            for each in ours[replicas:]:
                self.ports.pop(each, None)
                docker(self.config.docker, "DELETE", f"/containers/{each}?force=1")
            missing = range(len(ours), replicas)
        for _ in missing:
            threading.Thread(target=self.start, daemon=True).start()

    def containers(self, *states: str) -> list[str]:
        return [
            each["Id"]
            for each in containers(self.config.docker, self.config.run)
            if each["Labels"]["function"] == self.full_name and (not states or each["State"] in states)
        ]

    def start(self) -> None:
        with self.lock:
            if len(self.containers()) >= self.replicas:
                return
            self.started += 1
            call = self.config.docker
            labels = {LABEL: self.config.run, "function": self.full_name}
            created = docker(
                call,
                "POST",
                f"/containers/create?name=openfaas-{self.config.run}-{self.name}-{self.started}",
                {
                    "Image": self.config.image,
                    "Cmd": self.spec.get("command"),
                    "Labels": labels,
                    "ExposedPorts": {"8080/tcp": {}},
                    "HostConfig": {"PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}},
                },
            )
            container: str = created["Id"]
            docker(call, "POST", f"/containers/{container}/start")
        self.watch(container)

    def watch(self, container: str) -> None:
        """Be the kubelet: probe until it answers."""
        for _ in range(2000):
            with self.lock:
                if container not in self.containers():
                    return
                found = docker(self.config.docker, "GET", f"/containers/{container}/json")
            bound = found["NetworkSettings"]["Ports"].get("8080/tcp")
            if bound and answers(int(bound[0]["HostPort"])):
                with self.lock:
                    if container in self.containers():
                        self.available_since = self.available_since if self.ports else time.monotonic()
                        self.ports[container] = int(bound[0]["HostPort"])
                return
            time.sleep(0.005)

    def running(self) -> list[int]:
        """The ports of the available replicas."""
        ours = set(self.containers("running"))
        return [port for container, port in list(self.ports.items()) if container in ours]

    def endpoints(self) -> list[int]:
        """What the proxy knows of them: somewhat later, where the function says so."""
        lag = self.spec.get("lag", 0.0)
        return list(self.ports.values()) if time.monotonic() >= self.available_since + lag else []

    def told(self) -> dict[str, Any]:
        status = {
            "name": self.name,
            "namespace": self.namespace,
            "image": self.config.image,
            "replicas": self.replicas,
            "availableReplicas": len(self.running()),
            "invocationCount": 0,
        }
        present = {key: value for key, value in status.items() if value}  # Go's omitempty
        return present | {key: self.spec[key] for key in ("labels", "annotations") if key in self.spec}


def answers(port: int, path: str = "/") -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False


class Gateway(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, config: Config) -> None:
        super().__init__(("127.0.0.1", config.port), Handler)
        self.config = config
        self.deployments: dict[Key, Deployment] = {}
        for spec in config.functions:
            deployment = Deployment(config, spec)
            self.deployments[deployment.name, deployment.namespace] = deployment
            if spec.get("replicas"):
                deployment.scale(spec["replicas"])
        self.counting = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.functions_saw: list[str] = []  # the Authorization headers that reached a function


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Gateway

    known = False

    def count(self, area: str) -> None:
        with self.server.counting:
            self.server.counts[f"{self.command} {area}"] += 1
            if area == "system" and not self.known:
                self.known = True
                self.server.counts["system connections"] += 1

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, area, *rest = parts.path.split("/")
        if area == "test":
            self.report()
        elif area in ("function", "system") and rest:
            self.count(area)
            (self.invoke if area == "function" else self.system)(rest, body)
        else:
            self.answer(404)

    do_POST = do_GET

    def report(self) -> None:
        deployments = self.server.deployments.values()
        self.answer(
            200,
            {
                "counts": self.server.counts,
                "changes": {each.full_name: each.changes for each in deployments},
                "started": {each.full_name: each.started for each in deployments},
                "functions_saw": self.server.functions_saw,
            },
        )

    # -- /function/<name>[.<namespace>][/...]: what is available is passed on to, and nothing is scaled

    def invoke(self, rest: list[str], body: bytes) -> None:
        name, _, namespace = rest[0].partition(".")
        self.server.functions_saw += self.headers.get_all("Authorization") or []
        deployment = self.server.deployments.get((name, namespace or DEFAULT_NAMESPACE))
        ports = deployment.endpoints() if deployment else []
        if not ports:
            text = f"No endpoints available for: {rest[0]}.".encode()
            self.answer(503, text, X_OpenFaaS_Internal="proxy")
            return
        try:
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", ports[0], timeout=10)
            ) as function:
                function.request(self.command, "/" + "/".join(rest[1:]), body or None)
                found = function.getresponse()
                self.answer(found.status, found.read())
        except (OSError, http.client.HTTPException):
            self.answer(500, b"Can't reach service for: it.", X_OpenFaaS_Internal="proxy")

    # -- /system/...

    def system(self, rest: list[str], body: bytes) -> None:
        config = self.server.config
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != (f"Bearer {config.token}" if config.token else expected):
            self.answer(401, b"invalid credentials", WWW_Authenticate='Basic realm="Restricted"')
        elif self.command == "GET" and rest == ["functions"]:
            here = self.query.get("namespace") or DEFAULT_NAMESPACE
            listed = [each for each in self.server.deployments.values() if each.namespace == here]
            self.answer(200, [each.told() for each in listed], Content_Type="application/json")
        elif self.command == "GET" and len(rest) == 2 and rest[0] == "function":
            self.read(rest[1])
        elif self.command == "POST" and len(rest) == 2 and rest[0] == "scale-function":
            self.scale(rest[1], json.loads(body))
        else:
            self.answer(404)

    def find(self, name: str, namespace: str | None) -> Deployment | None:
        return self.server.deployments.get((name, namespace or DEFAULT_NAMESPACE))

    def read(self, name: str) -> None:
        deployment = self.find(name, self.query.get("namespace"))
        if deployment is None:
            self.answer(404)
        else:
            self.answer(200, deployment.told(), Content_Type="application/json")

    def scale(self, name: str, order: dict[str, Any]) -> None:
        faasd = self.server.config.manner == "faasd"
        if faasd:
            deployment = self.find(order["serviceName"], order.get("namespace"))
        else:
            deployment = self.find(name, self.query.get("namespace"))
        replicas = order.get("replicas", 0)
        if not replicas and not self.server.config.zero:
            self.answer(400, b"replicas cannot be set to 0 in OpenFaaS CE\n")
        elif deployment is None and faasd:
            self.answer(404, f"service {order['serviceName']} not found".encode())
        elif deployment is None:
            self.answer(500, f"Unable to lookup function deployment {name}".encode())
        else:
            deployment.scale(replicas)
            self.answer(200 if faasd else 202)


def main() -> None:
    config = Config(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    gateway = Gateway(config)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=gateway.shutdown).start())
    try:
        gateway.serve_forever(poll_interval=0.05)
    finally:
        remove_containers(config.docker, config.run)


if __name__ == "__main__":
    main()
