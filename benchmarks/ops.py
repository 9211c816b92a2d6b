r"""Operators compared with their alternatives: forward and gradients.

    python benchmarks/ops.py
    python benchmarks/ops.py --operators=depthwise --batch_size=8 \
        --out=results/benchmarks/ops_cpu.json

`ratio` is a method's time divided by that of the shape's first row, which is the method that models
use here. Rows of a frozen kernel measure the gradient of the input only. On a GPU arrays are
bfloat16. `share of a copy's bandwidth` is relative to the memory bandwidth of a plain copy,
counting every input and result once.
"""

import functools
from collections.abc import Callable

import timing
from absl import app, flags

from randmix.runtime import host

# (height and width, channels, kernel size) of the models in benchmarks/step.py; separable operators
# have 3 x 3 kernels and m = 9.
DEPTHWISE = ((32, 128, 8), (16, 256, 5), (32, 512, 8), (8, 64, 3))
ACT_NORM = ((32, 128), (16, 256), (32, 512))
SEPARABLE = ((32, 16), (16, 32), (8, 64))
OPERATORS = ("depthwise", "act_norm", "separable")

flags.DEFINE_list("operators", list(OPERATORS), f"Operators to measure, of {', '.join(OPERATORS)}.")
flags.DEFINE_integer("batch_size", 32, "Images per batch.", lower_bound=1)
flags.DEFINE_integer("rounds", 9, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("calls", 3, "Calls per round.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    print("host settings:", host.tune())
    cases = {"depthwise": depthwise_cases, "act_norm": act_norm_cases, "separable": separable_cases}
    rows = []
    for operator in flags.FLAGS.operators:
        for shape, functions in cases[operator](flags.FLAGS.batch_size):
            rows += time_one(operator, shape, functions)
            print(*rows[-len(functions) :], sep="\n", flush=True)
    timing.report(rows, flags.FLAGS.out)


def time_one(operator: str, shape: str, functions: dict[str, tuple[Callable, tuple]]) -> list[dict]:
    """Rows of one shape; functions are name -> (function, arrays), the first is the reference."""
    import jax

    copy = jax.jit(lambda *arrays: jax.tree.map(lambda x: x + 1, arrays))
    timed, moved = {}, {}
    for name, (function, arrays) in functions.items():
        compiled = jax.jit(function).lower(*arrays).compile()
        timed[name] = functools.partial(lambda f, a: jax.block_until_ready(f(*a)), compiled, arrays)
        results = jax.eval_shape(function, *arrays)
        moved[name] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((arrays, results)))
    arrays = functions[next(iter(functions))][1]
    timed["copy"] = lambda: jax.block_until_ready(copy(*arrays))
    moved["copy"] = 2 * sum(x.size * x.dtype.itemsize for x in arrays)
    seconds = timing.in_turn(timed, rounds=flags.FLAGS.rounds, calls=flags.FLAGS.calls)
    first = next(iter(functions))
    return [
        {
            "operator": operator,
            "shape": shape,
            "method": name,
            "ms": timing.milliseconds(seconds[name]),
            "ratio": round(timing.ratio(seconds, name, first), 2),
            "share of a copy's bandwidth": round(
                moved[name] / moved["copy"] / timing.ratio(seconds, name, "copy"), 3
            ),
        }
        for name in functions
    ]


def gradients(operator: Callable, of: tuple[int, ...]) -> Callable:
    """Gradients of a sum of cubes (those of a sum of squares vanish through a BatchNorm)."""
    import jax

    def loss(*arrays):
        return (jax.tree.leaves(operator(*arrays))[0].astype("float32") ** 3).sum()

    return jax.grad(loss, of)


def random(*shape):
    """Random array of the device's usual dtype: float32 on a CPU, else bfloat16."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jax.random.normal(jax.random.key(len(shape)), shape, dtype)


def depthwise_cases(batch_size: int):
    """The methods of `depthwise`: forward, both gradients, and the gradient of the input only."""
    from randmix.ops.depthwise import depthwise

    for size, channels, k in DEPTHWISE:
        arrays = (random(batch_size, size, size, channels), random(k, k, channels))
        functions = {}
        for method in ("auto", "shift_sum", "grouped"):
            operator = functools.partial(depthwise, method=method)
            name = "chosen" if method == "auto" else method
            functions[f"{name}, forward"] = (operator, arrays)
            functions[f"{name}, both gradients"] = (gradients(operator, (0, 1)), arrays)
            functions[f"{name}, frozen kernel"] = (gradients(operator, (0,)), arrays)
        for part in ("forward", "both gradients", "frozen kernel"):
            yield (
                f"{batch_size}x{size}x{size}x{channels} k{k} {part}",
                {name: value for name, value in functions.items() if name.endswith(part)},
            )


def act_norm_cases(batch_size: int):
    """Activation and BatchNorm as one operator, and as plain JAX."""
    from randmix.ops import act_norm

    for size, channels in ACT_NORM:
        scale = random(channels).astype("float32")
        arrays = (random(batch_size, size, size, channels), scale, scale)

        yield (
            f"{batch_size}x{size}x{size}x{channels} gradients",
            {
                "fused": (gradients(act_norm.act_norm, (0, 1, 2)), arrays),
                "plain": (gradients(act_norm.act_norm_reference, (0, 1, 2)), arrays),
            },
        )


def separable_cases(batch_size: int):
    """The separable convolution composed into one, and in two steps."""
    from randmix.ops import separable

    for size, channels in SEPARABLE:
        arrays = (
            random(batch_size, size, size, channels),
            random(3, 3, channels, 9),
            random(9 * channels, channels),
        )

        for part, of in (("all gradients", (0, 1, 2)), ("frozen depthwise", (0, 2))):
            yield (
                f"{batch_size}x{size}x{size}x{channels} m9 {part}",
                {
                    "composed": (gradients(separable.separable, of), arrays),
                    "in two steps": (gradients(separable.separable_reference, of), arrays),
                },
            )


if __name__ == "__main__":
    app.run(main)
