"""Cost of an accuracy curve under attack, relative to the passes through the model that it needs.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --examples=2016 --rounds=7

The model is a ConvMixer-64/4 (kernel 5, patch 2) at 28 x 28 with random weights: neither data nor
training affects the time. For each image, nine epsilons of FGSM and PGD-2, and of noise as their
control, need

    1 forward and backward pass at the clean image, whose gradient serves every epsilon of both,
    9 forward and backward passes at the FGSM samples, which score FGSM and yield PGD-2's second
      gradient,
    9 forward passes at PGD-2's samples and 9 at the noise samples.

The passes are timed in batches of as many images as the curve processes at once, alternating with
the curve, so that other load on the machine affects both equally. The ratio is the median over the
rounds.
"""

from functools import partial

import timing
from absl import app, flags

from randmix.runtime import host

flags.DEFINE_integer("examples", 1008, "Images per round.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images that the device processes at once.", lower_bound=9)
flags.DEFINE_string("out", None, "JSON file to write the table to.")

EPSILONS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def main(argv):
    print("host settings:", host.tune())
    import jax
    import jax.numpy as jnp
    import numpy as np

    from randmix import attacks, models
    from randmix.analysis import robustness
    from randmix.runtime import sharding

    options = flags.FLAGS
    count = len(EPSILONS)
    batch_size = options.batch_size // count
    model = models.build(
        "convmixer", width=64, depth=4, kernel_size=5, patch_size=2, num_classes=10
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (options.examples, 28, 28, 1), np.uint8),
        "label": rng.integers(0, 10, options.examples, np.int32),
    }
    settings = robustness.Settings(("noise", "fgsm", "pgd2"), EPSILONS)
    mesh = sharding.make_mesh(jax.devices()[:1])
    curves = robustness.jit_quick_curves(
        model=model, settings=settings, mesh=mesh, batch_size=batch_size
    )
    epsilons = np.asarray(EPSILONS, np.float32) / 255
    variables, data = sharding.replicate(variables, mesh), sharding.replicate(data, mesh)

    at_once = batch_size * count
    images = jnp.asarray(rng.random((at_once, 28, 28, 1), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, at_once, np.int32))
    classifier = partial(model.apply, variables, train=False)
    forward = jax.jit(classifier)
    both = jax.jit(
        jax.value_and_grad(lambda images: attacks.cross_entropy(classifier(images), labels).sum())
    )

    def curve():
        batches = range(-(-options.examples // batch_size))
        jax.block_until_ready(
            [curves(variables, data, index, epsilons, np.uint32(0)) for index in batches]
        )

    calls = max(1, options.examples // at_once)
    functions = {
        "curve": curve,
        "forward": lambda: jax.block_until_ready([forward(images) for _ in range(calls)]),
        "forward and back": lambda: jax.block_until_ready([both(images) for _ in range(calls)]),
    }
    seconds = timing.in_turn(functions, rounds=options.rounds)
    passes = calls * at_once / options.examples
    seconds["needed"] = [
        ((1 + count) * two + 2 * count * one) / passes
        for one, two in zip(seconds["forward"], seconds["forward and back"], strict=True)
    ]
    row = {
        "images": options.examples,
        "curve ms": timing.milliseconds(seconds["curve"]),
        "needed ms": timing.milliseconds(seconds["needed"]),
        "ratio": round(timing.ratio(seconds, "curve", "needed"), 3),
    }
    timing.report([row], options.out)


if __name__ == "__main__":
    app.run(main)
