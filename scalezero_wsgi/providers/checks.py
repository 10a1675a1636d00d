"""The checks of a setting's value that the providers share, and the errors that name what is allowed."""

from __future__ import annotations

import re

from .._lib.durations import seconds
from ..model import ProviderError, SettingError

URL_PATH = re.compile(r"/[!-~]*", re.ASCII)
"""A path to probe, percent-encoded: nothing in it may end the request line."""

READY_LABEL_ALLOWED = "tcp, or a path such as / or /healthz, percent-encoded"
"""What the label ``scalezero.ready`` may say."""


def not_allowed(setting: str, value: object, allowed: str) -> SettingError:
    """Return the error that names a setting, its value and what is allowed."""
    return SettingError(_message(setting, value, allowed))


def label_not_allowed(label: str, value: str, allowed: str) -> ProviderError:
    """Return the error that names a function's label, its value and what is allowed.

    :param label: the label, with what it belongs to in front.
    """
    return ProviderError(_message(label, value, allowed))


def _message(what: str, value: object, allowed: str) -> str:
    return f"{what} = {value!r} is not allowed; it must be {allowed}"


def duration(setting: str, value: object) -> float:
    """Read a duration of 0 seconds or more, from a number of seconds or a string such as ``"5s"``.

    :return: seconds.
    :raises SettingError: it names the setting, its value and what is allowed.
    """
    try:
        return seconds(value)
    except ValueError as error:
        raise SettingError(f"{setting}: {error}") from error


def positive_duration(setting: str, value: object) -> float:
    """Read a duration of more than 0 seconds; otherwise as :func:`duration`."""
    result = duration(setting, value)
    if not result:
        raise not_allowed(setting, value, "more than 0 seconds")
    return result
