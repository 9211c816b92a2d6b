r"""Cost of training several seeds as one program.

    python benchmarks/ensemble.py
    python benchmarks/ensemble.py --seeds=8 --cases=cifar_256_8 \
        --out=results/benchmarks/ensemble_gpu.json

A step is that of a run: gather, augment, forward, backward, AdamW (Chans), on random images of the
size of the case's data set. `one` is a step of one seed, `in turn` is a step of each seed
sequentially, and `together` is one step of all seeds as `training.ensemble` compiles it. On an
accelerator `together / one` matters; the goal is at most 3 for 8 seeds. `together / in turn` below
1 is a gain. MB is the device memory that the program of all seeds needs.
"""

import timing
from absl import app, flags

from randmix.runtime import host

# name: (data set, width, depth, kernel, patch, batch size)
CASES = {
    "digits_64_4": ("digits", 64, 4, 5, 1, 64),
    "cifar_64_4": ("cifar10", 64, 4, 5, 2, 64),
    "cifar_256_8": ("cifar10", 256, 8, 5, 2, 128),
}
EXAMPLES = 1024

flags.DEFINE_list(
    "cases", ["digits_64_4", "cifar_64_4"], f"Cases to measure, of {', '.join(CASES)}."
)
flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=2)
flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("calls", 2, "Steps per round.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    print("host settings:", host.tune())
    options, rows = flags.FLAGS, []
    for case in options.cases:
        functions, needs = steps(*CASES[case], options.seeds)
        seconds = timing.in_turn(functions, rounds=options.rounds, calls=options.calls)
        rows.append(
            {"case": case, "seeds": options.seeds}
            | {f"{name}, ms": timing.milliseconds(seconds[name]) for name in functions}
            | {
                f"together / {name}": round(timing.ratio(seconds, "together", name), 3)
                for name in ("one", "in turn")
            }
            | {"MB": round(needs / 1e6, 1)}
        )
        print(rows[-1], flush=True)
        timing.save(rows, options.out)  # in case that a later one fails
    timing.report(rows, options.out)


def steps(
    data_set: str,
    width: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
    batch_size: int,
    n: int,
):
    """Returns the three ways to take a step, by name, and the bytes of the program of all seeds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from randmix.config import default
    from randmix.data import loader
    from randmix.runtime import sharding
    from randmix.training import runs
    from randmix.training.compiled import jit_train_step, memory_bytes

    config = default("convmixer")
    config.data.name, config.steps, config.batch_size = data_set, 10_000, batch_size
    config.data.crop_padding, config.data.flip = 1, True
    config.model.update(width=width, depth=depth, kernel_size=kernel_size, patch_size=patch_size)
    parts = runs.assemble(config)
    mesh = sharding.make_mesh(jax.devices()[:1])
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (EXAMPLES, *parts.data.dataset.image_shape), np.uint8)
    label = rng.integers(0, 10, EXAMPLES, np.int32)
    data = sharding.replicate({"image": image, "label": label}, mesh)
    seeds = np.arange(n, dtype=np.uint32)
    orders = [loader.epoch_order(seed, 0, examples=EXAMPLES) for seed in seeds]
    init = jax.jit(parts.init_state)
    lone = [sharding.replicate(init(seed), mesh) for seed in seeds]
    stacked = sharding.replicate(jax.tree.map(lambda *leaves: jnp.stack(leaves), *lone), mesh)
    each = [
        sharding.replicate((order, seed), mesh) for order, seed in zip(orders, seeds, strict=True)
    ]
    both = sharding.replicate((jnp.stack(orders), seeds), mesh)
    one_step = (
        jit_train_step(parts.step, parts.step.phases[0], mesh)
        .lower(lone[0], data, *each[0])
        .compile()
    )
    all_steps = (
        jit_train_step(parts.step, parts.step.phases[0], mesh, n)
        .lower(stacked, data, *both)
        .compile()
    )

    def one():
        lone[0], metrics = one_step(lone[0], data, *each[0])
        jax.block_until_ready(metrics)

    def in_turn():
        for i in range(n):
            lone[i], metrics = one_step(lone[i], data, *each[i])
            jax.block_until_ready(metrics)

    def together():
        nonlocal stacked
        stacked, metrics = all_steps(stacked, data, *both)
        jax.block_until_ready(metrics)

    return {"one": one, "in turn": in_turn, "together": together}, memory_bytes(all_steps)


if __name__ == "__main__":
    app.run(main)
