"""Stopping on SIGTERM and SIGINT between two steps with everything saved, on all hosts together."""

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, TypeVar

import jax
from jax.experimental import multihost_utils

Result = TypeVar("Result")

_POLL_SECONDS = 0.1
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "start me again"


class Preempted(Exception):
    """Raised when the run was asked to stop and has saved all that it needs to resume."""


class StopSignals:
    """A context in which the first SIGTERM or SIGINT stops the run; a second one kills the process.

    A single process stops after the current step. Several processes stop together: JAX's preemption
    service, which handles SIGTERM once jax.distributed has started, informs all of them and chooses
    the step; Ctrl-C is forwarded to it.

    Contexts nest, as a sweep's does around those of its runs. A signal reaches every context that
    is active, and a context entered after a signal starts out as signalled.
    """

    _entered: ClassVar[list["StopSignals"]] = []

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._requested = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        self._requested = any(outer._requested for outer in self._entered)
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread() and not self._requested:
            listened = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
            self._previous = {s: signal.signal(s, self._request) for s in listened}
        self._entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.remove(self)
        self._restore()

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
                    raise Preempted("stopped while compiling, with nothing new to save") from None
                continue
            if error is not None:
                raise error
            return result

    def _request(self, number: int, frame: FrameType | None) -> None:
        for stop in reversed(self._entered):
            stop._requested = True
            stop._restore()
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
