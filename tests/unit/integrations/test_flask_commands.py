"""``flask scalezero``."""

from __future__ import annotations

from flask import Flask

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.integrations.flask import ScaleZero


class Provider:
    def list_functions(self) -> list[Function]:
        return [Function("hello"), Function("bad")]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return ReplicaStatus(1, 1) if name == "hello" else ReplicaStatus(1, 0, failure="no\ndatabase")

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...


def test_status_is_the_table_of_the_command() -> None:
    app = Flask("site")
    ScaleZero(app, Provider())
    assert app.test_cli_runner().invoke(args=["scalezero", "status"]).output.splitlines() == [
        "NAME   STATE   AVAILABLE  WHY",
        "bad    failed  0 of 1     no | database",
        "hello  ready   1 of 1",
    ]
