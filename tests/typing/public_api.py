"""Uses the public API as a user would. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, assert_type

from scalezero_wsgi import (
    Function,
    FunctionCache,
    FunctionMeta,
    FunctionNotFound,
    FunctionScaler,
    ReplicaStatus,
    ScaleZeroMiddleware,
    Settings,
    by_header,
    by_host,
)
from scalezero_wsgi.events import Event, FunctionEvent, FunctionReady, Hook, ScaleRequested
from scalezero_wsgi.providers import CallbackProvider, make_provider
from scalezero_wsgi.providers.base import ListingProvider, Provider, WatchingProvider
from scalezero_wsgi.proxy import FunctionProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


def get_replicas(name: str, namespace: str) -> ReplicaStatus:
    raise FunctionNotFound(name, namespace)


def set_replicas(name: str, namespace: str, replicas: int) -> None: ...


def scale_up(name: str, namespace: str) -> None: ...


class OwnProvider:
    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return ReplicaStatus(replicas=0, available_replicas=0, labels={"scalezero.max-wait": "40s"})

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...


class OwnWatchingProvider(OwnProvider):
    def wait_for_change(
        self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
    ) -> ReplicaStatus:
        return seen


class OwnListingProvider(OwnProvider):
    def list_functions(self) -> Iterable[Function]:
        return [Function("hello")]


class WithoutSetReplicas:
    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return ReplicaStatus(1, 1)


class WrongStatus:
    def get_replicas(self, name: str, namespace: str) -> int:
        return 1

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...


def hook(event: Event) -> None:
    if isinstance(event, FunctionEvent):
        assert_type(event.function, Function)
    match event:
        case ScaleRequested(function, before, replicas):
            assert_type(function, Function)
            assert_type(before, int)
            assert_type(replicas, int)
        case FunctionReady(_, after):
            assert_type(after, float)


def providers() -> None:
    own: Provider = OwnProvider()
    watching: WatchingProvider = OwnWatchingProvider()
    listing: ListingProvider = OwnListingProvider()
    assert_type(own.get_replicas("hello", ""), ReplicaStatus)
    assert_type(watching.wait_for_change("hello", "", ReplicaStatus(0, 0), 1.0), ReplicaStatus)
    assert_type(listing.list_functions(), Iterable[Function])
    assert_type(make_provider("docker", timeout="2s"), Provider)
    callback: Provider = CallbackProvider(get_replicas=get_replicas, set_replicas=set_replicas)
    pushing: Provider = CallbackProvider(scale_up=scale_up, scale_down=scale_up)
    CallbackProvider(scale_up=set_replicas)  # type: ignore[arg-type]
    CallbackProvider(get_replicas=scale_up, set_replicas=set_replicas)  # type: ignore[arg-type]
    CallbackProvider(scale_up)  # type: ignore[arg-type,call-arg]
    not_watching: WatchingProvider = OwnProvider()  # type: ignore[assignment]
    del callback, pushing, not_watching


def middleware(flask: Any) -> None:
    provider = OwnProvider()
    wrapped: WSGIApplication = ScaleZeroMiddleware(app, provider)
    ScaleZeroMiddleware(wrapped, OwnWatchingProvider())
    ScaleZeroMiddleware(FunctionProxy("http://127.0.0.1:9000/{name}"), "docker://", allow=["hello", "job-*"])
    ScaleZeroMiddleware(FunctionProxy(head_timeout=5, body_timeout=9.5, trust_forwarded=True), provider)
    ScaleZeroMiddleware(FunctionProxy(lambda function: f"http://{function.name}"), provider)
    flask.wsgi_app = ScaleZeroMiddleware(flask.wsgi_app, CallbackProvider(scale_up=scale_up))
    ScaleZeroMiddleware(app, provider, settings=Settings.from_environ(), max_wait="20s", hooks=[hook])
    ScaleZeroMiddleware(app, provider, route="/function/", max_wait=5, page_after=None, release_rate=20)
    ScaleZeroMiddleware(app, provider, max_wait_of={"model": "10m", "hello": 3.5}, cache_size=10)
    ScaleZeroMiddleware(app, provider, no_wake=lambda environ: environ["REQUEST_METHOD"] == "HEAD")
    ScaleZeroMiddleware(app, provider, no_wake=["path=/x", lambda environ: True], coordination="memory://")
    ScaleZeroMiddleware(app, provider, route=lambda environ: ("hello", ""))

    ScaleZeroMiddleware(app)  # type: ignore[call-arg]
    ScaleZeroMiddleware(app, WithoutSetReplicas())  # type: ignore[arg-type]
    ScaleZeroMiddleware(app, WrongStatus())  # type: ignore[arg-type]
    ScaleZeroMiddleware("app", provider)  # type: ignore[arg-type]
    ScaleZeroMiddleware(app, provider, max_wait=None)  # type: ignore[arg-type]
    ScaleZeroMiddleware(app, provider, max_weight=5)  # type: ignore[call-arg]
    ScaleZeroMiddleware(app, provider, hooks=[len])  # type: ignore[list-item]
    ScaleZeroMiddleware(app, provider, route=lambda environ: "hello")  # type: ignore[arg-type,return-value]
    ScaleZeroMiddleware(app, provider, settings={"max_wait": 5})  # type: ignore[arg-type]

    made = ScaleZeroMiddleware(app, provider)
    assert_type(made.cache, FunctionCache)
    assert_type(made.scaler, FunctionScaler)
    assert_type(made.settings, Settings)


def settings() -> None:
    assert_type(Settings.from_environ(), Settings)
    assert_type(Settings.from_mapping({"max_wait": "20s"}, prefix=""), Settings)
    assert_type(Settings(max_wait=20).max_wait, float)
    assert_type(Settings().allow, tuple[str, ...] | None)
    assert_type(Settings().hooks, tuple[Callable[[Event], None], ...])
    Settings(20)  # type: ignore[arg-type,call-arg]
    Settings().max_wait = 3  # type: ignore[misc]


def routes(environ: WSGIEnvironment) -> None:
    assert_type(by_host("{name}.fn.example.com")(environ), tuple[str, str] | None)
    assert_type(by_header("X-Function")(environ), tuple[str, str] | None)
    ScaleZeroMiddleware(app, OwnProvider(), route=by_host("{name}.{namespace}.example.com"))


def cache(functions: FunctionCache) -> None:
    status, fresh = functions.get("hello")
    assert_type(status, ReplicaStatus)
    assert_type(fresh, bool)
    assert_type(functions.find(Function("hello")), FunctionMeta | None)
    functions.get(3)  # type: ignore[arg-type]


own_hook: Hook = hook
