"""May this request wait, and until when?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from .function_cache import FunctionMeta
from .model import Function
from .scaler import FunctionScaler


class Waiting:
    """Holds requests until their function is available.

    :param max_wait: seconds that one request is held at most, counted from its arrival.
    """

    __slots__ = ("_clock", "_max_wait", "_scaler")

    def __init__(
        self, scaler: FunctionScaler, max_wait: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._scaler = scaler
        self._max_wait = max_wait
        self._clock = clock

    def hold(self, function: Function, arrived: float, *, since: float = -math.inf) -> FunctionMeta:
        """Block until the function is available.

        :param arrived: monotonic seconds at which the request came.
        :param since: take no answer of the provider from before that moment.
        :raises ScaleZeroError: it did not become available; see
            :meth:`~scalezero_wsgi.scaler.FunctionScaler.ensure_available`.
        """
        return self._scaler.ensure_available(function, arrived + self._max_wait, since=since)
