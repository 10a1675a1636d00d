"""A POST to a URL when a function was started, failed to start, was stopped or paused.

::

    ScaleZeroMiddleware(app, provider, hooks=[Webhook("https://example.com/hook", secret="whsec_...")])

The body is the event as JSON (:func:`scalezero_wsgi.events.as_dict`) with its ``time``, in seconds since the
epoch. It is signed as https://www.standardwebhooks.com has it, by ``webhook-id``, ``webhook-timestamp`` and
``webhook-signature``: the receiver can check it with that project's libraries, and tell a repeated delivery
from a new one.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from .._lib.backoff import backoff_step
from .._lib.per_process import PerProcess
from ..events import Event, FunctionPaused, FunctionReady, FunctionStopped, StartFailed, as_dict
from ..model import SettingError

logger = logging.getLogger("scalezero_wsgi")

WAITING = 1000
"""Deliveries that may wait in a process; what comes beyond is logged and dropped."""

TRIES = 5
"""How often one is tried, with pauses of 1, 2, 4 and 8 s."""

TIMEOUT = 5.0
"""Seconds for the receiver to take the connection, and for each read of its answer."""

AT_EXIT = 2.0
"""Seconds that a process waits at its end for what is still to be delivered."""


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        return False


class _Delivery(NamedTuple):
    id: str
    time: int
    body: bytes


class _Outbox:
    """What one process has to deliver. Several may be made at first: one is kept, and has a thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.deliveries: queue.Queue[_Delivery] = queue.Queue(WAITING)
        self.is_served = False


class Webhook:
    """A hook that sends events from a thread of its own, one after another.

    Safe for threads and after a fork. Of a start and of a failed start one worker of the fleet tells.

    :param url: of the receiver, ``https://`` or ``http://``.
    :param secret: the key of the signature, ``"whsec_"`` and base64; ``None``: nothing is signed.
    :param clock: seconds since the epoch.
    :param pause: sleeps for some seconds, between two tries.
    :raises SettingError: the URL or the secret is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        if not _is_http(url):
            raise SettingError(f"webhook: {url!r} is not allowed; it must be an http:// or https:// URL")
        self._url = url
        self._key = None if secret is None else _key(secret)
        self._clock = clock
        self._pause = pause
        self._outbox = PerProcess(_Outbox)

    def __call__(self, event: Event) -> None:
        """Have the event sent, if it is one of those."""
        match event:
            case FunctionReady(led=False):
                return
            case FunctionReady() | StartFailed() | FunctionStopped() | FunctionPaused():
                now = self._clock()
                body = json.dumps({"time": round(now, 6), **as_dict(event)}).encode()
                try:
                    self._deliveries().put_nowait(_Delivery(f"msg_{uuid.uuid4().hex}", int(now), body))
                except queue.Full:
                    logger.warning("webhook: more than %d events wait; one is dropped", WAITING)

    def _deliveries(self) -> queue.Queue[_Delivery]:
        outbox = self._outbox.get()
        deliveries = outbox.deliveries
        with outbox.lock:
            if not outbox.is_served:
                threading.Thread(
                    target=self._run, args=(deliveries,), name="scalezero-webhook", daemon=True
                ).start()
                atexit.register(_finish, deliveries, os.getpid())
                outbox.is_served = True
        return deliveries

    def _run(self, deliveries: queue.Queue[_Delivery]) -> None:
        while True:
            delivery = deliveries.get()
            try:
                self._deliver(delivery)
            except Exception:
                logger.exception("webhook: a delivery failed")
            finally:
                deliveries.task_done()

    def _deliver(self, delivery: _Delivery) -> None:
        import requests  # late: an application without a webhook should not pay for it

        for times in range(1, TRIES + 1):
            # The time of this try: receivers refuse what is older than five minutes.
            delivery = delivery._replace(time=int(self._clock()))
            headers = {
                "Content-Type": "application/json",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(delivery.time),
            }
            if self._key is not None:
                headers["webhook-signature"] = _signature(self._key, delivery)
            try:
                answer = requests.post(
                    self._url, delivery.body, headers=headers, timeout=TIMEOUT, allow_redirects=False
                )
                problem = f"it answered {answer.status_code}"
                if 200 <= answer.status_code < 300:
                    return
                if answer.status_code == 410:  # as the specification has it: the receiver wants no more
                    break
            except requests.RequestException as error:
                problem = f"{type(error).__name__}"  # its text has the URL, which may hold a secret
            if times < TRIES:
                self._pause(backoff_step(times))
        logger.warning("webhook: the event %s was not delivered: %s", delivery.id, problem)


def _finish(deliveries: queue.Queue[_Delivery], pid: int) -> None:
    """Wait for what is to be delivered, if this is the process that it is of."""
    deadline = time.monotonic() + AT_EXIT
    while pid == os.getpid() and deliveries.unfinished_tasks and time.monotonic() < deadline:
        time.sleep(0.02)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < 24:  # not shown
        raise SettingError(
            "webhook: the secret is not allowed; it must be 'whsec_' and 24 bytes or more in base64"
        )
    return key


def _signature(key: bytes, delivery: _Delivery) -> str:
    signed = f"{delivery.id}.{delivery.time}.".encode() + delivery.body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
