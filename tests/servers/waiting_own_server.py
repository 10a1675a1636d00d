"""gunicorn started by a program that has made its application before: ``waiting_own_server.py PORT``."""

import sys
from typing import Any

from gunicorn.app.base import BaseApplication

from tests.servers.matrix_site import application


class Server(BaseApplication):
    def load_config(self) -> None:
        self.cfg.set("bind", f"127.0.0.1:{sys.argv[1]}")
        self.cfg.set("timeout", 20)
        self.cfg.set("control_socket_disable", True)

    def load(self) -> Any:
        return application


Server().run()
