"""Random keys: one stream per purpose, with one key per example or step."""

from functools import partial

import jax
import jax.numpy as jnp

Seed = int | jax.Array  # 0 .. 2**32 - 1

_PURPOSES = {"order": 1, "augment": 2, "mix": 3, "dropout": 4}


def stream_key(seed: Seed, purpose: str) -> jax.Array:
    """Typed key of a purpose; initial weights, order and augmentation are independent draws.

    Args:
        seed: the run's seed, in 0 .. 2**32 - 1.
        purpose: "order" for the order of examples, "augment" for draws per example, "mix" for draws
            per batch, or "dropout" for those of a model.
    """
    return jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose])


def step_key(seed: Seed, step: jax.Array) -> jax.Array:
    """Typed key of a step's draws inside the model, such as dropout."""
    return jax.random.fold_in(stream_key(seed, "dropout"), step)


def example_keys(seed: Seed, step: jax.Array, batch_size: int) -> jax.Array:
    """Typed keys [batch_size] of a step's examples, by their positions in the stream.

    A key depends on the position, not on the row in the set, so each epoch draws anew. It doesn't
    depend on the device or process, so any number of them draws the same.
    """
    positions = jnp.asarray(step).astype(jnp.uint32) * batch_size + jnp.arange(
        batch_size, dtype=jnp.uint32
    )
    return jax.vmap(partial(jax.random.fold_in, stream_key(seed, "augment")))(positions)
