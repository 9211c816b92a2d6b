"""Cost of augmentation as a share of the training step.

    python benchmarks/augment.py
    python benchmarks/augment.py --rounds=7 --out=results/benchmarks/augment_cpu.json

Three programs are timed alternately: gathering the plain batch, making the augmented batch, and the
training step (Full, AdamW, float32 on a CPU, else bfloat16) without augmentation. The share is the
median over the rounds of (augmented - plain) / step; for "gather, crop, flip" it is
augmented / step, including gathering.

    cifar      a ConvMixer-256/8, kernel 5, patch 2, at 32 x 32
    imagenet   a ConvMixer-512/8, kernel 8, patch 7, at 224 x 224

Images are random bytes; the cost of the operations doesn't depend on the content.
"""

import statistics
from functools import partial

import timing
from absl import app, flags

from randmix.runtime import host

flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("cifar_batch_size", 128, "Images per step at 32 x 32.", lower_bound=2)
flags.DEFINE_integer("imagenet_batch_size", 16, "Images per step at 224 x 224.", lower_bound=2)
flags.DEFINE_multi_enum("cases", ["cifar", "imagenet"], ["cifar", "imagenet"], "Cases to measure.")
flags.DEFINE_string("out", None, "JSON file to write the table to.")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Case -> (image size, model arguments, name -> arguments of Augmentation).
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
    options = flags.FLAGS
    rows = []
    for case in options.cases:
        rows += measure(case, options.flag_values_dict()[f"{case}_batch_size"], options.rounds)
        timing.save(rows, options.out)  # in case that a later one fails
    timing.report(rows, options.out)


def measure(case, batch_size, rounds):
    """Measures one case and returns its rows of the table."""
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
        make = jax.jit(
            partial(loader.train_batch, batch_size=batch_size, augmentation=augmentation)
        )
        return lambda: jax.block_until_ready(make(data, order, np.int32(0), np.uint32(0)))

    plain = batch(Augmentation())
    functions = {"plain": plain, "step": train_step(arguments, plain())}
    functions |= {name: batch(Augmentation(**given)) for name, given in augmentations.items()}
    seconds = timing.in_turn(functions, rounds=rounds)
    return [row(case, batch_size, name, seconds) for name in augmentations]


def row(case, batch_size, name, seconds):
    """A row of the table."""
    base = [0.0] * len(seconds[name]) if "gather" in name else seconds["plain"]
    extra = [augmented - plain for augmented, plain in zip(seconds[name], base, strict=True)]
    shares = [took / step for took, step in zip(extra, seconds["step"], strict=True)]
    return {
        "case": case,
        "batch": batch_size,
        "augmentation": name,
        "ms": timing.milliseconds(extra),
        "step ms": timing.milliseconds(seconds["step"]),
        "share": round(statistics.median(shares), 4),
        "lowest": round(min(shares), 4),
        "highest": round(max(shares), 4),
    }


def train_step(arguments, batch):
    """Returns a function that takes a Full step on the given batch and waits for it."""
    import jax
    import optax

    from randmix import masks, models
    from randmix.training import steps, tasks

    # On a CPU bfloat16 is slower; on an accelerator configs/convmixer_imagenet.py trains in it.
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = models.build("convmixer", dtype=dtype, **arguments)
    shape = batch["image"].shape[1:]
    params, _ = models.split(jax.jit(model.init)(jax.random.key(0), batch["image"][:1]))
    labels = masks.labels(params, [("train", masks.everything)])
    parts = {
        "model": model,
        "task": tasks.CLASSIFICATION,
        "optimizer": optax.adamw(1e-3),
        "labels": labels,
    }
    init = partial(steps.init_state, image_shape=shape, **parts)
    state = jax.jit(init)(jax.random.key(0))
    step = jax.jit(partial(steps.train_step, **parts), donate_argnums=0)

    def take():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return take


if __name__ == "__main__":
    app.run(main)
