"""A Flask extension, configured by ``SCALEZERO_*`` in ``app.config``.

::

    app = Flask(__name__)
    ScaleZero(app, "docker://", max_wait="20s")
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Unpack

from ..model import Function, MissingExtra, ScaleZeroError, SettingError
from ..operate import functions_of, going_up, row_of, table
from .configured import configured

try:
    import click
    from flask import Flask, current_app
    from flask.cli import AppGroup
except ImportError:
    raise MissingExtra("flask", "flask") from None

if TYPE_CHECKING:
    from ..middleware import ScaleZeroMiddleware
    from ..providers.base import Provider
    from ..settings import SettingKeywords

EXTENSION = "scalezero"


class ScaleZero:
    """Has the functions that a Flask application proxies to scaled up on demand.

    What is given here goes before ``app.config``, and that before the defaults. The middleware is
    ``app.extensions["scalezero"]``. It lies around ``app.wsgi_app`` as that is now: what shall see a request
    before it is set afterwards.

    :param app: the application, or ``None``: it is given to :meth:`init_app` later.
    :param provider: an object, or the name or URL of one; ``None``: the configuration's
        ``SCALEZERO_PROVIDER``.
    :param keywords: settings, as of :class:`~scalezero_wsgi.ScaleZeroMiddleware`.
    :raises SettingError: there is no provider, a setting is unknown, or a value is not allowed.
    """

    def __init__(
        self,
        app: Flask | None = None,
        provider: Provider | str | None = None,
        **keywords: Unpack[SettingKeywords],
    ) -> None:
        self._provider = provider
        self._keywords = keywords
        if app is not None:
            self.init_app(app)

    def init_app(
        self, app: Flask, provider: Provider | str | None = None, **keywords: Unpack[SettingKeywords]
    ) -> None:
        """Wrap an application; arguments as of the class, before which they go.

        :raises SettingError: as of the class; or the application is wrapped already.
        """
        if EXTENSION in app.extensions:
            raise SettingError(f"the application {app.name!r} has its ScaleZero already")
        given: dict[str, Any] = {**self._keywords, **keywords}
        chosen = self._provider if provider is None else provider
        middleware = configured(app.wsgi_app, app.config, "SCALEZERO_", chosen, given)
        app.wsgi_app = middleware  # type: ignore[method-assign]
        app.extensions[EXTENSION] = middleware
        app.cli.add_command(commands)


commands = AppGroup("scalezero", help="Look at the functions behind this application, wake and stop them.")


def _middleware() -> ScaleZeroMiddleware:
    middleware: ScaleZeroMiddleware = current_app.extensions[EXTENSION]
    return middleware


def _function(name: str) -> Function:
    try:
        return _middleware().function(name)
    except ScaleZeroError as error:
        raise click.ClickException(str(error)) from None


@commands.command("status")
def status() -> None:
    """List the functions that the provider knows, with their replicas."""
    try:
        seen = functions_of(_middleware().provider)
    except ScaleZeroError as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(list(map(row_of, seen))))


@commands.command("wake")
@click.argument("name")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until it is available.")
def wake(name: str, timeout: float) -> None:
    """Start a function, and wait until it is available."""
    function, begun = _function(name), time.monotonic()
    try:
        for status in going_up(_middleware().provider, function, timeout):
            click.echo(f"{function}: {status.available_replicas} of {status.replicas} available", err=True)
    except ScaleZeroError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{function} is available after {time.monotonic() - begun:.1f} s")


@commands.command("stop")
@click.argument("name")
def stop(name: str) -> None:
    """Scale a function to zero, whoever uses it; the next request starts it again."""
    function = _function(name)
    provider = _middleware().provider
    try:
        provider.get_replicas(*function)  # raises for one that is not known, which set_replicas need not
        provider.set_replicas(*function, 0)
    except ScaleZeroError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{function} is at zero, or on its way")
