"""Which function a request is for, and which function names are valid.

A route is any callable ``environ -> (name, namespace) | None``. Names are checked here, before anything is
asked of the provider.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..model import Function, InvalidFunctionName, SettingError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    Route = Callable[[WSGIEnvironment], tuple[str, str] | None]

NAME_RULES = {
    # RFC 1123 label, as Kubernetes has it.
    "dns": re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII),
    # gateway/handlers/scaling.go of OpenFaaS takes [-a-zA-Z_0-9.]+.
    # No dot at either end: no name has one there, and dots alone would climb up a path.
    "openfaas": re.compile(r"(?!\.)[-a-zA-Z_0-9.]{1,63}(?<!\.)", re.ASCII),
}


class Names:
    """Checks the parts of a function's identity.

    :param rule: a key of ``NAME_RULES``.
    :param default_namespace: the namespace of a function that is named without one.
    :raises InvalidFunctionName: the default namespace is not a valid name.
    """

    __slots__ = ("_default_namespace", "_pattern")

    def __init__(self, rule: str = "dns", default_namespace: str = "") -> None:
        self._pattern = NAME_RULES[rule]
        self._default_namespace = ""
        self._default_namespace = self.check("name", default_namespace).namespace

    def split(self, text: str) -> Function:
        """Read ``name`` or ``name.namespace``; the namespace stands after the last dot.

        :raises InvalidFunctionName: the text is neither.
        """
        name, dot, namespace = text.rpartition(".")
        if not dot:
            return self.check(text, "")
        if not namespace:
            raise InvalidFunctionName("a namespace must follow the dot")
        return self.check(name, namespace)

    def read_text(self, text: str) -> Function:
        """Read a function from what :func:`as_text` returned for it.

        :raises InvalidFunctionName: the text is not of that form.
        """
        name, dot, namespace = text.rpartition(".")
        return self.check(name, namespace) if dot else self.check(text, "")

    def check(self, name: str, namespace: str) -> Function:
        """Return the function of that name.

        :raises InvalidFunctionName: a part is not of the allowed form.
        """
        if not self._pattern.fullmatch(name):
            raise InvalidFunctionName(f"{_decoded(name)!r} is not a function's name")
        if namespace and ("." in namespace or not self._pattern.fullmatch(namespace)):
            raise InvalidFunctionName(f"{_decoded(namespace)!r} is not a namespace")
        return Function(name, namespace or self._default_namespace)


def as_text(function: Function) -> str:
    """Return the function as one word, which :meth:`Names.read_text` can read: ``name``,
    ``name.namespace``, or ``my.name.`` for a name with a dot in it that has no namespace."""
    name, namespace = function
    return f"{name}.{namespace}" if namespace or "." in name else name


def _decoded(text: str) -> str:
    """Decode a PEP 3333 string (bytes as latin-1) as UTF-8, and cut it to a readable length."""
    return text[:80].encode("latin-1", "replace").decode("utf-8", "replace")


def by_host(template: str) -> Route:
    """Route by host name.

    :param template: such as ``"{name}.fn.example.com"`` or ``"{name}.{namespace}.example.com"``.
    :raises SettingError: the template does not hold ``{name}`` once, or has unknown names in braces.
    """
    parts = re.split(r"(\{[^}]*\})", template.lower())
    if parts[1::2] not in (["{name}"], ["{name}", "{namespace}"], ["{namespace}", "{name}"]):
        raise SettingError(
            f"by_host: {template!r} is not allowed;"
            " it must hold {name} once, and may hold {namespace} once"
        )
    pattern = re.compile("".join(f"(?P<{p[1:-1]}>[^.]+)" if p[:1] == "{" else re.escape(p) for p in parts))

    def route(environ: WSGIEnvironment) -> tuple[str, str] | None:
        host = environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")
        match = pattern.fullmatch(host.partition(":")[0].lower())
        return (match["name"], match.groupdict().get("namespace") or "") if match else None

    return route


def by_header(header: str) -> Route:
    """Route by a request header that holds ``name`` or ``name.namespace``."""
    key = "HTTP_" + header.upper().replace("-", "_")

    def route(environ: WSGIEnvironment) -> tuple[str, str] | None:
        value = environ.get(key, "").strip()
        if not value:
            return None
        name, _, namespace = value.rpartition(".")
        return (name, namespace) if name and namespace else (value, "")

    return route
