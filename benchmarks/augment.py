"""What augmentation costs, as a share of the train step that it is part of.

    python benchmarks/augment.py
    python benchmarks/augment.py --rounds=7 --json=augment.json

Three programs are timed in turn, so that other work on the machine meets them alike: the batch as it comes from the data,
the augmented batch, and the train step (Full, float32, AdamW) without augmentation. The share is the median over the
rounds of (augmented - plain) / step; of "gather, crop, flip" it is the whole of augmented / step, gathering included.

    cifar      a ConvMixer-256/8, kernel 5, patch 2, at 32 x 32
    imagenet   a ConvMixer-512/8, kernel 8, patch 7, at 224 x 224

Images are random bytes, on which every operation costs what it costs on others.
"""

import json
import platform
import time
from functools import partial
from pathlib import Path

from absl import app, flags

from randmix import host

flags.DEFINE_integer("rounds", 5, "How often each is timed.", lower_bound=1)
flags.DEFINE_integer("cifar_batch_size", 128, "Images a step at 32 x 32.", lower_bound=2)
flags.DEFINE_integer("imagenet_batch_size", 16, "Images a step at 224 x 224.", lower_bound=2)
flags.DEFINE_multi_enum("cases", ["cifar", "imagenet"], ["cifar", "imagenet"], "What to measure.")
flags.DEFINE_string("json", None, "A file for the figures.")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Case -> image size, arguments of the model, name -> arguments of Augmentation.
CASES = {
    "cifar": (
        32,
        {"width": 256, "depth": 8, "kernel_size": 5, "patch_size": 2, "num_classes": 10},
        {
            "gather, crop, flip": {"crop_padding": 4, "flip": True},
            "RandAugment 2 x 12 (torchvision)": {"randaugment": "torchvision-n2-m12"},
            "RandAugment m9-mstd0.5-inc1 (timm)": {"randaugment": "rand-m9-mstd0.5-inc1"},
        },
    ),
    "imagenet": (
        224,
        {"width": 512, "depth": 8, "kernel_size": 8, "patch_size": 7, "num_classes": 1000},
        {
            "RandAugment (timm)": {"randaugment": "rand-m9-mstd0.5-inc1"},
            "RandAugment, mixup and cutmix, erasing": {
                "randaugment": "rand-m9-mstd0.5-inc1",
                "mixup": 0.5,
                "cutmix": 0.5,
                "random_erasing": 0.25,
                **IMAGENET,
            },
        },
    ),
}


def main(argv):
    print("host settings:", host.tune())
    import jax

    options = flags.FLAGS
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    machine = {"devices": devices, "processor": processor(), "jax": jax.__version__}
    print(f"{devices}, {machine['processor']}, jax {jax.__version__}")
    print(f"{'case':9s} {'batch':>5s} {'augmentation':42s} {'ms/image':>9s} {'step':>9s} {'share':>7s}")
    rows = []
    for case in options.cases:
        rows += measure(case, options.flag_values_dict()[f"{case}_batch_size"], options.rounds)
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def measure(case, batch_size, rounds):
    import jax
    import numpy as np

    from randmix.data import loader
    from randmix.data.augment import Augmentation

    size, arguments, augmentations = CASES[case]
    rng = np.random.default_rng(0)
    examples = 2 * batch_size
    data = {
        "image": rng.integers(0, 256, (examples, size, size, 3), np.uint8),
        "label": rng.integers(0, arguments["num_classes"], examples, np.int32),
    }
    data = jax.device_put(data)
    order = jax.jit(partial(loader.epoch_order, examples=examples))(0, 0)

    def batch(augmentation):
        make = jax.jit(partial(loader.train_batch, batch_size=batch_size, augmentation=augmentation))
        return lambda: make(data, order, np.int32(0), np.uint32(0))

    plain = batch(Augmentation())
    timed = {"plain": plain, "step": train_step(arguments, plain())}
    timed |= {name: batch(Augmentation(**given)) for name, given in augmentations.items()}
    for function in timed.values():
        seconds(function)  # compiles
    took = [{name: seconds(function) for name, function in timed.items()} for _ in range(rounds)]
    rows = []
    for name in augmentations:
        base = "plain" if "gather" not in name else None
        extra = [t[name] - (t[base] if base else 0) for t in took]
        shares = [e / t["step"] for e, t in zip(extra, took, strict=True)]
        row = {
            "case": case,
            "batch_size": batch_size,
            "augmentation": name,
            "milliseconds_an_image": 1e3 * float(np.median(extra)) / batch_size,
            "step_milliseconds_an_image": 1e3 * float(np.median([t["step"] for t in took])) / batch_size,
            "share_of_the_step": float(np.median(shares)),
            "shares": shares,
        }
        rows.append(row)
        print(
            f"{case:9s} {batch_size:5d} {name:42s} {row['milliseconds_an_image']:9.4f} "
            f"{row['step_milliseconds_an_image']:9.3f} {row['share_of_the_step']:7.1%}"
            f"  ({min(shares):.1%} to {max(shares):.1%})",
            flush=True,
        )
    return rows


def train_step(arguments, batch):
    """A step of Full on a given batch."""
    import jax
    import optax

    from randmix import masks, models, steps, tasks

    model = models.build("convmixer", **arguments)
    shape = batch["image"].shape[1:]
    params, _ = models.split(jax.jit(model.init)(jax.random.key(0), batch["image"][:1]))
    labels = masks.labels(params, [("train", masks.everything)])
    parts = {"model": model, "task": tasks.CLASSIFICATION, "optimizer": optax.adamw(1e-3), "labels": labels}
    init = partial(steps.init_state, image_shape=shape, **parts)
    state = jax.jit(init)(jax.random.key(0))
    step = jax.jit(partial(steps.train_step, **parts))
    return lambda: step(state, batch)


def seconds(function):
    import jax

    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def processor():
    """The processor's name and how many of it this process may use."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


if __name__ == "__main__":
    app.run(main)
