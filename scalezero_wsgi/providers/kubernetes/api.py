"""The Kubernetes API as the provider asks it: JSON in and out, each call within a deadline.

The configuration, the credentials and TLS are lightkube's; :mod:`.provider` says why it is this library.
Its own watch reads without a time-out, so a server that hangs would hold it for ever. Hence the requests are
made here, on an HTTP client that is made of lightkube's parameters. An answer is bounded: 16 MiB in no coding
(:mod:`..answer`), and a deadline for the whole of it (:mod:`.bounds`).
"""

from __future__ import annotations

import json
import os
import ssl
import time
import weakref
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..._lib.per_process import PerProcess
from ...model import MissingExtra, ProviderError, SettingError
from ..answer import read_lines, read_whole
from . import bounds

if TYPE_CHECKING:
    import httpx2
    from lightkube.config.kubeconfig import SingleConfig

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds its credentials."""

MERGE_PATCH = "application/merge-patch+json"


class ApiError(ProviderError):
    """The API server answered, and it is not what was asked for.

    :ivar status: the HTTP status.
    :ivar missing: the name of the object that the server says is not there.
    """

    def __init__(self, message: str, status: int, missing: str | None = None) -> None:
        self.status = status
        self.missing = missing
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object, and when the server sent it: seconds since the epoch, by the server's clock."""

    body: Any
    date: float


class KubernetesApi:
    """One API server. Safe for threads and after a fork: each process makes a client on first use.

    The service account's token is read again when the server refuses it. A new CA, or a kubeconfig that was
    written anew, counts from the first call after one that failed for it.

    :param kubeconfig: a file; ``None``: the service account's credentials in a pod, else
        ``$KUBECONFIG``, else ``~/.kube/config``.
    :param context: of the kubeconfig; ``None``: its current one.
    :raises MissingExtra: lightkube is not installed.
    :raises SettingError: there is no such configuration, or it cannot be read.
    """

    def __init__(self, kubeconfig: str | os.PathLike[str] | None, context: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._load()
        self._slot: PerProcess[_Slot] = PerProcess(_Slot)

    def get(self, path: str, deadline: float, **params: str) -> Answer:
        """Ask for an object or a list.

        :param deadline: monotonic seconds.
        :raises ApiError: the server refused.
        :raises ProviderError: it was not reached, or its answer is late, too long or no JSON.
        """
        return self._ask("GET", path, deadline, params=params)

    def patch(self, path: str, body: object, deadline: float) -> Answer:
        """Change an object by a merge patch, which is never stale; raises as :meth:`get`."""
        headers = {"Content-Type": MERGE_PATCH}
        return self._ask("PATCH", path, deadline, content=json.dumps(body), headers=headers)

    def watch(self, path: str, seconds: float, **params: str) -> Generator[tuple[str, Any], None, None]:
        """Yield the type and the object of each event, for ``seconds`` at most, or until the stream breaks.

        :raises ApiError: the server refused, or ended the stream with an error such as 410, Gone.
        """
        deadline = time.monotonic() + seconds
        # The server ends the stream after whole seconds, and the connection can serve again. The time-out of
        # a read is for a server that hangs, and for the rest of a second.
        params |= {"watch": "true", "timeoutSeconds": str(max(1, int(seconds - 0.2)))}
        with _OpenResponse(self, "GET", path, deadline, params=params) as (response, pieces):
            if response.status_code != 200:
                body = read_whole(pieces, "Kubernetes")
                raise _refusal("watch", path, response.status_code, _json(body))
            for line in read_lines(pieces, "Kubernetes"):
                event = _json(line)
                if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
                    raise ProviderError(f"Kubernetes sent no event, watching {path}")
                if event.get("type") == "ERROR":
                    raise _refusal("watch", path, int(event["object"].get("code") or 500), event["object"])
                yield str(event.get("type")), event["object"]
                if time.monotonic() >= deadline:
                    return

    def _ask(self, method: str, path: str, deadline: float, **options: Any) -> Answer:
        with _OpenResponse(self, method, path, deadline, **options) as (response, pieces):
            body = _json(read_whole(pieces, "Kubernetes"))
        if response.status_code >= 400:
            raise _refusal(method, path, response.status_code, body)
        if not isinstance(body, dict):
            raise ProviderError(
                f"Kubernetes answered {method} {path} with {response.status_code} and no JSON object"
            )
        return Answer(body, _epoch(response.headers.get("Date")))

    def _load(self) -> SingleConfig:
        try:
            from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig
            from lightkube.core.exceptions import ConfigError
        except ImportError as error:
            raise MissingExtra("lightkube", "kubernetes") from error
        in_pod = (
            self._kubeconfig is None and self._context is None and Path(SERVICE_ACCOUNT, "token").exists()
        )
        file = self._kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG
        source = str(SERVICE_ACCOUNT if in_pod else file)
        try:
            config = KubeConfig.from_service_account(source) if in_pod else KubeConfig.from_file(source)
            return cast("SingleConfig", config.get(self._context))
        except Exception as error:  # noqa: BLE001 - whatever a malformed file leads lightkube to
            context = "" if self._context is None else f", context {self._context!r}"
            # A parser's message may quote the file, and so a token.
            why = f": {error}" if isinstance(error, (ConfigError, LookupError, OSError)) else ""
            raise SettingError(
                f"kubeconfig: {source!r}{context} cannot be used; allowed are a kubeconfig file,"
                f" or None in a pod ({type(error).__name__}{why})"
            ) from (error if why else None)

    def _client(self) -> _Client:
        slot = self._slot.get()
        client = slot.client
        if client is None:
            client = slot.client = _Client(self._load())
        return client

    def _forget(self, client: _Client) -> None:
        """Read configuration and CA anew for the next call. Whoever still uses the old client may go on."""
        slot = self._slot.get()
        if slot.client is client:
            slot.client = None


class _Slot:
    client: _Client | None = None


class _Client:
    """An HTTP client that closes its connections once nobody uses it any more, never during a call."""

    def __init__(self, config: SingleConfig) -> None:
        import httpx2
        from lightkube.config.client_adapter import ConnectionParams

        # As many connections as there are callers: the default of 100 would make the next one wait.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        self.http = httpx2.Client(**ConnectionParams().httpx_params(config), limits=limits)
        bounds.bind(self.http)
        weakref.finalize(self, self.http.close).atexit = False


class _OpenResponse:
    """A response, and the pieces of its body; all that can go wrong meanwhile is a ProviderError.

    :param deadline: monotonic seconds by which the answer must have been read.
    """

    def __init__(self, api: KubernetesApi, method: str, path: str, deadline: float, **options: Any) -> None:
        self._api = api
        self._what = f"{method} {path}"
        self._call = (method, path)
        self._deadline = deadline
        self._options = options | {"timeout": max(deadline - time.monotonic(), 0.001)}

    def __enter__(self) -> tuple[httpx2.Response, Iterator[bytes]]:
        self._client: _Client | None = None
        try:
            self._client = self._api._client()
            http = self._client.http
            with bounds.until(self._deadline):
                self._response = http.send(http.build_request(*self._call, **self._options), stream=True)
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - of the transport, TLS, a token's file, an exec plugin
            raise self._error(error) from _quotable(error)
        if self._response.status_code == 401:
            self._api._forget(self._client)
        return self._response, self._pieces()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._response.close()
        if isinstance(error, Exception) and not isinstance(error, ProviderError):
            raise self._error(error) from _quotable(error)

    def _pieces(self) -> Iterator[bytes]:
        pieces = self._response.iter_raw()
        while True:
            # Not around the yield: the caller may make other calls before the next piece.
            with bounds.until(self._deadline):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _error(self, error: Exception) -> ProviderError:
        if self._client is not None and _is_untrusted_certificate(error):
            self._api._forget(self._client)
        why = f": {error}" if _quotable(error) else ""
        return ProviderError(f"Kubernetes cannot be asked for {self._what}: {type(error).__name__}{why}")


def _quotable(error: Exception) -> Exception | None:
    """Return the error if it may be quoted: not one that quotes an impossible header, and so a token."""
    return None if type(error).__name__ == "LocalProtocolError" else error


def _is_untrusted_certificate(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _json(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None


def _refusal(method: str, path: str, status: int, body: object) -> ApiError:
    """Return the error for a ``Status`` object; its message says which permission or object is missing."""
    message, missing = "", None
    if isinstance(body, Mapping):
        message = str(body.get("message") or "")
        details = body.get("details")
        if body.get("reason") == "NotFound" and isinstance(details, Mapping):
            missing = details.get("name")
    return ApiError(f"Kubernetes refused {method} {path}: {status} {message[:300]}".rstrip(), status, missing)


def _epoch(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return time.time()
