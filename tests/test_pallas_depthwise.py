"""The Pallas kernels of the benchmarks: values, both gradients, and what Triton accepts."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import REPOSITORY
from test_depthwise import draw, expected

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import pallas_depthwise

pytestmark = pytest.mark.slow


def result_and_gradients(x, kernel, g, *, interpret):
    y, pull = jax.vjp(lambda x, k: pallas_depthwise.depthwise(x, k, interpret), x, kernel)
    return y, *pull(g)


# Tiles have at most 16 columns, 64 channels and 4 rows; each size here leaves some of one empty.
CASES = {
    "odd, more columns than a tile": ((2, 5, 19, 3), 5, "float32"),
    "even, more channels than a tile": ((1, 3, 2, 67), 4, "bfloat16"),
    "larger than the image, one channel": ((3, 1, 2, 1), 6, "float32"),
    "more images than blocks": ((65, 1, 2, 2), 3, "bfloat16"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_float64(case):
    shape, k, dtype = CASES[case]
    x, g = (jnp.asarray(draw(shape, seed), dtype) for seed in (0, 2))
    kernel = draw((k, k, shape[-1]), 1)
    got = jax.jit(functools.partial(result_and_gradients, interpret=True))(x, kernel, g)
    assert [array.dtype for array in got] == [dtype, dtype, "float32"]
    references = expected(np.asarray(x), kernel, np.asarray(g), 1)
    # One rounding to the result's dtype; the weight gradient is never rounded to bfloat16.
    bounds = (2**-8, 2**-8, 1e-5) if dtype == "bfloat16" else (1e-5, 1e-5, 1e-5)
    for array, reference, rtol in zip(got, references, bounds, strict=True):
        np.testing.assert_allclose(
            np.asarray(array, np.float64), reference.reshape(array.shape), rtol=rtol, atol=2e-5
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_triton_takes_the_kernels(dtype):
    # Lowering needs no GPU and fails on what Triton doesn't have.
    x, kernel = jnp.zeros((2, 5, 19, 67), dtype), jnp.zeros((4, 4, 67))
    traced = jax.jit(functools.partial(result_and_gradients, interpret=False)).trace(x, kernel, x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 3
