r"""Wall time of whole commands, from their start to a test accuracy, beside PyTorch.

    python benchmarks/time_to_accuracy.py --out=results/benchmarks/time_to_accuracy_cpu.json
    python benchmarks/time_to_accuracy.py --cases=cifar10:full --seeds=3 \
        --data=cifar10=imagefolder/cifar10

Ours is `python -m randmix train`; PyTorch's is `torch_training.py`, a script of the same recipe. It
has the ConvMixer as its authors publish it, or the usual pre-activation ResNet with separable
convolutions, with equal numbers of trained and of frozen parameters (which is checked), the same
epochs, batches, AdamW with decay of kernels alone, schedule, clipping, normalisation and flips.
Both take their settings from `RECIPES` and `CASES`, and a test holds their first steps together
(`tests/parity/test_torch_training.py`). Each is a process of its own, timed from start to exit:
imports, reading the data, training, one evaluation of the test set after the last step, and saving
the weights. `accuracy` is the mean of that accuracy over seeds, `met` the share of runs in which it
is at least the target; the times are those of all runs.

What is fair: both use all cores that this process may use (`taskset -c 0,1` for two), one process
at a time, in alternating order, on the CPU in float32. PyTorch has channels_last, the fused AdamW,
and, by environment variables, the malloc settings that our command makes for itself. It reads
arrays that this benchmark wrote as .npy, ours those that the first run of a prepared data set
keeps (`randmix.data.decoded`). It is eager by default, since `torch.compile` was slower in
`step.py`; --compile uses it. Neither writes TensorBoard events.

The first run of each, `cold`, has empty caches of compiled programs, ours and torch.compile's. It
is repeated with the same seed: means and standard deviations over seeds are of warm runs alone.
`s` and `sd` are that mean and deviation in seconds, `ratio` the time divided by PyTorch's, the
median over seeds, `MB` the largest resident set. Nothing else should be running.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path

import timing
from absl import app, flags

# What both sides train, over the config of that name; a case adds its own.
COMMON = {
    "data.flip": True,
    "optimizer.learning_rate": 0.03,
    "optimizer.weight_decay": 0.005,
    "optimizer.clip_norm": 1.0,
}
RECIPES = {
    "convmixer_mnist": {
        **COMMON,
        "model.width": 64,
        "model.depth": 4,
        "model.kernel_size": 5,
        "model.patch_size": 2,
        "batch_size": 128,
    },
    "resnet_cifar": {
        **COMMON,
        "data.crop_padding": 0,
        "model.width": 8,
        "model.depth": 1,
        "batch_size": 64,
        "optimizer.name": "adamw",
        "schedule.name": "linear",
    },
}
# data set:mode: the recipe of a model, and what it changes
CASES = {
    "fashion_mnist:chans": ("resnet_cifar", {"epochs": 2.5}),
    "fashion_mnist:full": (
        "convmixer_mnist",
        {"epochs": 3.0, "model.depth": 3, "model.patch_size": 4},
    ),
    "cifar10:full": ("convmixer_mnist", {"epochs": 6.0, "model.depth": 2}),
}
# data set: the test accuracy to reach, and the number of seeds
TARGETS = {"fashion_mnist": (0.89, 5), "cifar10": (0.70, 3)}
# Evaluates, and saves, after the last step alone, and writes no TensorBoard events.
QUIET = {"eval_every": 10**6, "checkpoint_every": 10**6, "tensorboard": False}
# Keys that the PyTorch script follows if they aren't the defaults.
FOLLOWED = {
    *(key for recipe in RECIPES.values() for key in recipe),
    *("data.name", "epochs", "label_smoothing", "mode", "model.name", "schedule.points"),
}
# What `runtime.host` sets for our command, for glibc: one arena, no separate mappings, no trimming,
# huge pages.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

flags.DEFINE_list("cases", list(CASES), f"Cases to measure, of {', '.join(CASES)}.")
flags.DEFINE_integer("seeds", None, "Number of seeds, from 0. Default: the case's.", lower_bound=1)
flags.DEFINE_list("data", [], "Other names of the data sets: cifar10=imagefolder/cifar10, ...")
flags.DEFINE_float("epochs", None, "Epochs in place of the case's own.", lower_bound=0)
flags.DEFINE_bool("compile", False, "PyTorch under torch.compile, not eager.")
flags.DEFINE_string("out", None, "JSON file to write the table to.")
flags.register_validator(
    "cases", lambda cases: set(cases) <= {*CASES}, f"allowed are {', '.join(CASES)}"
)
flags.register_validator(
    "data",
    lambda pairs: all(pair.partition("=")[0] in TARGETS and "=" in pair for pair in pairs),
    f"allowed is SET=NAME, with SET one of {', '.join(TARGETS)}",
)


def main(argv):
    options, rows = flags.FLAGS, []
    os.environ["JAX_PLATFORMS"] = "cpu"  # where both sides run; the report names this device
    names = dict(pair.split("=", 1) for pair in options.data)
    for case in options.cases:
        data_set, mode = case.split(":")
        target, seeds = TARGETS[data_set]
        recipe, changes = CASES[case]
        settings = {**RECIPES[recipe], **changes, "mode": mode}
        settings["data.name"] = names.get(data_set, data_set)
        if options.epochs:
            settings["epochs"], case = options.epochs, f"{case}, {options.epochs} epochs"
        with tempfile.TemporaryDirectory() as folder:
            sides = Sides(recipe, settings, Path(folder), compiled=options.compile)
            rows += measure(case, sides, target=target, seeds=options.seeds or seeds)
        print(rows[-2], rows[-1], sep="\n", flush=True)
    timing.report(rows, options.out)


def measure(case: str, sides: "Sides", *, target: float, seeds: int) -> list[dict[str, object]]:
    """Runs a case, cold and then once per seed; returns the row of each side."""
    cold: dict[str, float] = {}
    seconds: timing.Seconds = {"ours": [], "torch": []}
    megabytes: dict[str, list[float]] = {"ours": [], "torch": []}
    accuracies: dict[str, list[float]] = {"ours": [], "torch": []}
    for number in range(-1, seeds):
        for side in ("ours", "torch") if number % 2 else ("torch", "ours"):
            done, accuracy = sides.run(side, max(number, 0))
            name = "cold" if number < 0 else f"seed {number}"
            figures = f"{done.seconds:.1f} s, {done.megabytes:.0f} MB, accuracy {accuracy:.4f}"
            print(f"{case}, {side}, {name}: {figures}", flush=True)
            if number < 0:
                cold[side] = done.seconds
            else:
                seconds[side].append(done.seconds)
                megabytes[side].append(done.megabytes)
                accuracies[side].append(accuracy)
    return [
        {
            "case": case,
            "side": side,
            "s": round(statistics.mean(seconds[side]), 1),
            "sd": round(statistics.stdev(seconds[side]), 1) if seeds > 1 else None,
            "cold": round(cold[side], 1),
            "accuracy": round(statistics.mean(accuracies[side]), 4),
            "met": round(statistics.mean(a >= target for a in accuracies[side]), 2),
            "ratio": round(timing.ratio(seconds, side, "torch"), 3),
            "MB": round(max(megabytes[side])),
        }
        for side in seconds
    ]


class Sides:
    """The commands of one case, ours and PyTorch's, which share settings and data."""

    def __init__(self, recipe: str, settings: dict[str, object], folder: Path, *, compiled: bool):
        """Writes what PyTorch reads.

        Args:
            recipe: a name in ``RECIPES``.
            settings: values of the config's keys, over those of the config of that name.
            folder: an empty folder for arrays, caches and runs.
            compiled: whether PyTorch uses torch.compile.
        """
        self._recipe, self._settings = recipe, {**settings, **QUIET}
        self._folder, self._runs = folder, 0
        self._parameters = None
        self._of_peer = _peer_settings(recipe, self._settings, folder) | {"compile": compiled}

    def run(self, side: str, seed: int) -> tuple[timing.Finished, float]:
        """Runs a command to its end; returns it and its test accuracy."""
        self._runs += 1
        workdir = self._folder / f"run_{self._runs}"
        if side == "ours":
            command = ["-m", "randmix", "train", f"--config=configs/{self._recipe}.py"]
            command += [f"--workdir={workdir}", f"--compiled={self._folder / 'programs'}"]
            given = {**self._settings, "seed": seed}
            command += [f"--config.{key}={value}" for key, value in given.items()]
            more = {}
        else:
            file = self._folder / "settings.json"
            file.write_text(json.dumps({**self._of_peer, "seed": seed}))
            script = Path(__file__).with_name("torch_training.py")
            command = [str(script), str(file), str(workdir)]
            more = {**MALLOC, "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor")}
        more |= {"CUDA_VISIBLE_DEVICES": ""}
        done = timing.python(*command, **more)
        result = json.loads((workdir / "result.json").read_text())
        counts = (result["parameters"], result["step"])
        self._parameters = self._parameters or counts
        assert counts == self._parameters, "both sides train the same parameters, as many steps"
        return done, result["metrics"]["test_accuracy"]


def _peer_settings(recipe: str, settings: dict[str, object], folder: Path) -> dict[str, object]:
    """Writes the arrays of PyTorch's script and returns its settings, all but the seed."""
    import numpy as np

    from randmix import config as configs
    from randmix.data import catalog

    config = configs.recipe(recipe)
    config.update_from_flattened_dict(settings)
    assert configs.changed(config).keys() <= FOLLOWED, "the script follows every key of the recipe"
    data_set = catalog.get(config.data.name)
    for split in catalog.SPLITS:
        for name, array in catalog.load(config.data.name, split).items():
            kept = array.astype(np.int64) if name == "label" else array  # PyTorch's type of labels
            np.save(folder / f"{split}_{name}.npy", kept)
    assert data_set.statistics is not None, "`randmix prepare` records them"
    mean, std = data_set.statistics
    return {
        **configs.flatten(config),
        "model.mean": mean,
        "model.std": std,
        "num_classes": data_set.num_classes,
        "data": str(folder),
    }


if __name__ == "__main__":
    app.run(main)
