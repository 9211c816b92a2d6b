"""Shared timing and reporting of the benchmarks.

Functions to compare are timed in one run, in alternating rounds, so that other load on the machine
affects all equally. The figure to trust is the median of the ratios within a round, not of the
times.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from randmix.runtime import host

Seconds = dict[str, list[float]]

# Every benchmark imports this module before JAX looks for devices; child processes inherit it.
host.leave_libtpu_alone()
_LOAD = round(os.getloadavg()[0], 1)


def in_turn(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> Seconds:
    """Times functions alternately, after one call of each to compile.

    Args:
        functions: by name; each waits until its work is done.
        rounds: number of rounds.
        calls: successive calls of each function per round.

    Returns:
        Name -> seconds per call, one figure per round.
    """
    for function in functions.values():
        function()
    seconds: Seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - began) / calls)
    return seconds


class Finished(NamedTuple):
    """A process that has ended.

    Attributes:
        seconds: from its start to its exit.
        megabytes: its largest resident set, in MiB.
        lines: its output, each line with the seconds since the start.
    """

    seconds: float
    megabytes: float
    lines: list[tuple[float, str]]


def python(*arguments: str, **variables: str) -> Finished:
    """Runs Python to its end, in the checkout's folder, with more environment variables.

    Raises:
        SystemExit: it failed; the message holds its output.
    """
    command, lines, began = [sys.executable, *arguments], [], time.monotonic()
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            lines.append((time.monotonic() - began, line))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        output = "".join(line for _, line in lines)
        raise SystemExit(f"{output}\n{' '.join(command)} failed; see its output above")
    return Finished(seconds, usage.ru_maxrss / 1024, lines)


def ratio(seconds: Seconds, name: str, to: str) -> float:
    """Median over the rounds of one function's time divided by another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def milliseconds(seconds: Sequence[float]) -> float:
    """Median of seconds, in ms."""
    return round(1e3 * statistics.median(seconds), 3)


def machine() -> dict[str, object]:
    """Describes the machine; the load average, from before the benchmark, shows its other work."""
    import jax

    from randmix import __version__

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": _LOAD,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "randmix": __version__,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def save(rows: Sequence[Mapping[str, object]], out: str | None) -> None:
    """Writes the rows and the machine to ``out`` as JSON, if it is given."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "rows": list(rows)}, indent=1)
        Path(out).write_text(text + "\n")


def report(rows: Sequence[Mapping[str, object]], out: str | None) -> None:
    """Prints the rows as a table, and saves them to ``out``."""
    from randmix.runtime.progress import table

    print(table(rows))
    print("measured on:", json.dumps(machine()))
    save(rows, out)
    if out:
        print(f"wrote {out}")
