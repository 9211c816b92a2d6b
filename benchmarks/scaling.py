"""Cost of a training step by batch size, width, depth, kernel size and number of devices.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes=kernel_size,depth --out=results/benchmarks/scaling_cpu.json

One axis at a time is varied from a ConvMixer-64/4 with kernel 5 at 32 x 32, batch 32. Ratios are to
the time of the first value in the same round. `ms an image` shows what a larger batch gains. On a
CPU the devices are forced host devices that share the same cores, so that axis shows the cost of
sharding, not its gain.
"""

import functools
import os

import timing
from absl import app, flags

from randmix.runtime import host

BASE = {"width": 64, "depth": 4, "kernel_size": 5, "patch_size": 1, "batch_size": 32, "devices": 1}
AXES = {
    "batch_size": (8, 16, 32, 64),
    "width": (32, 64, 128, 256),
    "depth": (2, 4, 8, 16),
    "kernel_size": (3, 5, 7, 9),
    "devices": (1, 2, 4, 8),
}

flags.DEFINE_list("axes", list(AXES), f"Axes to measure, of {', '.join(AXES)}.")
flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    print("host settings:", host.tune())
    os.environ.setdefault("NPROC", "16")  # threads to spare: tests/conftest.py says what for
    import jax

    if jax.config.jax_platforms == "cpu" or not host.accelerators():
        jax.config.update("jax_num_cpu_devices", max(AXES["devices"]))
    rows = []
    for axis in flags.FLAGS.axes:
        values = [v for v in AXES[axis] if axis != "devices" or v <= jax.device_count()]
        for mode in ("full", "chans"):
            steps = {str(v): step({**BASE, axis: v}, mode) for v in values}
            seconds = timing.in_turn(steps, rounds=flags.FLAGS.rounds)
            for v in values:
                ms = timing.milliseconds(seconds[str(v)])
                images = v if axis == "batch_size" else BASE["batch_size"]
                ratio = round(timing.ratio(seconds, str(v), str(values[0])), 2)
                rows.append(
                    {
                        "axis": axis,
                        "mode": mode,
                        "value": v,
                        "ms": ms,
                        "ms an image": round(ms / images, 3),
                    }
                    | {"ratio to the first": ratio}
                )
                print(rows[-1], flush=True)
    timing.report(rows, flags.FLAGS.out)


def step(sizes: dict[str, int], mode: str):
    """Returns a function that takes a ConvMixer's training step on CIFAR-10's shapes and waits."""
    import jax
    import numpy as np

    from randmix.config import default
    from randmix.runtime import sharding
    from randmix.training import runs, steps

    config = default("convmixer")
    config.data.name, config.mode, config.steps = "cifar10", mode, 1000
    config.batch_size = sizes["batch_size"]
    for key in ("width", "depth", "kernel_size", "patch_size"):
        config.model[key] = sizes[key]
    parts = runs.assemble(config)
    mesh = sharding.make_mesh(jax.devices()[: sizes["devices"]])
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((config.batch_size, *parts.data.dataset.image_shape), np.float32),
        "label": rng.integers(0, 10, config.batch_size, np.int32),
    }
    batch = jax.device_put(batch, sharding.split_batch(mesh))
    function = functools.partial(
        steps.train_step,
        model=parts.step.model,
        task=parts.step.task,
        optimizer=parts.step.phases[0].optimizer,
        labels=parts.step.labels,
    )
    state = sharding.replicate(jax.jit(parts.init_state)(0), mesh)
    compiled = jax.jit(function, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    compiled = compiled.lower(state, batch).compile()

    def take():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return take


if __name__ == "__main__":
    app.run(main)
