"""Seconds from the command to its first training step and to its end, with and without the cache.

    python benchmarks/startup.py
    python benchmarks/startup.py --config=configs/convmixer_mnist.py:fashion_mnist --steps=20

Each round runs the commands below as a user types them, one after the other, each a process of its
own. The first training run has an empty cache of compiled programs, the second finds the first
one's. Its "first step" is the line that says that the train step is compiled or read from the
cache: the step follows at once. "MB" is the process's largest resident set. Figures are medians
over the rounds, and "range" is that of the whole.
"""

import statistics
import tempfile
from collections.abc import Sequence

import timing
from absl import app, flags

IMPORTS = ("import jax", "import randmix.masks", "import randmix.train")
FIRST_STEP = "compiled the train step"

flags.DEFINE_string("config", "configs/digits.py", "Config of the training run.")
flags.DEFINE_integer("steps", None, "Steps of the run; by default the config's.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Rounds.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    options, seconds = flags.FLAGS, {}
    for number in range(options.rounds):
        for name, found in one_round().items():
            seconds.setdefault(name, []).append(found)
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    timing.report([{"what": name} | summary(found) for name, found in seconds.items()], options.out)


def one_round() -> dict[str, dict[str, float]]:
    """What every command takes: name -> {"whole" and perhaps "first step" in seconds, "MB"}."""
    found = {"randmix --help": run("-m", "randmix", "--help")}
    found |= {name: run("-c", name) for name in IMPORTS}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first run", "second run"):
            found[name] = run(*training(f"{folder}/{name}"), XDG_CACHE_HOME=folder)
    return found


def training(workdir: str) -> list[str]:
    """Arguments of the training run."""
    options = flags.FLAGS
    words = ["-m", "randmix.main", f"--config={options.config}", f"--workdir={workdir}"]
    return words + ([f"--config.steps={options.steps}"] if options.steps else [])


def run(*arguments: str, **variables: str) -> dict[str, float]:
    """Seconds and memory of Python with the arguments."""
    done = timing.python(*arguments, **variables)
    found = {"whole": done.seconds, "MB": done.megabytes}
    for at, line in done.lines:
        if FIRST_STEP in line:
            found["first step"] = at
    return found


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, str]:
    """Medians over the rounds, and the range of the whole."""
    columns = {key: [one[key] for one in rounds] for key in rounds[0]}
    median = {key: statistics.median(values) for key, values in columns.items()}
    return {
        "first step, s": f"{median['first step']:.2f}" if "first step" in median else "",
        "whole, s": f"{median['whole']:.2f}",
        "range": f"{min(columns['whole']):.2f} to {max(columns['whole']):.2f}",
        "MB": f"{median['MB']:.0f}",
    }


if __name__ == "__main__":
    app.run(main)
