"""The HTML pages: one to wait on while a function starts, and one for failures, in the same style.

They have no inline script, style or handler, so a strict Content-Security-Policy refuses nothing. Without
JavaScript the waking page reloads itself. Every value is escaped.

A custom waking page is a file in the form of :class:`string.Template` (write ``$$`` for a dollar sign). It
may use these placeholders, all of them optional:

=============  ==============================================================================================
``$function``  the function, ``name`` or ``name.namespace``
``$elapsed``   seconds since its start began, with one decimal
``$expected``  seconds that a start usually takes, with one decimal; ``0.0`` when that is not known
``$progress``  HTML: elapsed and expected time in words, and a bar
``$history``   HTML: a plot of the last starts; empty before the first
``$refresh``   whole seconds after which a page without JavaScript should reload itself
``$status``    the URL that tells how far the start has come (JSON)
``$script``    the URL of the script that polls ``$status``, and reloads the page when the function is ready
``$style``     the URL of our style sheet
``$base``      the URL below which all of these are
=============  ==============================================================================================

The script needs one element with the attributes ``data-function="$function" data-status="$status"
data-elapsed="$elapsed" data-expected="$expected"``. It also uses the elements with these ids, if
they exist: ``heading``, ``going`` (hidden once the start has ended), ``note`` (says what happens) and
``again`` (shown when the reader has to try again).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

from ..model import Function, SettingError
from ..web.routing import as_text
from .plot import in_words, plot

_ASSETS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
}
_PLACEHOLDERS = [
    *("function", "elapsed", "expected", "progress", "history", "refresh"),
    *("status", "script", "style", "base"),
]

REFRESH_AT_MOST = 5
"""The longest time, in seconds, after which a page without JavaScript reloads itself."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'"
)
"""The Content-Security-Policy of our own pages. They may be framed, as the function itself may be."""

DASHBOARD_POLICY = POLICY.replace("form-action 'none'", "form-action 'self'; frame-ancestors 'none'")
"""The same for pages with buttons, which nobody is to lay under another page."""

AGAIN = '<p><a class="button" href="">Try again</a></p>'


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start has come.

    :param elapsed: seconds since it began, as far as this process knows.
    :param last_starts: how long the last starts took, in seconds, the latest last.
    :param retry_after: seconds that this start will probably still take.
    :param expected: seconds that a start usually takes; 0 when that is not known.
    """

    elapsed: float
    last_starts: tuple[float, ...]
    retry_after: float
    expected: float = 0.0


NO_PROGRESS = Progress(0.0, (), 1.0)


class Asset(NamedTuple):
    """A file that a page needs.

    :ivar current: whether the request used the URL that belongs to the present content.
    """

    body: bytes
    media_type: str
    current: bool


class Pages:
    """Renders pages and serves their files. Safe for threads: the constructor reads everything.

    :param base: the path below which the middleware itself answers, such as ``"/function/.scalezero/"``.
    :param template: the path of a custom waking page; see the module.
    :raises SettingError: the template cannot be read, or has an unknown placeholder.
    """

    def __init__(self, base: str, template: str | None = None) -> None:
        self.base = base
        self.policy = POLICY if template is None else None
        """The waking page's policy; ``None`` for a custom page: only its author knows what it loads."""
        head = _read("head.html")
        self._waking = Template(head + _read("waking.html")) if template is None else _own_template(template)
        self._problem = Template(head + _read("problem.html"))
        self._functions = Template(head + _read("functions.html"))
        self._dashboard = Template(head + _read("dashboard.html"))
        self._login = Template(head + _read("login.html"))
        self._assets = {name: _read(name).encode() for name in _ASSETS}
        self._digests = {name: hashlib.sha256(body).hexdigest()[:12] for name, body in self._assets.items()}

    def waking(self, root: str, function: Function, progress: Progress) -> str:
        """Return the waking page.

        :param root: the ``SCRIPT_NAME`` of the request.
        """
        base = self._url(root)
        values = {
            "function": str(function),
            "elapsed": f"{progress.elapsed:.1f}",
            "expected": f"{progress.expected:.1f}",
            "refresh": str(_refresh(progress.retry_after)),
            "status": f"{base}status/{quote(as_text(function))}",
            **self._files(base),
        }
        return self._waking.substitute(
            {name: escape(value) for name, value in values.items()},
            progress=_progress(function, progress),
            history=plot(progress.last_starts, progress.elapsed),
        )

    def problem(
        self, root: str, status: int, phrase: str, detail: str, *, again: bool = False, call_id: str = ""
    ) -> str:
        """Return the failure page.

        :param root: the ``SCRIPT_NAME`` of the request.
        :param again: whether another try may help.
        :param call_id: the id that a reader can tell the operator.
        """
        values = {
            "status": str(status),
            "phrase": phrase,
            "detail": detail,
            "style": self._files(self._url(root))["style"],
        }
        return self._problem.substitute(
            {name: escape(value) for name, value in values.items()},
            again=AGAIN if again else "",
            call=f"<footer><small>Call {escape(call_id)}</small></footer>" if call_id else "",
        )

    def functions(self, root: str, rows: Sequence[Mapping[str, str | int]]) -> str:
        """Return the page that lists functions.

        :param root: the ``SCRIPT_NAME`` of the request.
        :param rows: of each ``function``, ``state``, ``url``, ``replicas`` and ``available_replicas``, and
            ``failure`` if there is one.
        """
        style = escape(self._files(self._url(root))["style"])
        return self._functions.substitute(style=style, rows=_table(rows))

    def dashboard(self, root: str, html: Mapping[str, str], **values: str) -> str:
        """Return the dashboard.

        :param root: the ``SCRIPT_NAME`` of the request.
        :param html: of the placeholders of its template those that are HTML.
        :param values: the others, as text.
        """
        return self._with_files(self._dashboard, root, html, values)

    def login(self, root: str, html: Mapping[str, str], **values: str) -> str:
        """Return the page on which one logs in to the dashboard; arguments as of :meth:`dashboard`."""
        return self._with_files(self._login, root, html, values)

    def _with_files(
        self, template: Template, root: str, html: Mapping[str, str], values: Mapping[str, str]
    ) -> str:
        told = {**self._files(self._url(root)), **values}
        return template.substitute({name: escape(value) for name, value in told.items()}, **html)

    def asset(self, name: str) -> Asset | None:
        """Return a file by the last part of its URL: ``page.<digest>.css``, or without the digest.

        Another digest gets the file as well: during an upgrade, the page may come from one server and its
        files from another.
        """
        stem, _, rest = name.partition(".")
        digest, _, extension = rest.rpartition(".")
        name = f"{stem}.{extension}"
        if name not in self._assets:
            return None
        return Asset(self._assets[name], _ASSETS[name], digest == self._digests[name])

    def _url(self, root: str) -> str:
        # Both are bytes as latin-1 (PEP 3333). Two slashes in front would name another host.
        path = quote(root + self.base, encoding="latin-1", errors="replace")
        return "/" + path.lstrip("/")

    def _files(self, base: str) -> dict[str, str]:
        return {
            "base": base,
            "style": f"{base}page.{self._digests['page.css']}.css",
            "script": f"{base}page.{self._digests['page.js']}.js",
            "board_style": f"{base}dashboard.{self._digests['dashboard.css']}.css",
            "board_script": f"{base}dashboard.{self._digests['dashboard.js']}.js",
        }


def _table(rows: Sequence[Mapping[str, str | int]]) -> str:
    if not rows:
        return "<p>There is none.</p>"
    head = '<tr><th scope="col">Function</th><th scope="col">State</th><th scope="col">Available</th></tr>'
    lines = []
    for row in rows:
        told = {name: escape(str(value)) for name, value in row.items()}
        failure = f"<br><small>{told['failure']}</small>" if "failure" in told else ""
        lines.append(
            f'<tr><th scope="row"><a href="{told["url"]}">{told["function"]}</a></th>'
            f"<td>{told['state']}{failure}</td>"
            f"<td>{told['available_replicas']} of {told['replicas']}</td></tr>"
        )
    return "\n".join(["<table>", f"<thead>{head}</thead>", "<tbody>", *lines, "</tbody>", "</table>"])


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _own_template(path: str) -> Template:
    try:
        template = Template(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise SettingError(f"page_template: {path!r} cannot be read: {reason}") from None
    if not template.is_valid():
        raise SettingError(
            f"page_template: {path!r} has a $ that begins no placeholder; one that is meant is $$"
        )
    unknown = [name for name in template.get_identifiers() if name not in _PLACEHOLDERS]
    if unknown:
        raise SettingError(
            f"page_template: {path!r} has the placeholder ${unknown[0]}, which is not allowed;"
            f" there are {', '.join('$' + name for name in _PLACEHOLDERS)}"
        )
    return template


def _refresh(left: float) -> int:
    """Return half of the time left, so that the last reload comes soon after the function is ready."""
    return max(1, min(REFRESH_AT_MOST, int(left / 2)))


def _progress(function: Function, progress: Progress) -> str:
    elapsed, expected = progress.elapsed, progress.expected
    so_far = f'<span id="elapsed">{in_words(elapsed)}</span> so far'
    if expected < 0.5:  # in words it would be 0 seconds
        return f'<p class="time">{so_far}</p>\n<div class="pulse"></div>'
    return (
        f'<p class="time">{so_far}, usually about {in_words(expected)}</p>\n'
        f'<progress id="bar" aria-label="Start of {escape(str(function))}"'
        f' max="{expected:.1f}" value="{min(elapsed, expected):.1f}"></progress>'
    )
