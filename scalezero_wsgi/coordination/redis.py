"""The store of workers on many hosts: a Redis server, of Redis 5 or later.

Scripts compare and set in one step. Each function has a channel on which its changes are published. Every key
has a time to live. All times are the server's. The client library is the extra ``redis``.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from .._lib.per_process import PerProcess
from ..model import Function, MissingExtra, SettingError
from .base import Changes, CoordinationError, Drain, Lease, SharedStatus, WorkerReport
from .codec import pack, pack_row, read_drain, unpack, unpack_row

try:
    redis: Any = import_module("redis")  # as Any: the types differ between the supported versions
except ImportError:
    raise MissingExtra("redis", "redis") from None

ALLOWED = (
    "redis://[[user]:password@]host[:port][/db], rediss://… with TLS, unix:///path/of/socket[?db=n],"
    " redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/service[/db],"
    " redis+cluster://[[user]:password@]host[:port][,host[:port]…], each with ?option=value as redis-py has"
    " them; special characters percent-encoded"
)

# The server's time in seconds. It is formatted as text below, because Lua prints numbers with 14 digits only.
_NOW = "local t = redis.call('TIME'); local now = t[1] + t[2] / 1000000\n"

# KEYS: lease. ARGV: ttl in ms. A token is the server's time in microseconds: it is never given twice, even
# after a flush, and needs no counter for each function.
_ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local t = redis.call('TIME')
local token = t[1] .. string.format('%06d', t[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
return token
"""

# KEYS: lease. ARGV: token.
_HELD = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n"

# ARGV: token, ttl in ms.
_RENEW = _HELD + "return redis.call('PEXPIRE', KEYS[1], ARGV[2])"

# ARGV: token, channel.
_RELEASE = _HELD + "redis.call('DEL', KEYS[1]); return redis.call('PUBLISH', ARGV[2], '1')"

# KEYS: lease, known. ARGV: token, channel, time to live in ms, record.
_PUBLISH = f"""{_HELD}{_NOW}
redis.call('SET', KEYS[2], string.format('%.6f ', now) .. ARGV[4], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[2], '1')
return 1
"""

# KEYS: known.
_KNOWN = f"""{_NOW}
return {{string.format('%.6f', now), redis.call('GET', KEYS[1])}}
"""

# KEYS: workers, a hash of "<expires> <record>". ARGV: ttl in ms, worker, record.
_REPORT = f"""{_NOW}
local rows = redis.call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
    local expires = tonumber(string.match(rows[i + 1], '^%S+') or '') or 0
    if expires <= now then redis.call('HDEL', KEYS[1], rows[i]) end
end
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.6f ', now + ARGV[1] / 1000) .. ARGV[3])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
"""

# KEYS: drains, a hash of "<expires> <phase> <epoch>". ARGV: function, before, after, time to keep in ms. An
# empty text is no drain.
_CHANGE_DRAIN = f"""{_NOW}
local rows = redis.call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
    local expires = tonumber(string.match(rows[i + 1], '^%S+') or '') or 0
    if expires <= now then redis.call('HDEL', KEYS[1], rows[i]) end
end
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if string.gsub(held, '^%S+ ', '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
    return 1
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.6f ', now + ARGV[4] / 1000) .. ARGV[3])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""

# KEYS: workers, or drains.
_WORKERS = f"""{_NOW}
return {{string.format('%.6f', now), redis.call('HGETALL', KEYS[1])}}
"""

# KEYS: workers. ARGV: worker.
_LEAVE = "return redis.call('HDEL', KEYS[1], ARGV[1])"


class _Changes:
    """A subscription that is made on the first wait, so that leaders need no connection of their own.

    The server confirms a subscription, and one that is made again on a new connection, with a message. It
    counts as a change, so that the caller reads again.
    """

    def __init__(self, client: Callable[[], Any], channel: str) -> None:
        self._client = client
        self._channel = channel
        self._subscription: Any = None

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with _errors():
            if self._subscription is None:
                self._subscription = self._client().pubsub()
                self._subscription.subscribe(self._channel)
            if self._subscription.get_message(timeout=max(0.0, timeout)) is None:
                return False
            # Take all messages that have arrived: the caller reads once for all of them.
            while time.monotonic() < deadline and self._subscription.get_message() is not None:
                pass
        return True

    def close(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(CoordinationError), _errors():
                self._subscription.close()


class RedisCoordination:
    """The store of many hosts. It is safe for threads and after a fork.

    :param url: ``redis://``, ``rediss://`` or ``unix://`` as redis-py takes it, with its options as a query.
        For Sentinel ``redis+sentinel://host:26379,host:26379/service/0`` (``sentinel_username`` and
        ``sentinel_password`` are the sentinels' own), for Cluster ``redis+cluster://host:6379,host:6379``;
        both with ``rediss`` for TLS.
    :param prefix: the prefix of all keys and channels; also as ``?prefix=`` in the URL.
    :param timeout: seconds within which the server must answer, unless the URL says otherwise. A leader
        acquires its lease, reads and renews it: three calls, which must fit into the lease's 2 s.
    :raises SettingError: the URL cannot be read.
    :raises MissingExtra: on import of this module: the library ``redis`` is not installed.
    """

    def __init__(self, url: str, *, prefix: str = "scalezero", timeout: float = 0.5) -> None:
        server = _parse_url(url, timeout)
        self._prefix = server.options.pop("prefix", prefix)
        if not self._prefix or re.search("[{}]", self._prefix):
            raise SettingError(f"prefix: {self._prefix!r} is not allowed; it must be a text without braces")
        _check_options(server.options)
        self._client: PerProcess[Any] = PerProcess(lambda: _connect(server))

    def acquire(self, function: Function, worker: str, ttl: float) -> Lease | None:
        """See :class:`~scalezero_wsgi.coordination.base.Coordination`, as for all methods."""
        token = self._run(_ACQUIRE, [self._key(function, "lease")], _milliseconds(ttl))
        return None if token is None else Lease(function, worker, int(token))

    def renew(self, lease: Lease, ttl: float) -> bool:
        """Extend the lease."""
        keys = [self._key(lease.function, "lease")]
        return bool(self._run(_RENEW, keys, lease.token, _milliseconds(ttl)))

    def release(self, lease: Lease) -> None:
        """Release the lease."""
        keys = [self._key(lease.function, "lease")]
        self._run(_RELEASE, keys, lease.token, self._key(lease.function, "changes"))

    def publish(self, lease: Lease, known: SharedStatus) -> bool:
        """Replace the shared status."""
        keys = [self._key(lease.function, "lease"), self._key(lease.function, "known")]
        keep = _milliseconds(known.keep)
        channel = self._key(lease.function, "changes")
        return bool(self._run(_PUBLISH, keys, lease.token, channel, keep, pack(known)))

    def known(self, function: Function) -> SharedStatus | None:
        """Return the shared status."""
        now, found = self._run(_KNOWN, [self._key(function, "known")])
        if not found:
            return None
        published_at, record = _split_time(found)
        return unpack(record, float(now) - published_at)

    @contextlib.contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        """Subscribe to changes."""
        changes = _Changes(self._client.get, self._key(function, "changes"))
        try:
            yield changes
        finally:
            changes.close()

    def report(self, row: WorkerReport, ttl: float) -> None:
        """Replace the worker's report."""
        self._run(_REPORT, [self._workers], _milliseconds(ttl), row.worker, pack_row(row))

    def leave(self, worker: str) -> None:
        """Remove the worker's report."""
        self._run(_LEAVE, [self._workers], worker)

    def workers(self) -> Sequence[WorkerReport]:
        """Return the reports that have not expired."""
        now, found = self._run(_WORKERS, [self._workers])
        rows = [(worker, *_split_time(text)) for worker, text in zip(found[::2], found[1::2], strict=True)]
        return [unpack_row(worker, record) for worker, expires, record in rows if float(now) < expires]

    def drains(self) -> Mapping[Function, Drain]:
        """Return the drains that are remembered."""
        now, found = self._run(_WORKERS, [self._drains])
        drains = {}
        for key, text in zip(found[::2], found[1::2], strict=True):
            expires, record = _split_time(text)
            name, _, namespace = key.partition("/")
            if float(now) < expires:
                phase, _, epoch = record.partition(" ")
                drains[Function(name, namespace)] = read_drain(phase, epoch)
        return drains

    def change_drain(
        self, function: Function, before: Drain | None, after: Drain | None, keep: float
    ) -> bool:
        """Compare and set the function's drain."""
        drains = [f"{drain.phase.value} {drain.epoch}" if drain else "" for drain in (before, after)]
        key = f"{function.name}/{function.namespace}"
        return bool(self._run(_CHANGE_DRAIN, [self._drains], key, *drains, _milliseconds(keep)))

    @property
    def _drains(self) -> str:
        return f"{self._prefix}:drains"

    @property
    def _workers(self) -> str:
        return f"{self._prefix}:workers"

    def _key(self, function: Function, kind: str) -> str:
        # The braces put a function's keys into one slot of a cluster. No name contains a slash.
        return f"{self._prefix}:{{{function.name}/{function.namespace}}}:{kind}"

    def _run(self, script: str, keys: list[str], *arguments: Any) -> Any:
        with _errors():
            return self._client.get().register_script(script)(keys=keys, args=arguments)


class _Server(NamedTuple):
    """The server that a URL names.

    :ivar kind: ``""``, ``"sentinel"`` or ``"cluster"``.
    :ivar hosts: hosts and ports of the sentinels or of the cluster's nodes.
    :ivar service: the service's name at the sentinels.
    :ivar options: arguments of redis-py's connections.
    """

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: dict[str, Any]


def _parse_url(url: str, timeout: float) -> _Server:
    """Return the server that the URL names.

    :raises SettingError: the URL cannot be parsed. The text contains nothing of the URL, which may hold a
        password.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "decode_responses": True,
        # Retry once and at once, for a connection that a restart of the server has cut. The library's
        # default may go on for half a minute.
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1, (redis.ConnectionError,)),
        "max_connections": 10_000,
    }
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        if parts.query:
            parse_qsl(parts.query, strict_parsing=True)
        if parts.fragment or kind not in ("", "sentinel", "cluster") or (kind and scheme == "unix"):
            raise ValueError
        service, path = _parse_service(parts.path) if kind == "sentinel" else ("", parts.path)
        if scheme != "unix" and not re.fullmatch(r"/?" if kind == "cluster" else r"/?|/\d+", path):
            raise ValueError
        user, at, hosts = parts.netloc.rpartition("@")
        plain = f"{scheme}://{user}{at}localhost{path}?{parts.query}" if kind else url
        options.update(redis.connection.parse_url(plain))
        port = 26379 if kind == "sentinel" else 6379
        nodes = [_parse_host(each, port) for each in hosts.split(",")] if kind else []
        return _Server(kind, nodes, service, options)
    except ValueError:
        raise SettingError(f"the URL cannot be read; it must be {ALLOWED}") from None


def _parse_service(path: str) -> tuple[str, str]:
    match = re.fullmatch(r"/([^/]+)(/\d*)?", path)
    if match is None:
        raise ValueError
    return match[1], match[2] or ""


def _parse_host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port


def _check_options(options: dict[str, Any]) -> None:
    of_server = {name: value for name, value in options.items() if not name.startswith("sentinel_")}
    try:
        redis.ConnectionPool(**of_server).make_connection()
    except (TypeError, ValueError, redis.RedisError):
        raise SettingError(
            "the URL has an option that redis-py does not know, or not with that value"
        ) from None


def _connect(server: _Server) -> Any:
    options = dict(server.options)
    if not server.kind:
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    options["ssl"] = options.pop("connection_class", None) is not None
    options.pop("host", None)
    if server.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(*host) for host in server.hosts]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    of_sentinels = {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
    }
    of_both = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout", "ssl", "retry")}
    sentinel = redis.Sentinel(server.hosts, sentinel_kwargs={**of_both, **of_sentinels})
    return sentinel.master_for(server.service, **options)


def _split_time(text: str) -> tuple[float, str]:
    """Split a value of the form ``"<seconds> <record>"``."""
    seconds, _, record = text.partition(" ")
    try:
        return float(seconds), record
    except ValueError:
        return math.inf, text  # not written by this package: reading the record will fail


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise CoordinationError(f"{type(error).__name__}: {error}") from error
