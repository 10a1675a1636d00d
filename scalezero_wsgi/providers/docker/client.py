"""Clients of a Docker Engine, for the providers that use the library ``docker``.

A client is lent to one thread at a time, belongs to one process, and is made on first use: making one asks
the engine for its version. Every error becomes a :class:`~scalezero_wsgi.ProviderError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..._lib.per_process import PerProcess
from ...model import MissingExtra, ProviderError, ScaleZeroError
from ..checks import not_allowed, positive_duration
from ..url import read_url

if TYPE_CHECKING:
    from docker import DockerClient

_DEFAULT_URL = "unix:///var/run/docker.sock"
_SCHEMES = ("unix", "tcp", "http", "https")
_IDLE_CLIENTS = 8


class DockerClients:
    """Lends clients of one engine. Safe for threads and after a fork.

    :param url: ``unix:///path``, ``tcp://host:port``, ``http://…`` or ``https://…``. ``None``: what the
        variables ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say, else the usual socket.
    :param timeout: seconds (or a string such as ``"5s"``) for one request, to connect and to read each.
    :param cert_path: the directory of ``ca.pem``, ``cert.pem`` and ``key.pem``; makes ``tcp`` use TLS.
    :param extra: the extra that brings the library.
    :raises SettingError: a value is not allowed.
    :raises MissingExtra: the library is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float | str = 5.0,
        cert_path: str | None = None,
        extra: str = "docker",
    ) -> None:
        self.timeout = positive_duration("timeout", timeout)
        if url is None:
            url = os.environ.get("DOCKER_HOST") or _DEFAULT_URL
            if cert_path is None and os.environ.get("DOCKER_TLS_VERIFY"):
                cert_path = os.environ.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")
        self.url = _checked(url)
        if cert_path is not None and not Path(cert_path).is_dir():
            raise not_allowed("cert_path", cert_path, "the directory of ca.pem, cert.pem and key.pem")
        self._cert_path = cert_path
        try:
            import docker  # noqa: F401 - asks now whether it is there, so that the start fails, not a request
        except ImportError as error:
            raise MissingExtra("docker", extra) from error
        self._idle: PerProcess[deque[DockerClient]] = PerProcess(deque)

    @property
    def host(self) -> str | None:
        """The engine's host; ``None`` when it is reached by a socket of this one."""
        return None if self.url.startswith("unix:") else urlsplit(self.url).hostname

    @contextlib.contextmanager
    def use(self, timeout: float | None = None) -> Iterator[DockerClient]:
        """Lend a client to the block, and map the errors of the engine and of the transport.

        :param timeout: seconds for a request in the block, if less than the constructor's.
        :raises ProviderError: see :func:`engine_errors`; or no time is left.
        """
        timeout_left = self.timeout if timeout is None else min(self.timeout, timeout)
        if timeout_left <= 0:
            raise ProviderError("Docker engine: it has not answered in time")
        with engine_errors():
            idle = self._idle.get()
            try:
                client = idle.pop()
            except IndexError:
                client = self._make(timeout_left)
            # An attribute that each request reads; the stubs know it as whole seconds.
            client.api.timeout = timeout_left  # type: ignore[assignment, unused-ignore]
            try:
                yield client
            finally:
                # Also after an error: the pool below drops a connection that broke.
                if len(idle) < _IDLE_CLIENTS:
                    idle.append(client)
                else:
                    client.close()

    @contextlib.contextmanager
    def events(
        self, filters: Mapping[str, Sequence[str]], timeout: float | None = None
    ) -> Iterator[EngineEvents]:
        """Subscribe to the engine's events for the time of the block.

        :param filters: as the engine's API takes them: ``{"type": ["container"], "label": ["a=b"]}``.
        :param timeout: seconds within which the engine must take the subscription.
        :raises ProviderError: see :meth:`use`.
        """
        with self.use(timeout) as client:
            api = client.api
            # The engine answers a moment before it has subscribed; what happens in between is in its log.
            params = {"filters": json.dumps(filters), "since": f"{time.time():.9f}"}
            # Not the library's own events(): that waits without a limit.
            response = api.get(
                f"{api.base_url}/v{api.api_version}/events", params=params, stream=True, timeout=api.timeout
            )
            with contextlib.closing(response):
                response.raise_for_status()
                yield EngineEvents(response.raw.fileno())

    def close(self) -> None:
        """Close this process's idle clients. Those that are needed later are made anew."""
        idle = self._idle.get()
        with contextlib.suppress(IndexError):
            while True:
                idle.pop().close()

    def _make(self, timeout_left: float) -> DockerClient:
        import docker

        tls: Any = False
        if self._cert_path is not None:
            path = Path(self._cert_path)
            tls = docker.tls.TLSConfig(
                client_cert=(str(path / "cert.pem"), str(path / "key.pem")),
                ca_cert=str(path / "ca.pem"),
                verify=True,
            )
        return docker.DockerClient(base_url=self.url, timeout=timeout_left, tls=tls)  # type: ignore[arg-type]


class EngineEvents:
    """A subscription. It says that something happened, not what: the engine is then asked for its state.

    So the stream needs no parsing, and whatever the layers above the socket have buffered already happened
    before the query that follows :meth:`DockerClients.events`.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait(self, timeout: float) -> bool:
        """Wait until something happens, and return whether it has.

        :param timeout: seconds.
        :raises ProviderError: the engine ended the stream.
        """
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if not poller.poll(max(0.0, timeout) * 1000):
            return False
        try:
            if os.read(self._fd, 65536):
                return True
        except BlockingIOError:
            return False
        raise ProviderError("Docker engine: it ended the stream of events")


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Make a :class:`~scalezero_wsgi.ProviderError` of what the library, its transport or an answer that
    makes no sense raises. ``docker.errors.NotFound`` as well: catch it inside the block where it is an
    answer.

    :raises ProviderError: its message is fit for a log.
    """
    from docker.errors import APIError, DockerException
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ScaleZeroError:
        raise
    except APIError as error:
        raise ProviderError(f"Docker engine: {error.status_code}: {error.explanation or error}") from error
    except (DockerException, RequestException, HTTPError, OSError) as error:
        raise ProviderError(f"Docker engine: {type(error).__name__}: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ProviderError(f"Docker engine: nonsense was answered: {error!r}") from error


def engine_url(url: str, name: str, allowed: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
    """Split a provider's URL into the engine's and the keywords.

    :param url: ``<name>://`` for the engine that the environment names, or ``<name>+`` and the engine's own
        URL, such as ``docker+unix:///run/docker.sock``; keywords as query parameters.
    :param name: the provider's name.
    :param allowed: the keywords.
    :return: the engine's URL, or ``None``; and the keywords.
    :raises SettingError: it is another URL, or a keyword is unknown.
    """
    parts, keywords = read_url(url, allowed)
    if parts.scheme == name and not (parts.netloc or parts.path or parts.fragment):
        return None, keywords
    if parts.scheme.startswith(f"{name}+"):
        scheme = parts.scheme.removeprefix(f"{name}+")
        return _checked(f"{scheme}://{parts.netloc}{parts.path}"), keywords
    allowed_urls = f"{name}://, {name}+unix:///path or {name}+tcp://host:port"
    raise not_allowed("provider", _without_login(parts.geturl()), allowed_urls)


def _checked(url: object) -> str:
    if isinstance(url, str):
        try:
            parts = urlsplit(url)
            address = parts.path if parts.scheme == "unix" else parts.hostname and parts.port
        except ValueError:
            address = None
        plain = not (parts.query or parts.fragment or "@" in parts.netloc) if address else False
        if address and plain and parts.scheme in _SCHEMES and not (parts.scheme == "unix" and parts.netloc):
            return url
        url = _without_login(url)
    allowed = "unix:///path, tcp://host:port, http://host:port or https://host:port, without a login"
    raise not_allowed("url", url, allowed)


def _without_login(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2]
