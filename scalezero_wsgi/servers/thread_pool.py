"""A thread pool in which a thread that waits does not count.

It has ``slots`` threads that work, and one more for each that has given its slot back. It is made for
gunicorn's gthread worker, and is what that uses of a :class:`concurrent.futures.ThreadPoolExecutor`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar, final

from .._lib.per_process import PerProcess
from .line import Line, Ticket

STACK_SIZE = 8 * 1024 * 1024
"""Bytes of address space for a thread's stack; what it does not touch takes no memory.

CPython's limits of recursion are made for 8 MiB. With 1 MiB ``json.loads("[" * 200_000)`` ends the process on
CPython 3.13, and with 2 MiB a recursive ``sorted`` does; so no request may be served on less, and musl's
128 KiB are too few in any case.
"""

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("scalezero_wsgi")

# threading.stack_size() is the process's own: it is changed for a moment, by one thread at a time.
_changing_stack_size = PerProcess(lambda: threading.Lock())


@contextlib.contextmanager
def stated_stack_size() -> Iterator[None]:
    """Give threads that are started in the block a stack of :data:`STACK_SIZE`."""
    with _changing_stack_size.get():
        before = threading.stack_size(STACK_SIZE)
        try:
            yield
        finally:
            threading.stack_size(before)


@final
class _Task:
    __slots__ = ("_arguments", "_function", "_keywords", "future")

    def __init__(self, function: Callable[..., Any], arguments: Any, keywords: Any) -> None:
        self.future: Future[Any] = Future()
        self._function = function
        self._arguments = arguments
        self._keywords = keywords

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function(*self._arguments, **self._keywords)
        except BaseException as error:  # noqa: BLE001  as an executor does, SystemExit too
            self.future.set_exception(error)
            self = None  # type: ignore[assignment]  # else the traceback and the future keep each other
        else:
            self.future.set_result(result)


@final
class PoolThread(threading.Thread):
    """A thread of a pool, by which a request finds the pool that serves it.

    :ivar task: what it is to do next; ``None``: end.
    :ivar turn: held until there is a next task, while the thread is idle.
    """

    def __init__(self, pool: ThreadPool, task: _Task, name: str) -> None:
        # Not joined before atexit, where idle threads are told to end.
        super().__init__(name=name, daemon=True)
        self.pool = pool
        self.task: _Task | None = task
        self.turn = threading.Lock()
        self.turn.acquire()

    def run(self) -> None:
        """Do what the pool has to do."""
        task = self.task
        while task is not None:
            self.task = None
            try:
                task.run()
            except BaseException:  # noqa: BLE001  a callback of the future; the thread has to go on
                _log.exception("a thread pool's task failed outside of its function")
            del task  # else an idle thread keeps the last request
            task = self.pool._next(self)
        self.pool._left(self)


@final
class ThreadPool(Executor):
    """Runs at most ``slots`` calls at once, those that have given their slot back not counted.

    Of one process: not to be used after a fork. Safe for threads. See :class:`~.line.Slots`.

    :param slots: how many calls run at once.
    :param room: how many requests may wait without a slot.
    """

    def __init__(self, slots: int, room: int) -> None:
        self.slots = slots
        self.room = room
        self.waiting = 0
        self._lock = threading.Lock()
        self._line = Line()
        self._idle: list[PoolThread] = []
        self._threads: set[PoolThread] = set()
        self._active = 0  # threads that have a slot, the idle ones included
        self._started = 0
        self._ended = False
        self._pid = os.getpid()
        atexit.register(self._join)

    # What an executor does

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called; return at once.

        :raises RuntimeError: the pool was shut down, or has no thread and could not start one.
        """
        task = _Task(fn, args, kwargs)
        with self._lock:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._idle:
                self._wake_idle(task)
                return task.future
            self._line.append(task)
            tasks = self._fill()
        self._start(tasks)
        if tasks:
            with self._lock:
                if self._active + self.waiting == 0 and self._line:  # nobody will come free
                    self._line.take_new()
                    raise RuntimeError("can't start new thread")
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the threads when they have done what was submitted.

        :param wait: whether to block until they have ended.
        :param cancel_futures: whether to cancel what has not begun.
        """
        with self._lock:
            self._ended = True
            while self._idle:
                self._wake_idle(None)
                self._active -= 1
            cancelled = self._line.take_new() if cancel_futures else []
        for task in cancelled:
            task.future.cancel()
        if wait:
            self._join()

    def _join(self) -> None:
        atexit.unregister(self._join)
        if os.getpid() != self._pid:
            return
        self.shutdown(wait=False)
        while True:
            with self._lock:
                thread = next(iter(self._threads - {threading.current_thread()}), None)
            if thread is None:
                return
            thread.join()

    # Slots

    def give_back(self) -> None:
        """Give the slot back; a thread is started for whoever is next."""
        with self._lock:
            self.waiting += 1
            self._active -= 1
            tasks = self._fill()
        self._start(tasks)

    def take(self) -> None:
        """Take a slot again; block until there is one."""
        ticket = Ticket()
        with self._lock:
            self.waiting -= 1
            if self._idle:
                self._wake_idle(None)
                return
            self._line.append(ticket)
            tasks = self._fill()
        self._start(tasks)
        ticket.wait()

    def take_at_once(self) -> None:
        """Take a slot that there may not be; the next thread that comes free ends for it."""
        with self._lock:
            self.waiting -= 1
            if self._idle:
                self._wake_idle(None)
            else:
                self._active += 1

    # Threads

    def _fill(self) -> list[_Task]:
        """Give free slots to those who are next; return the tasks that each need a new thread."""
        tasks = []
        while self._active < self.slots and self._line:
            self._active += 1
            item = self._line.popleft()
            if isinstance(item, Ticket):
                item.serve()
            else:
                tasks.append(item)
        return tasks

    def _start(self, tasks: list[_Task]) -> None:
        for task in tasks:
            with self._lock:
                self._started += 1
                thread = PoolThread(self, task, f"slot-{self._started}")
                self._threads.add(thread)
            try:
                with stated_stack_size():
                    thread.start()
            except RuntimeError:  # can't start new thread
                self._left(thread)
                with self._lock:
                    self._line.appendleft(task)  # whoever comes free takes it
                    ticket = self._line.pop_returning()
                    if ticket is None:
                        self._active -= 1
                    else:
                        ticket.serve()

    def _left(self, thread: PoolThread) -> None:
        with self._lock:
            self._threads.discard(thread)

    def _wake_idle(self, task: _Task | None) -> None:
        """Give an idle thread something to do; ``None``: it ends, and its slot is the caller's."""
        thread = self._idle.pop()
        thread.task = task
        thread.turn.release()

    def _next(self, thread: PoolThread) -> _Task | None:
        """Block until there is something for a thread to do; ``None``: it is to end."""
        with self._lock:
            too_many = self._active > self.slots
            if self._line and not too_many:
                item: Ticket | _Task = self._line.popleft()
                if not isinstance(item, Ticket):
                    return item
                item.serve()  # the slot is its own now
                return None
            if too_many or self._ended:
                self._active -= 1
                return None
            self._idle.append(thread)
        thread.turn.acquire()
        return thread.task
