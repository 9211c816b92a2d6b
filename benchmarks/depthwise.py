r"""Depthwise convolutions on a GPU: forward, input gradient and weight gradient by several methods.

    python benchmarks/depthwise.py
    python benchmarks/depthwise.py --methods=torch,torch.compile --shapes=16x256x5

Methods, all on channels-last images, bfloat16 on a GPU and float32 on a CPU:

    grouped        XLA's grouped convolution, which is cuDNN's on a GPU: what the models use there
    shift_sum      the form that the models use on a CPU
    pallas         the kernels of pallas_depthwise.py; on a CPU they are interpreted
    torch          PyTorch's convolution
    torch.compile  the same, compiled

`share of copy` is the memory bandwidth relative to a copy's, counting what is read and written
once. `error` is the relative error to `grouped` in float32; a method with one above 0.01 is wrong.
It isn't measured for PyTorch, which a test compares. Part "all" is the sum of the three. Calls of a
round are queued, and waited for once, so that a short one isn't hidden behind Python. A method that
fails has a note instead of figures.
"""

import sys
from functools import partial

import timing
from absl import app, flags

METHODS = ("grouped", "shift_sum", "pallas", "torch", "torch.compile")
# Height and width x channels x kernel size, of ConvMixers: 256/8, 768/32, 512/8 and 1536/20.
SHAPES = ("16x256x5", "32x768x7", "32x512x8", "32x1536x9")
PARTS = ("forward", "input gradient", "weight gradient")
BOUND = 0.01  # bfloat16 rounds by 0.002

flags.DEFINE_list("methods", list(METHODS), f"Methods to measure, of {', '.join(METHODS)}.")
flags.DEFINE_list("shapes", list(SHAPES), "Height and width x channels x kernel size.")
flags.DEFINE_integer("batch_size", 128, "Images per batch.", lower_bound=1)
flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("calls", 10, "Calls per round.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    options, rows = flags.FLAGS, []
    for shape in options.shapes:
        size, channels, k = map(int, shape.split("x"))
        images = (options.batch_size, size, size, channels)
        for names, build in ((METHODS[:3], with_jax), (METHODS[3:], with_torch)):
            if wanted := [name for name in names if name in options.methods]:
                rows += measure(shape, k, build(wanted, images, k))
        timing.save(rows, options.out)  # in case that a later one fails
    timing.report(rows, options.out)


def measure(shape, k, methods):
    """Rows of one shape; methods are name -> part -> builder of (launch, wait, error)."""
    calls, timed, notes, errors = flags.FLAGS.calls, {}, {}, {}
    for method, parts in methods.items():
        for part, build in parts.items():
            name = f"{method} {part}"
            try:
                launch, wait, errors[name] = build()

                def burst(launch=launch, wait=wait):
                    wait([launch() for _ in range(calls)])

                burst()  # whatever fails, fails here
                timed[name] = burst
            except Exception as error:
                notes[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                print(f"{shape}, {name}: {notes[name]}", file=sys.stderr)
    seconds = timing.in_turn(timed, rounds=flags.FLAGS.rounds)
    rows = []
    for method in methods:
        names = [f"{method} {part}" for part in PARTS]
        if method == "copy":
            continue
        if all(name in seconds for name in names):
            each = zip(*(seconds[name] for name in names), strict=True)
            seconds[f"{method} all"] = [sum(parts) for parts in each]
        found = [errors[name] for name in names if errors.get(name) is not None]
        wrong = not all(error <= BOUND for error in found)  # or one is NaN
        # In arrays of the images' size: each part moves two, as a copy does.
        for part, moved in zip((*PARTS, "all"), (1, 1, 1, 3), strict=True):
            name = f"{method} {part}"
            row = {"shape": shape, "k": k, "method": method, "part": part, "ms": None}
            row |= {"share of copy": None, "error": errors.get(name), "wrong": wrong}
            if name in seconds:
                row["ms"] = round(timing.milliseconds(seconds[name]) / calls, 4)
                share = moved * timing.ratio(seconds, "copy forward", name)
                row["share of copy"] = round(share, 3)
            rows.append({**row, "note": notes.get(name, "")})
    return rows


def with_jax(names, images, k):
    """The methods in JAX, for `measure`."""
    import jax
    import jax.numpy as jnp
    import pallas_depthwise

    from randmix.ops.depthwise import depthwise

    interpret = jax.default_backend() != "gpu"
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    operators = {
        "grouped": partial(depthwise, method="grouped"),
        "shift_sum": partial(depthwise, method="shift_sum"),
        "pallas": lambda x, kernel: pallas_depthwise.depthwise(x, kernel, interpret),
    }
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(key, images, dtype) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (k, k, images[-1]), dtype)

    def parts(operator):
        """Each part, and its arrays. Each is linear, so that any point gives the same gradient."""
        zeros = jnp.zeros_like(kernel)
        return {
            "forward": (operator, (x, kernel)),
            "input gradient": (
                lambda g, kernel: jax.vjp(lambda x: operator(x, kernel), g)[1](g)[0],
                (g, kernel),
            ),
            "weight gradient": (
                lambda x, g: jax.vjp(lambda kernel: operator(x, kernel), zeros)[1](g)[0],
                (x, g),
            ),
        }

    def build(function, arrays, exact=None):
        compiled = jax.jit(function).lower(*arrays).compile()
        error = None
        if exact is not None:
            error = float(f"{relative(compiled(*arrays), exact()):.1e}")
        return lambda: compiled(*arrays), jax.block_until_ready, error

    @jax.jit
    def relative(got, exact):
        return jnp.linalg.norm((got.astype(jnp.float32) - exact).ravel()) / jnp.linalg.norm(
            exact.ravel()
        )

    def exact(part):
        function, arrays = parts(operators["grouped"])[part]
        with jax.default_matmul_precision("highest"):
            return jax.jit(function)(*(array.astype(jnp.float32) for array in arrays))

    built = {
        name: {
            part: partial(build, *given, exact=partial(exact, part))
            for part, given in parts(operators[name]).items()
        }
        for name in names
    }
    return {**built, "copy": {"forward": partial(build, lambda x: x + 1, (x,))}}


def with_torch(names, images, k):
    """The methods in PyTorch, for `measure`."""
    import torch
    import torch_depthwise

    gpu = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = gpu  # XLA, too, times its convolutions and takes the best
    torch.manual_seed(0)
    n, h, w, c = images
    options = {
        "device": "cuda" if gpu else "cpu",
        "dtype": torch.bfloat16 if gpu else torch.float32,
    }
    x, g = (
        torch.randn((n, c, h, w), **options).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    kernel = torch.randn((c, 1, k, k), **options)

    def build(function, arrays, compiled):
        function = torch.compile(function) if compiled else function

        def wait(results):
            if gpu:
                torch.cuda.synchronize()

        return lambda: function(*arrays), wait, None

    built = {
        name: {
            part: partial(build, *given, compiled=name == "torch.compile")
            for part, given in torch_depthwise.parts(x, kernel, g).items()
        }
        for name in names
    }
    return {**built, "copy": {"forward": partial(build, lambda x: x + 1, (x,), compiled=False)}}


if __name__ == "__main__":
    app.run(main)
