"""A run with --deterministic, stopped and resumed, held against an undisturbed one, bit by bit.

    python benchmarks/resume.py

Trains a small ConvMixer on the digits twice, in programs of their own. The second run gets a
SIGTERM after its first checkpoint, and is started again. `equal` is whether both ended with the
same log and the same bits in all variables.

Exit status: 0 if so, else 1.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing
from absl import app, flags

# What the signal campaign of the tests starts and compares runs with.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from interrupted import checkpoints, end_of, start

flags.DEFINE_integer("steps", 4000, "Steps of the run.", lower_bound=1)
flags.DEFINE_integer("checkpoint_every", 100, "Steps between checkpoints.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    # Each JAX process would take most of a GPU's memory at its start; this one compares arrays.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = Path(folder, "whole"), Path(folder, "stopped")
        finish(begin(whole))
        process = begin(stopped)
        while process.poll() is None and not checkpoints(stopped):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        if process.returncode != 75:
            sys.exit(f"resume: the run was not stopped, status {process.returncode}: {err}")
        at = max(map(int, checkpoints(stopped)))
        finish(begin(stopped))
        equal = end_of(whole) == end_of(stopped)
    row = {"steps": flags.FLAGS.steps, "stopped at": at, "equal": equal}
    timing.report([row], flags.FLAGS.out)
    if not equal:
        sys.exit("resume: the resumed run ended unlike the undisturbed one")


def begin(workdir: Path) -> subprocess.Popen:
    options = flags.FLAGS
    return start(
        [
            *("randmix", "train", "--config=configs/digits.py:tiny", "--deterministic"),
            f"--workdir={workdir}",
            "--config.tensorboard=False",
            f"--config.steps={options.steps}",
            f"--config.checkpoint_every={options.checkpoint_every}",
            f"--config.eval_every={options.steps}",
            f"--config.log_every={options.checkpoint_every}",
        ]
    )


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode:
        sys.exit(f"resume: a run ended with status {process.returncode}: {err}")


if __name__ == "__main__":
    app.run(main)
