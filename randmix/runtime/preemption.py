"""Stopping on a signal between two steps with everything saved, on all hosts together."""

import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, TypeVar

import jax
from jax.experimental import multihost_utils

from randmix.runtime import signals

Result = TypeVar("Result")

_POLL_SECONDS = 0.1
_AGAIN_SECONDS = 1.0  # some programs that start others pass on a Ctrl-C that these got, too


class Preempted(Exception):
    """Raised when the run was asked to stop and has saved all that it needs to resume.

    Attributes:
        saved: whether this process has saved something.
        status: the exit status for a program, see ``randmix.runtime.signals``.
    """

    def __init__(self, message: str, *, saved: bool = True):
        super().__init__(message)
        self.saved = saved
        self.status = signals.status(StopSignals.number, saved=saved)


class StopSignals:
    """A context in which SIGINT, SIGTERM or SIGHUP stops the run, unless ignored before.

    A single process stops after the current step. Several processes stop together: JAX's preemption
    service, which handles SIGTERM once jax.distributed has started, informs all of them and chooses
    the step; Ctrl-C and SIGHUP are forwarded to it.

    While the run saves, further signals change nothing, since many come in pairs: bash passes on
    the SIGHUP of a closed terminal, and timeout sends SIGTERM twice. But whoever presses Ctrl-C
    again doesn't want to wait: what handled it before the context handles it now.

    Contexts nest, as a sweep's does around those of its runs. A signal reaches every context that
    is active, and a context entered after a signal starts out as signalled.
    """

    number: ClassVar[int | None] = None  # of the signal that stops the contexts
    _at: ClassVar[float] = 0.0  # the `time.monotonic` of that signal
    _entered: ClassVar[list["StopSignals"]] = []

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._requested = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        self._requested = any(outer._requested for outer in self._entered)
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in signals.NUMBERS:
                jax_has_it = self._several and number == signal.SIGTERM
                # None is a handler that isn't Python's and that couldn't be restored.
                if not jax_has_it and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        self._entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.remove(self)
        self._restore()
        if not self._entered:
            StopSignals.number = None

    @property
    def signalled(self) -> bool:
        """Whether this process has received a signal; False if several processes must agree."""
        return self._requested and not self._several

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; several processes must all ask after every step."""
        return (
            multihost_utils.reached_preemption_sync_point(step)
            if self._several
            else self._requested
        )

    def interruptible(self, function: Callable[[], Result]) -> Result:
        """Returns the function's result; on a single process, a signal raises `Preempted` first.

        A compilation may take minutes during which Python handles no signals. After a signal, it
        continues in its thread until the process ends.
        """
        if self._several:
            return function()
        results: queue.SimpleQueue = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((function(), None))
            except BaseException as error:
                results.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        while True:
            try:
                result, error = results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._requested:
                    raise Preempted(
                        "stopped while compiling, with nothing new to save", saved=False
                    ) from None
                continue
            if error is not None:
                raise error
            return result

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            if number == signal.SIGINT and time.monotonic() - self._at > _AGAIN_SECONDS:
                for stop in reversed(self._entered):
                    stop._restore()
                signal.raise_signal(number)
            return
        StopSignals.number, StopSignals._at = number, time.monotonic()
        for stop in self._entered:
            stop._requested = True
        if number == signal.SIGHUP:
            signals.leave_terminal()
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
