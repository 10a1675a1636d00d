"""The recipes' files in front of real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.engines.docker_box import HTTPD, PREFIX
from tests.engines.engine import IMAGE, build_image, engine
from tests.engines.kubernetes_cluster import Cluster
from tests.servers.harness import ROOT, gunicorn

pytestmark = pytest.mark.engine

EXAMPLES = ROOT / "tests" / "examples"


@pytest.fixture
def functions(tmp_path: Path) -> Iterator[str]:
    """The function of the Compose file, as Compose makes it but for image and command. The engine's URL."""
    url = f"unix://{engine('SCALEZERO_TEST_DOCKER')}/docker.sock"
    build_image(url, tmp_path)
    compose = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    hello, network = compose["services"]["hello"], compose["networks"]["functions"]["name"]
    api: Any = docker.APIClient(base_url=url, timeout=20)
    made = api.create_network(network, "bridge")["Id"]
    container = api.create_container(
        IMAGE,
        HTTPD,
        name=f"{PREFIX}shop-hello-1",
        labels={
            **hello["labels"],
            "com.docker.compose.project": "shop",
            "com.docker.compose.service": "hello",
        },
        ports=[int(port) for port in hello["expose"]],
        stop_timeout=0,
        networking_config=api.create_networking_config({network: api.create_endpoint_config()}),
    )
    yield url
    api.remove_container(container, force=True)
    api.remove_network(made)
    api.close()


def test_the_app_behind_flask_wakes_its_compose_service(functions: str, tmp_path: Path) -> None:
    env = {"DOCKER_HOST": functions, "PYTHONPATH": f"{EXAMPLES / 'compose'}:{ROOT}", "TMPDIR": str(tmp_path)}
    options = ["--workers", "2", "--threads", "16", "-c", "python:scalezero_wsgi.integrations.gunicorn"]
    with gunicorn("flask_app:app", tmp_path / "log", *options, env=env) as server:
        answer = server.get("/function/hello/")
        assert (answer.status_code, answer.text) == (200, "hello from busybox\n"), server.log
        assert "Server-Timing" in answer.headers
        assert server.get("/function/another").status_code == 404


def kept(sent: object, answered: object) -> bool:
    """Whether everything that was sent came back: an API server drops the fields that it does not know."""
    if isinstance(sent, dict):
        there = answered if isinstance(answered, dict) else {}
        return all(key in there and kept(value, there[key]) for key, value in sent.items())
    if isinstance(sent, list):
        return isinstance(answered, list) and all(map(kept, sent, answered))
    return sent == answered


def test_an_api_server_takes_what_is_to_be_deployed() -> None:
    """As a dry run: the image is in no registry that a test reaches."""
    cluster = Cluster(engine("SCALEZERO_TEST_KUBERNETES"))
    role = (ROOT / "tests" / "engines" / "kubernetes_role.yaml").read_text(encoding="utf-8")
    rest = (EXAMPLES / "kubernetes" / "scalezero.yaml").read_text(encoding="utf-8")
    things = [*yaml.safe_load_all(role), *yaml.safe_load_all(rest)]
    assert len(things) == 5
    for thing in things:
        api, kind = thing["apiVersion"], f"{thing['kind'].lower()}s"
        path = f"/{'apis' if '/' in api else 'api'}/{api}/namespaces/default/{kind}"
        answer = cluster.http.post(path, params={"dryRun": "All"}, json=thing)
        assert answer.status_code == 201, answer.text
        assert kept(thing, answer.json()), answer.text
    cluster.http.close()
