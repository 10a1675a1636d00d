"""The end of a deployment: its functions go on, or gunicorn's master takes them to zero."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.integrations import gunicorn as hooks
from scalezero_wsgi.providers.process import ProcessProvider
from tests.servers.harness import NO_CONTROL_SOCKET, Server, children, free_port, gunicorn, serving
from tests.servers.test_fleet import stop
from tests.servers.test_idle import SITE, Site
from tests.servers.test_idle_faults import answered, ask, replicas
from tests.support.waiting import until

pytestmark = [pytest.mark.server, pytest.mark.soak]

EXIT = ["-c", "tests/servers/idle_exit_conf.py", "-w", "2", "--threads", "4"]


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    ProcessProvider({}, state_dir=tmp_path / "idle" / "state").stop_all(0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """None of its functions is idle before the end."""
    return Site(tmp_path, 600.0)


def end(server: Server) -> float:
    """Have gunicorn end, and return how many seconds that takes."""
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    return time.monotonic() - begun


def test_functions_outlive_their_server(site: Site) -> None:
    with gunicorn(SITE, site.log, "-c", "tests/servers/waiting_conf.py", "-w", "2", env=site.env) as server:
        answered(site, ask(server, "f0"))
        end(server)
    assert replicas(site) == 1


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=str)
def test_the_master_stops_them_if_it_is_to(options: list[str], site: Site) -> None:
    with gunicorn(SITE, site.log, *EXIT, *options, env=site.env) as server:
        answered(site, ask(server, "f0"), ask(server, "f1"))
        took = end(server)
    assert [replicas(site, name) for name in ("f0", "f1")] == [0, 0], server.log
    assert site.events()["FunctionStopped"] == 2
    assert took < hooks.STOP_WITHIN


def test_those_stay_up_that_do_not_go_to_zero_by_themselves(site: Site) -> None:
    site.env["SCALEZERO_IDLE_DEFAULT"] = "labelled"
    with gunicorn(SITE, site.log, *EXIT, env=site.env) as server:
        answered(site, ask(server, "f0"))
        end(server)
    assert replicas(site) == 1, server.log


def test_a_worker_that_had_to_be_killed_keeps_nothing_up(site: Site) -> None:
    """By gunicorn, for its request takes longer than it waits."""
    with gunicorn(SITE, site.log, *EXIT, "--graceful-timeout", "1", env=site.env) as server:
        ask(server, "f0/30")
        until(lambda: replicas(site) == 1)
        until((site.files / "serves").exists)
        time.sleep(1.5)  # it reports that it uses the function
        end(server)
    assert replicas(site) == 0, server.log


def test_the_last_server_of_a_fleet_stops_them(tmp_path: Path, site: Site) -> None:
    url = f"sqlite://{tmp_path}/store/workers.db"
    env = {**site.env, "SCALEZERO_COORDINATION": url}
    with gunicorn(SITE, site.log, *EXIT, env=env) as last:
        with gunicorn(SITE, tmp_path / "first.log", *EXIT, env=env) as first:
            answered(site, ask(first, "f0"), ask(last, "f1"))
            end(first)
        assert [replicas(site, name) for name in ("f0", "f1")] == [1, 1]
        end(last)
    assert [replicas(site, name) for name in ("f0", "f1")] == [0, 0], last.log
    assert make_coordination(url).workers() == []


def test_a_master_that_is_replaced_leaves_them_to_the_next(tmp_path: Path, site: Site) -> None:
    port, pid_file = free_port(), tmp_path / "pid"
    # Not `python -m gunicorn`: that is no command which the old master could run again.
    command = [str(Path(sys.executable).with_name("gunicorn")), SITE, "-b", f"127.0.0.1:{port}", *EXIT]
    command += ["-k", "gthread", "-p", str(pid_file), *NO_CONTROL_SOCKET]
    with serving(command, port, site.log, site.env) as server, contextlib.ExitStack() as stack:
        answered(site, ask(server, "f0"))
        os.kill(server.process.pid, signal.SIGUSR2)
        until((tmp_path / "pid.2").exists)
        new = int((tmp_path / "pid.2").read_text())
        stack.callback(stop, new)
        until(lambda: len(children(new)) == 2)
        end(server)
        assert replicas(site) == 1
        answered(site, ask(server, "f0"))
    assert replicas(site) == 0, server.log
