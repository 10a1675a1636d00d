"""A provider's URL: its address, and the constructor's keywords as query parameters."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ..model import SettingError


def read_url(url: str, keywords: Collection[str]) -> tuple[SplitResult, dict[str, str]]:
    """Split a provider's URL into its address and its parameters.

    :param keywords: which query parameters are allowed.
    :return: the URL without its query, and the parameters.
    :raises SettingError: a parameter is unknown, or given twice; the message holds no credentials.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SettingError(f"provider {url.partition(':')[0]}: its URL cannot be read") from None
    chosen: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in keywords:
            raise SettingError(
                f"provider {parts.scheme}: {name!r} is not a parameter; there are: {', '.join(keywords)}"
            )
        if name in chosen:
            raise SettingError(f"provider {parts.scheme}: {name!r} is given twice")
        chosen[name] = value
    return parts._replace(query=""), chosen
