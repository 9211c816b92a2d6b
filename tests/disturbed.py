"""randmix.main with a fault in the middle of a run, in process 1 or in a run of one process.

DISTURB in the environment is SIGNAL:STEP, a real signal after that step, or several separated by
commas, one for each start of a workdir; or ELSEWHERE, a different working directory.
"""

import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

from randmix.runtime.preemption import StopSignals


def main():
    others = any(a.startswith("--process_id=") and a != "--process_id=1" for a in sys.argv)
    what = os.environ["DISTURB"]
    if what == "ELSEWHERE" and not others:
        os.chdir(tempfile.mkdtemp())
    elif what and what != "ELSEWHERE" and not others:
        disturb([event.split(":") for event in what.split(",")])
    runpy.run_module("randmix.main", run_name="__main__", alter_sys=True)


def disturb(events):
    marks = Path(os.environ["DISTURB_MARKS"])
    started = len(list(marks.iterdir()))
    if started == len(events):
        return
    name, after_step = events[started]
    inner = StopSignals.requested

    def requested(self, step):
        if step == int(after_step):
            (marks / str(started)).touch()
            os.kill(os.getpid(), getattr(signal, name))
        if step >= int(after_step):
            time.sleep(0.5)  # JAX checks for SIGTERM once per second
        return inner(self, step)

    StopSignals.requested = requested


if __name__ == "__main__":
    main()
