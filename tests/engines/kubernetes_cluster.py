"""The cluster of the tests, as its administrator: makes functions, and stops and starts the API server."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.engines.engine import IMAGE
from tests.support.waiting import until

APPS = "/apis/apps/v1/namespaces"
CORE = "/api/v1/namespaces"
CONTAINER = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never"}


@dataclass
class Cluster:
    directory: Path

    @cached_property
    def config(self) -> Any:
        return yaml.safe_load(self.kubeconfig.read_text(encoding="utf-8"))

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def server(self) -> str:
        return str(self.config["clusters"][0]["cluster"]["server"])

    @property
    def ca(self) -> Path:
        return Path(self.config["clusters"][0]["cluster"]["certificate-authority"])

    def client(self) -> httpx2.Client:
        """As the administrator. One for each thread that probes."""
        token = self.config["users"][0]["user"]["token"]
        trust = ssl.create_default_context(cafile=str(self.ca))
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.server, verify=trust, headers=headers, timeout=10)

    @cached_property
    def http(self) -> httpx2.Client:
        return self.client()

    # Objects

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def create(self, path: str, api: str, kind: str, name: str, body: dict[str, Any], **meta: Any) -> Any:
        thing = {"apiVersion": api, "kind": kind, "metadata": {"name": name, **meta}, **body}
        return self.http.post(path, json=thing).raise_for_status().json()

    def patch(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = self.http.patch(path, content=json.dumps(body), headers=headers)
        return answer.raise_for_status().json()

    def delete(self, path: str) -> None:
        self.http.request("DELETE", path, params={"propagationPolicy": "Background"}).raise_for_status()

    def function(
        self,
        name: str,
        namespace: str,
        *,
        kind: str = "Deployment",
        replicas: int = 0,
        annotations: dict[str, str] | None = None,
        container: dict[str, Any] | None = None,
        pod: dict[str, Any] | None = None,
        spec: dict[str, Any] | None = None,
        service: str | None = "",
    ) -> None:
        """A function and its Service, of the same name unless ``service`` gives another, or ``None``."""
        labels = {"function": name}
        pod_spec = {"containers": [CONTAINER | (container or {})], "terminationGracePeriodSeconds": 1}
        body = {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec | (pod or {})},
        }
        body |= {"serviceName": name} if kind == "StatefulSet" else {}
        meta = {"annotations": annotations or {}, "labels": {"app": name}}
        path = f"{APPS}/{namespace}/{kind.lower()}s"
        self.create(path, "apps/v1", kind, name, {"spec": body | (spec or {})}, **meta)
        if service is not None:
            self.service(service or name, namespace, {"function": name})

    def service(self, name: str, namespace: str, selector: dict[str, str] | None) -> None:
        ports = [
            {"name": "admin", "port": 81, "targetPort": 81},
            {"name": "http", "port": 80, "targetPort": 8080},
        ]
        spec = {"ports": ports, **({"selector": selector} if selector else {})}
        self.create(f"{CORE}/{namespace}/services", "v1", "Service", name, {"spec": spec})

    def deployment(self, name: str, namespace: str) -> Any:
        return self.get(f"{APPS}/{namespace}/deployments/{name}")

    def scale(self, name: str, namespace: str, replicas: int) -> None:
        self.patch(f"{APPS}/{namespace}/deployments/{name}/scale", {"spec": {"replicas": replicas}})

    def generation(self, name: str, namespace: str) -> int:
        """Grows by one with each change of the desired count."""
        return int(self.deployment(name, namespace)["metadata"]["generation"])

    def pods(self, name: str, namespace: str) -> list[Any]:
        return list(self.get(f"{CORE}/{namespace}/pods?labelSelector=function={name}")["items"])

    def serves(self, client: httpx2.Client, name: str, namespace: str) -> bool:
        """Whether Kubernetes itself passes a request on to the function, through its own service proxy."""
        return client.get(f"{CORE}/{namespace}/services/{name}:http/proxy/").status_code == 200

    # Credentials

    def account(self, name: str, namespace: str) -> str:
        """Make a service account; its token."""
        self.create(f"{CORE}/{namespace}/serviceaccounts", "v1", "ServiceAccount", name, {})
        until(lambda: bool(self.token_of(name, namespace)))
        return self.token_of(name, namespace)

    def token_of(self, name: str, namespace: str) -> str:
        for secret in self.get(f"{CORE}/{namespace}/secrets")["items"]:
            owner = secret["metadata"].get("annotations", {}).get("kubernetes.io/service-account.name")
            if owner == name and "token" in (secret.get("data") or {}):
                return base64.b64decode(secret["data"]["token"]).decode()
        return ""

    def allow(self, account: str, namespace: str, rules: list[Any]) -> None:
        rbac = "rbac.authorization.k8s.io"
        path = f"/apis/{rbac}/v1/namespaces/{namespace}"
        self.create(f"{path}/roles", f"{rbac}/v1", "Role", account, {"rules": rules})
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        binding = {"subjects": [subject], "roleRef": {"apiGroup": rbac, "kind": "Role", "name": account}}
        self.create(f"{path}/rolebindings", f"{rbac}/v1", "RoleBinding", account, binding)

    def kubeconfig_for(self, directory: Path, user: dict[str, Any], server: str = "", ca: str = "") -> Path:
        cluster = {"server": server or self.server, "certificate-authority": ca or str(self.ca)}
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    # The API server

    @property
    def _pid_file(self) -> Path:
        return self.directory / "apiserver.pid"

    @property
    def apiserver(self) -> int:
        return int(self._pid_file.read_text(encoding="ascii"))

    def kill_apiserver(self) -> list[str]:
        """Kill it; the command that starts it again."""
        pid = self.apiserver
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _lives(pid))
        return command

    def start_apiserver(self, command: list[str]) -> None:
        with (self.directory / "apiserver.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.directory, stdout=log, stderr=log, start_new_session=True
            )
        process.returncode = 0  # it outlives the tests: kubernetes-down ends it
        self._pid_file.write_text(f"{process.pid}\n", encoding="ascii")
        until(self._is_up, timeout=60, pause=0.1)

    def _is_up(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
