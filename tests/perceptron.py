"""A smooth classifier that is far from linear, and images that it mostly classifies correctly."""

import jax
import jax.numpy as jnp
import numpy as np

N, SHAPE, CLASSES, HIDDEN = 96, (4, 5, 2), 3, 16
SIZE = int(np.prod(SHAPE))
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(SIZE, HIDDEN))
SECOND = RNG.normal(size=(HIDDEN, CLASSES))
IMAGES = RNG.random((N, *SHAPE), np.float32)
IMAGES[0], IMAGES[1] = 0.0, 1.0  # the corners of the cube
INNER = (0.4 + 0.2 * IMAGES).astype(np.float32)  # where no clipping to [0, 1] interferes
# The predictions of the perceptron below, except for one in eight.
LABELS = (np.tanh(IMAGES.reshape(N, -1) @ FIRST) @ SECOND).argmax(-1).astype(np.int32)
LABELS[::8] = (LABELS[::8] + 1) % CLASSES
KEYS = jax.random.split(jax.random.key(0), N)


def perceptron(images):
    """A smooth classifier that is far from linear."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ FIRST.astype(np.float32))
    return hidden @ SECOND.astype(np.float32)
