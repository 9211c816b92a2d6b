"""Training steps on this machine's accelerator, held against the same steps on its CPU.

    python benchmarks/equality.py

A ConvMixer and a ResNet, in Chans and Full, start from the same weights and take four steps on the
same batch in both places, in float32 with the highest matmul precision. The optimizer is SGD with
momentum, linear in the gradients: AdamW makes whole steps of the rounding errors of a gradient that
is zero. `losses`, `params`, `momentum` and `batch_stats` are the largest relative error of a tensor
(tests/parity/closeness.py); frozen parameters must have kept every bit. Where there is no
accelerator, the model with XLA's own operators (`step.plain_operators`) takes its place.

Errors may reach 0.001 with ConvMixers. With ResNets they may reach 0.02: rounding puts a few values
on the other side of a ReLU's corner, which came to 0.005 between two forms on one CPU.

Exit status: 0 if no error is larger, else 1.
"""

import contextlib
import functools
import sys

import step  # also finds tests/parity, and defines --out
import timing
from absl import app, flags

STEPS = 4
# Each with its bound.
MODELS = (
    ({"name": "convmixer", "width": 32, "depth": 2, "kernel_size": 8, "patch_size": 2}, 1e-3),
    ({"name": "resnet", "width": 8, "depth": 1, "multiplier": 9}, 0.02),
)


def main(argv):
    import jax

    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    rows = []
    with jax.default_matmul_precision("highest"):
        for model, bound in MODELS:
            for mode in step.MODES:
                rows.append({"model": model["name"], "mode": mode})
                rows[-1] |= differences(model, mode, bound, cpu=cpu, device=device)
    timing.report(rows, flags.FLAGS.out)
    if not all(row["equal"] for row in rows):
        sys.exit(f"equality: training steps on {device.device_kind} differ from the CPU's")


def differences(model, mode, bound, *, cpu, device):
    """The largest relative errors of one case, and whether all are within the bound."""
    import jax
    import numpy as np
    from closeness import errors

    from randmix import masks
    from randmix.training import runs

    config = step.make_config("cifar10", model, mode, 32, False)
    config.optimizer.update(name="sgd", learning_rate=0.05)
    config.schedule.name = "constant"
    parts = runs.assemble(config)
    with jax.default_device(cpu):
        start = jax.device_get(jax.jit(parts.init_state)(0))
    batch = dict(zip(("image", "label"), step.random_batch(config), strict=True))
    expected = train(parts, start, batch, cpu)
    with step.plain_operators() if device == cpu else contextlib.nullcontext():
        got = train(parts, start, batch, device)
    found = {name: max(errors(got[name], expected[name]).values()) for name in expected}
    frozen = [masks.partition(one, parts.step.labels)[1] for one in (start.params, got["params"])]
    kept = all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*map(jax.tree.leaves, frozen), strict=True)
    )
    equal = kept and all(error <= bound for error in found.values())  # an error may be NaN
    return {name: f"{error:.1e}" for name, error in found.items()} | {
        "frozen bits kept": kept,
        "equal": bool(equal),
    }


def train(parts, state, batch, device):
    """What several steps on a device lead to, as trees of host arrays."""
    import jax

    from randmix.training import steps

    with jax.default_device(device):
        take = jax.jit(
            functools.partial(
                steps.train_step,
                model=parts.step.model,
                task=parts.step.task,
                optimizer=parts.step.phases[0].optimizer,
                labels=parts.step.labels,
            )
        )
        losses, (state, batch) = [], jax.device_put((state, batch), device)
        for _ in range(STEPS):
            state, metrics = take(state, batch)
            losses.append(metrics["loss"])
    state = jax.device_get(state)
    momentum = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    return {
        "losses": jax.device_get(losses),
        "params": state.params,
        "momentum": momentum,
        "batch_stats": state.batch_stats,
    }


if __name__ == "__main__":
    app.run(main)
