"""A filter for PasteDeploy, and so for Pyramid, in an ``.ini`` file.

::

    [filter:scalezero]
    use = egg:scalezero_wsgi
    provider = docker://
    max_wait = 20s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .configured import configured

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..middleware import ScaleZeroMiddleware


def filter_factory(
    global_conf: Mapping[str, str],  # noqa: ARG001  PasteDeploy's [DEFAULT], which is for all
    **local_conf: str,
) -> Callable[[WSGIApplication], ScaleZeroMiddleware]:
    """Return what wraps an application: ``paste.filter_factory``.

    :param local_conf: the section's keys: ``provider``, and settings as in the environment.
    :raises SettingError: by what is returned: there is no provider, a setting is unknown, or a value is not
        allowed.
    """
    return lambda app: configured(app, local_conf, "")


def filter_app_factory(
    app: WSGIApplication, global_conf: Mapping[str, str], **local_conf: str
) -> ScaleZeroMiddleware:
    """Wrap an application: ``paste.filter_app_factory``; as :func:`filter_factory`."""
    return filter_factory(global_conf, **local_conf)(app)
