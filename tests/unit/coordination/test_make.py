from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scalezero_wsgi import Function, MissingExtra, SettingError
from scalezero_wsgi.coordination import make_coordination
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.redis import RedisCoordination
from scalezero_wsgi.coordination.sqlite import SQLiteCoordination
from scalezero_wsgi.settings import Settings
from tests.servers.harness import ROOT


def test_memory() -> None:
    assert isinstance(make_coordination("memory://"), MemoryCoordination)


@pytest.mark.parametrize("slashes", ["", "/"])
def test_sqlite(tmp_path: Path, slashes: str) -> None:
    """With three slashes, or with four as elsewhere."""
    store = make_coordination(f"sqlite://{slashes}{tmp_path}/a%20b%3F/x.db")
    assert isinstance(store, SQLiteCoordination)
    assert store.acquire(Function("hello"), "a", 1.0) is not None
    assert (tmp_path / "a b?" / "x.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///1",
        "redis://host",
        "redis://host:6380/2",
        "redis://user:s%2Fcret@host/0?prefix=p%3A1&socket_timeout=5",
        "redis://[::1]:6379/0",
        "rediss://:secret@host?ssl_cert_reqs=none",
        "unix:///run/redis.sock",
        "unix://user:secret@/run/redis.sock?db=1&prefix=x",
        "redis+sentinel://host/mymaster",
        "redis+sentinel://user:secret@a,b:26380,[::1]:26381/mymaster/1?sentinel_password=other",
        "rediss+sentinel://a/mymaster",
        "redis+cluster://host",
        "rediss+cluster://user:secret@a:7000,b:7001/?prefix=x",
    ],
)
def test_redis(url: str) -> None:
    """Nothing is asked of a server yet."""
    store = make_coordination(url)
    assert isinstance(store, RedisCoordination)
    assert "secret" not in repr(store)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://x",
        "sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite:///tmp/",
        "sqlite://relative.db",
        "sqlite:///x.db?secret=1",
        "redis:secret@host",
        "http://:secret@host",
        "redis+foo://:secret@host",
        "redis://:se/secret@host",
        "redis://:se?secret@host",
        "redis://:1#secret@host",
        "redis://:1/secret@host",
        "redis://:secret@host:port",
        "redis://:secret@host:70000",
        "redis://:secret@host/db",
        "redis://:secret@host/0/1",
        "redis://:secret@host/0?db",
        "redis://:secret@host/0?db=x",
        "redis://:secret@host?no_such_option=1",
        "redis://:secret@[::1",
        "redis+sentinel://:secret@host",
        "redis+sentinel://:secret@host/",
        "redis+sentinel://:secret@host/mymaster/x",
        "redis+sentinel://:secret@a,,b/mymaster",
        "redis+sentinel://:secret@a:x/mymaster",
        "redis+cluster://",
        "redis+cluster://:secret@a/1",
        "redis+cluster://:secret@a?no_such_option=1",
    ],
)
def test_a_wrong_url_is_refused_and_not_repeated(url: str) -> None:
    """The error says what is allowed; the URL may hold a password."""
    with pytest.raises(SettingError) as caught:
        make_coordination(url)
    assert "redis://" in str(caught.value) or "option that redis-py does not know" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite:////x.db"])
def test_a_path_that_was_meant_to_be_relative_is_told_as_it_is_understood(url: str) -> None:
    """With three slashes it is relative for SQLAlchemy."""
    with pytest.raises(SettingError) as caught:
        Settings(coordination=url)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"coordination: {url!r} is not allowed; it means the file /x.db, in the root directory, because the"
        " path after 'sqlite://' is absolute: write it whole, such as 'sqlite:///var/lib/app/scalezero/x.db'"
    )


def test_a_file_that_cannot_be_used_is_named_whole(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    url = f"sqlite://{tmp_path}/x%20y.db"
    with pytest.raises(SettingError) as caught:
        make_coordination(url)
    assert f"{url!r} is not allowed; it means the file {tmp_path}/x y.db: " in str(caught.value)
    assert "is open to others" in str(caught.value)


def test_the_setting_tells_no_password_either() -> None:
    with pytest.raises(SettingError) as caught:
        Settings(coordination="redis://:secret@host/x")  # type: ignore[arg-type]
    assert str(caught.value).startswith("coordination: the URL cannot be read; it must be redis://")
    assert "secret" not in str(caught.value)


def test_a_store_of_ones_own_is_taken() -> None:
    store = MemoryCoordination()
    assert Settings(coordination=store).coordination is store


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scalezero_wsgi.coordination.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"scalezero_wsgi\[redis\]"):
        make_coordination("redis://host")


def test_nothing_is_imported_that_is_not_used() -> None:
    code = (
        "import sys, scalezero_wsgi\n"
        "from scalezero_wsgi.coordination import make_coordination\n"
        "make_coordination('memory://')\n"
        "sys.exit(', '.join({'redis', 'sqlite3'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("url", ["memory", "mysql://host", "sqlite://relative", "unix+sentinel:///socket"])
def test_a_wrong_url_without_a_password_is_named(url: str) -> None:
    with pytest.raises(SettingError, match=r" is not allowed; it must be memory://, sqlite://") as caught:
        make_coordination(url)
    assert repr(url) in str(caught.value)
