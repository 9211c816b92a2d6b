"""Cost of flushing a checkpoint to the disk: seconds per save, with and without.

    python benchmarks/saves.py --folder=runs/saves
    python benchmarks/saves.py --folder=runs/saves --megabytes=400 --rounds=5

Saves a state of 40 arrays of random numbers and waits for it, in turn with ``durable.flush`` and
with nothing in its place. "blocking" is the time until the training loop goes on, "whole" the time
until the checkpoint is in place; the loop waits for that only at its next save.
"""

import shutil
import statistics
import sys
import time
from pathlib import Path

from absl import app, flags, logging

flags.DEFINE_string("folder", None, "A folder to make on the disk to measure.", required=True)
flags.DEFINE_list("megabytes", ["1", "40", "400"], "Sizes of the states.")
flags.DEFINE_integer("rounds", 11, "Timed saves of each kind.", lower_bound=1)


def main(argv):
    import jax
    import numpy as np

    from randmix.runtime import durable
    from randmix.workdir.checkpoints import Checkpoints

    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    folder, flush = Path(options.folder), durable.flush
    if folder.exists():
        sys.exit(f"--folder: got {folder}, which exists; give one that doesn't, as it is removed")
    print(f"{'MB':>5}  {'':9}{'blocking':>9}  {'whole':>9}   seconds per save, median")
    for megabytes in map(float, options.megabytes):
        rng = np.random.default_rng(0)
        size = round(megabytes * 1e6 / 4 / 40)
        arrays = [rng.standard_normal(size, np.float32) for _ in range(40)]
        state = {f"leaf_{i:02d}": jax.device_put(array) for i, array in enumerate(arrays)}
        seconds = {"flushed": [], "unflushed": []}
        for round_number in range(options.rounds + 1):
            for kind in seconds:
                durable.flush = flush if kind == "flushed" else lambda *paths: None
                shutil.rmtree(folder, ignore_errors=True)
                with Checkpoints(folder) as checkpoints:
                    began = time.monotonic()
                    checkpoints.save(1, state)
                    blocking = time.monotonic() - began
                    checkpoints.wait()
                    whole = time.monotonic() - began
                if round_number:  # the first one warms up
                    seconds[kind].append((blocking, whole))
        for kind, pairs in seconds.items():
            blocking, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"{megabytes:5g}  {kind:9}{blocking:9.3f}  {whole:9.3f}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    app.run(main)
