"""How SIGINT, SIGTERM and SIGHUP end our programs: in one line, from the package's import on.

A signal ends a program at once and without Python's own shutdown, in which a half-imported or
compiling JAX crashes. Training holds signals back instead, until it has saved
(``preemption.StopSignals``). A program that was started with a signal ignored, as nohup does with
SIGHUP, keeps ignoring it.

The exit status is 130 for Ctrl-C; 75, "start me again", for SIGTERM and SIGHUP, which come from a
machine that is needed elsewhere, and for Ctrl-C if something has been saved.

``python -m randmix COMMAND``, ``python -m randmix.main`` and the script ``randmix`` import the
package before anything else of it, and the package imports this module first, so it imports little.
In any other process nothing happens until ``listen``.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130
_PATIENCE = 1.0  # seconds that native code may keep Python from handling a signal

_listening = False
_saved = False
_finished: int | None = None
_clean_ups: list[Callable[[], object]] = []
_ending = False


def is_program() -> bool:
    """Whether this process is the script ``randmix``, or ``python -m`` with a module of ours."""
    if sys.argv[:1] == ["-m"]:  # so it is until Python has found the module
        module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
        return module.partition(".")[0] == "randmix"
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "randmix"


def listen() -> None:
    """Makes signals end this program; for the main thread of a program of this package."""
    global _listening
    _listening = True
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def watch() -> None:
    """Starts a thread for signals that come in native code, such as a long compilation.

    Python calls handlers between two instructions of the main thread. A second after a signal that
    should have ended the program, the thread does it.
    """
    import threading  # not at the top: there every import is time without a handler

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def status(number: int | None, *, saved: bool) -> int:
    """Returns the exit status of a program that a signal stopped; None is another host's signal."""
    return INTERRUPTED if number == signal.SIGINT and not saved and not _saved else START_AGAIN


def saved() -> None:
    """Notes that this program has saved something: the same command will not start over."""
    global _saved
    _saved = True


def finished(exit_status: int) -> None:
    """Notes that all work is done; a signal now merely hastens the end, with this status."""
    global _finished
    _finished = exit_status


def ignore() -> None:
    """Ignores signals from now on, for Python's shutdown, which resets their handlers."""
    for number in NUMBERS:
        if signal.getsignal(number) is end:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def clean_up(function: Callable[[], object]) -> Iterator[None]:
    """Calls ``function`` if a signal ends the program in this context, and lets signals do so.

    Signals that ``preemption.StopSignals`` would hold back are not: this is for work that may take
    hours, such as preparing a data set, and that is of no use half done.
    """
    import threading

    held_back = {}
    if _listening and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in NUMBERS}
        held_back = {n: h for n, h in handlers.items() if h not in (end, signal.SIG_IGN)}
    _clean_ups.append(function)
    try:
        for number in held_back:
            signal.signal(number, end)
        yield
    finally:
        _clean_ups.remove(function)
        for number, handler in held_back.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Prints to nowhere if the terminal has gone, where the next line would raise an exception."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def end(number: int, frame: FrameType | None = None) -> None:
    """Ends the program; the handler of all three signals."""
    global _ending
    if not _ending:  # a second signal doesn't wait for the first one's cleaning up
        _ending = True
        for function in reversed(_clean_ups):
            with contextlib.suppress(Exception):
                function()
        with contextlib.suppress(Exception):  # the signal may have come within a print
            sys.stdout.flush()
    _exit(number)


def _exit(number: int) -> None:
    if _finished is not None:
        os._exit(_finished)
    if number != signal.SIGINT:
        line = f"stopped by {signal.Signals(number).name}; start the same command again"
    elif _saved:
        line = "interrupted; all is saved, and the same command resumes"
    else:
        line = "interrupted"
    with contextlib.suppress(OSError):  # the terminal or the reader may be gone
        if os.isatty(1):
            os.write(1, b"\r\x1b[K\x1b[?25h")  # clears a progress bar, and shows the cursor again
        os.write(2, f"randmix: {line}\n".encode())
    os._exit(status(number, saved=False))


def _watch(reader: int) -> None:
    while True:
        number = os.read(reader, 1)[0]
        if signal.getsignal(number) is end:
            time.sleep(_PATIENCE)
            if not _clean_ups:
                _exit(number)
