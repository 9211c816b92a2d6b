"""Cost of accuracy curves under attack, relative to the passes through the model that they need.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --examples=2000 --strong_examples=100 --rounds=7

The model is a ConvMixer-64/2 (kernel 5, patch 2) at 28 x 28 with random weights: neither data nor
training affects the time. With E positive epsilons, an image needs

    1 forward and backward pass at the clean image, which scores it and whose gradient serves every
      epsilon of FGSM and PGD-2,
    E forward and backward passes at the FGSM samples, which score FGSM and yield PGD-2's second
      gradient,
    E forward passes at PGD-2's samples,
    E forward passes at the noise samples, for the first --strong_examples images only.

Two ratios are printed. That of floating-point operations counts all that a measurement runs, in the
compiled programs: also the padding of the last batches and the ordinary clean evaluation, which is
a forward pass more. That of times compares a measurement with the needed passes, timed in batches
of as many images as it processes at once and alternating with it, so that other load on the machine
affects both equally; it is the median over the rounds.
"""

from functools import partial

import timing
from absl import app, flags

from randmix.runtime import host

flags.DEFINE_integer("examples", 10_000, "Images of a measurement.", lower_bound=1)
flags.DEFINE_integer("strong_examples", 500, "Images under noise.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)
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
    from randmix.training.compiled import Programs

    class Counted(Programs):
        """Programs that add up the floating-point operations of their calls."""

        flops = 0.0

        def once(self, name, make):
            return super().once(name, lambda: self._counted(make()))

        def _counted(self, program):
            compiled = []

            def call(*arguments):
                if not compiled:
                    compiled.append(program.lower(*arguments).compile())
                self.flops += compiled[0].cost_analysis()["flops"]
                return compiled[0](*arguments)

            return call

    options = flags.FLAGS
    count = sum(epsilon > 0 for epsilon in EPSILONS)
    noisy = min(options.strong_examples, options.examples)
    model = models.build(
        "convmixer", width=64, depth=2, kernel_size=5, patch_size=2, num_classes=10
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (options.examples, 28, 28, 1), np.uint8),
        "label": rng.integers(0, 10, options.examples, np.int32),
    }
    settings = robustness.Settings(
        ("noise", "fgsm", "pgd2"),
        EPSILONS,
        batch_size=options.batch_size,
        strong_examples=options.strong_examples,
    )
    programs = Counted()

    def measurement():
        robustness.measure(
            model, variables, data, settings, devices=jax.devices()[:1], programs=programs
        )

    measurement()
    spent = programs.flops

    at_once = options.batch_size // count * count
    images = jnp.asarray(rng.random((at_once, 28, 28, 1), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, at_once, np.int32))
    classifier = partial(model.apply, variables, train=False)

    def loss(images):
        return attacks.cross_entropy(classifier(images), labels).sum()

    forward, both = (
        jax.jit(function).lower(images).compile()
        for function in (classifier, jax.value_and_grad(loss))
    )

    def needed(one, two, noisy):
        """The sum over all images, from the cost of a pass of ``at_once`` forward, and of both."""
        whole = options.examples * ((1 + count) * two + count * one)
        return (whole + noisy * count * one) / at_once

    flops = [program.cost_analysis()["flops"] for program in (forward, both)]
    calls = max(1, 1000 // at_once)
    seconds = timing.in_turn(
        {
            "measurement": measurement,
            "forward": lambda: jax.block_until_ready([forward(images) for _ in range(calls)]),
            "forward and back": lambda: jax.block_until_ready([both(images) for _ in range(calls)]),
        },
        rounds=options.rounds,
    )
    seconds["needed"] = [
        needed(one / calls, two / calls, noisy)
        for one, two in zip(seconds["forward"], seconds["forward and back"], strict=True)
    ]
    median = timing.milliseconds(seconds["measurement"]) / 1000
    row = {
        "images": options.examples,
        "under noise": noisy,
        "seconds": round(median, 2),
        "images/s": round(options.examples / median, 1),
        "flops to needed": round(spent / needed(*flops, noisy), 3),
        "to FGSM and PGD-2 alone": round(spent / needed(*flops, 0), 3),
        "time to needed": round(timing.ratio(seconds, "measurement", "needed"), 3),
    }
    timing.report([row], options.out)


if __name__ == "__main__":
    app.run(main)
