"""Stopping on SIGTERM and SIGINT between two steps, with everything saved; on several hosts all at the same step."""

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ClassVar, TypeVar

import jax
from jax.experimental import multihost_utils

Result = TypeVar("Result")

_POLL_SECONDS = 0.1
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "start me again"


class Preempted(Exception):
    """The run was asked to stop, and has saved all that it needs to go on."""


class StopSignals:
    """While entered, the first SIGTERM or SIGINT stops the run; a second one ends the process at once.

    One process stops after the step in which the signal came. Several stop together: JAX's preemption service, which
    has SIGTERM since jax.distributed started, lets all know and settles the step; Ctrl-C is handed on to it.

    They nest, as a sweep's does around that of each of its runs: all that are entered hear of a signal, and one that
    is entered after it has heard of it from the start.
    """

    _entered: ClassVar[list["StopSignals"]] = []

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        self._requested = any(outer._requested for outer in self._entered)
        # Python delivers signals to the main thread only; in another one there is nothing to listen to.
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
        """Whether this process has got a signal; of several none may act on that alone."""
        return self._requested and not self._several

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. On several processes all must ask, after every step."""
        return (
            multihost_utils.reached_preemption_sync_point(step)
            if self._several
            else self._requested
        )

    def interruptible(self, function: Callable[[], Result]) -> Result:
        """The function's result; on one process a signal raises `Preempted` before it is there.

        A compilation may take minutes, in which Python answers no signal. It goes on in its thread until the
        process ends.
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
