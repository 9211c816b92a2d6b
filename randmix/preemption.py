"""Stopping on SIGTERM and SIGINT between two steps, with everything saved."""

import signal
import threading
from types import FrameType

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "start me again"


class Preempted(Exception):
    """The run was asked to stop, and has saved all that it needs to go on."""


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets ``requested``; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        # Python delivers signals to the main thread only; in another one there is nothing to listen to.
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
