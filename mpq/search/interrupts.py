"""Ctrl-C and SIGTERM, held back while a study is written to.

A `KeyboardInterrupt` can come out between any two lines of Python. Inside of a transaction of a
storage it comes out as something else, or leaves a trial half told; so the loop of a search lets
it through where nothing is open: while a plan is measured, and between trials.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context that delivers signals at safe points only; the second one is delivered at once.

    To deliver is to call the handler that was there before, which raises `KeyboardInterrupt`.
    Signals that Python does not handle (ignored, or left to the system) stay as they are, and so
    do all of them outside of the main thread. Whatever exception leaves the context after a
    signal was delivered, it leaves as a `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held: int | None = None
        self._num_seen = 0
        self._is_open = False

    def __enter__(self) -> "Interrupts":
        self._handlers, self._held, self._num_seen = {}, None, 0
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._num_seen and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error

    def deliver(self) -> None:
        """A safe point: delivers the signal that is held back, if there is one.

        Raises:
            KeyboardInterrupt: There is one (unless its own handler does something else).
        """
        if self._held is not None:
            number, self._held = self._held, None
            self._handlers[number](number, None)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context in which signals are delivered at once."""
        self._is_open = True
        try:
            self.deliver()
            yield
        finally:
            self._is_open = False
        if self._num_seen:
            # What is raised inside of a finaliser is printed and lost.
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._num_seen += 1
        if self._is_open or self._num_seen > 1:
            self._held = None
            self._handlers[number](number, frame)
        else:
            self._held = number
