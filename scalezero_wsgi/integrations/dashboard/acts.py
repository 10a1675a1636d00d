"""What the buttons do, and what is said then."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from ...activation.by_hand import Stopped
from ...activation.idling.drain import Outcome
from ...model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    ProviderError,
    ScaleZeroError,
)
from .overview import Overview

if TYPE_CHECKING:
    from ...middleware import ScaleZeroMiddleware

logger = logging.getLogger("scalezero_wsgi")

ACTS = ("/wake", "/stop", "/keep-up")

KEEP_UP = 3600.0
"""Seconds for which the button keeps a function up."""

STOP_PATIENCE = 10.0
"""Seconds for which the answer to a stop waits for its end."""

PROVIDER_PATIENCE = 1.0
"""Seconds for which the provider is given to say whether there is a function that nobody has seen yet."""


class Said(NamedTuple):
    """What became of a form.

    :ivar may_cut: whether the function can be stopped if its requests are cut.
    """

    status: HTTPStatus
    text: str
    may_cut: bool = False


class Acts:
    """Safe for threads and after a fork."""

    def __init__(self, middleware: ScaleZeroMiddleware, overview: Overview) -> None:
        self._middleware = middleware
        self._by_hand = middleware.by_hand
        self._overview = overview

    @property
    def can_keep_up(self) -> bool:
        """Whether there is anything that functions can be kept up against."""
        return self._by_hand.can_keep_up

    def __call__(self, act: str, key: str, cut: bool, multiprocess: bool) -> Said:
        """Do it, and return what to say.

        :param act: one of ``ACTS``.
        :param key: the function, as a row or a person names it.
        :param cut: whether requests in flight may be cut.
        :param multiprocess: whether the server has other processes that serve the same application.
        """
        said = self._do(act, key, cut, multiprocess)
        self._overview.forget()
        logger.info("dashboard, %s%s: %s", act[1:], " and cut" if cut else "", said.text)
        return said

    def _do(self, act: str, key: str, cut: bool, multiprocess: bool) -> Said:
        try:
            function = self._function(key)
            match act:
                case "/wake":
                    self._by_hand.start(function, multiprocess)
                    return Said(HTTPStatus.ACCEPTED, f"{function} is being started.")
                case "/keep-up":
                    self._by_hand.keep_up(function, KEEP_UP, multiprocess)
                    return Said(HTTPStatus.ACCEPTED, f"{function} is kept up for an hour.")
            return self._stop(function, cut, multiprocess)
        except InvalidFunctionName as error:
            return Said(HTTPStatus.BAD_REQUEST, f"{error}.")
        except FunctionNotFound:
            return Said(HTTPStatus.NOT_FOUND, f"There is no function {key}.")
        except FunctionFailed as error:
            left = f"{max(1.0, error.retry_after):.0f} s"
            return Said(HTTPStatus.CONFLICT, f"{key} rests for {left} after a failed start: {error.reason}")
        except ScaleZeroError as error:
            return Said(HTTPStatus.SERVICE_UNAVAILABLE, f"That was not done: {error}.")

    def _function(self, key: str) -> Function:
        """Return the function that a form names.

        :raises InvalidFunctionName: none can be called so.
        :raises FunctionNotFound: there is none.
        :raises ProviderError: nobody has seen it, and the provider does not answer.
        """
        found = self._overview.find(key)
        if found is not None:
            return found
        middleware = self._middleware
        function = middleware.function(key)
        if middleware.serves(function):
            error = middleware.scaler.wait_for_refresh(function, PROVIDER_PATIENCE)
            if middleware.cache.find(function) is not None:
                return function
            if error is not None:
                raise ProviderError("the provider does not answer")
        raise FunctionNotFound(*function)

    def _stop(self, function: Function, cut: bool, multiprocess: bool) -> Said:
        flight = self._by_hand.stop(function, cut, multiprocess)
        if not flight.wait(STOP_PATIENCE):
            return Said(HTTPStatus.ACCEPTED, f"{function} is being stopped.")
        return _what_became(function, flight.result())


def _what_became(function: Function, stopped: Stopped) -> Said:
    """Return what to say after a stop.

    :raises FunctionNotFound: there is no such function any more.
    """
    one = stopped.in_use == 1
    count = "1 request" if one else f"{stopped.in_use:,} requests"
    refused = f"{function} was not stopped"
    match stopped.outcome:
        case Outcome.STOPPED if stopped.in_use:
            text = f"{count} in flight or waiting then may have been cut."
            return Said(HTTPStatus.OK, f"{function} was stopped; {text}")
        case Outcome.STOPPED:
            return Said(HTTPStatus.OK, f"{function} was stopped. No request was in flight.")
        case Outcome.AT_ZERO:
            return Said(HTTPStatus.OK, f"{function} is at zero already.")
        case Outcome.GONE:
            raise FunctionNotFound(*function)
        case Outcome.CANCELLED if stopped.in_use:
            text = f"{refused}: {count} {'is' if one else 'are'} in flight or waiting."
            return Said(HTTPStatus.CONFLICT, text, may_cut=True)
        case Outcome.CANCELLED:
            return Said(HTTPStatus.CONFLICT, f"{refused}: a request came.", may_cut=True)
        case Outcome.VETOED:
            text = f"{refused}: it serves no request, and says that it is busy."
            return Said(HTTPStatus.CONFLICT, text, may_cut=True)
    return Said(HTTPStatus.CONFLICT, f"{refused}: {stopped.reason or stopped.outcome.value}.")
