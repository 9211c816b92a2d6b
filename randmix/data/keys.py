"""Random keys: a stream for each purpose, and in it a key for each example or step."""

from functools import partial

import jax
import jax.numpy as jnp

Seed = int | jax.Array  # 0 .. 2**32 - 1

_PURPOSES = {"order": 1, "augment": 2, "mix": 3}


def stream_key(seed: Seed, purpose: str) -> jax.Array:
    """The key of a purpose, so that initial weights, order and augmentation are independent draws.

    Args:
        seed: the run's.
        purpose: "order" of the examples, "augment" of each example, "mix" of each batch.
    """
    return jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose])


def example_keys(seed: Seed, step: jax.Array, batch_size: int) -> jax.Array:
    """The keys of a step's examples, [batch_size], by their positions in the whole stream.

    The position, and not the row in the set, so that the next epoch draws anew; and neither device nor process, so
    that any number of them draws the same.
    """
    positions = jnp.asarray(step).astype(jnp.uint32) * batch_size + jnp.arange(
        batch_size, dtype=jnp.uint32
    )
    return jax.vmap(partial(jax.random.fold_in, stream_key(seed, "augment")))(positions)
