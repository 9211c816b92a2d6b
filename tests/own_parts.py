"""A user's folder: a config file, and a module with a model, arrays, a loss and a schedule."""

import textwrap
from pathlib import Path

CONFIG = """
from randmix.config import default


def get_config():
    config = default()
    config.model = {"name": "my_parts:ViT", "width": 16}
    config.roles = {
        "spatial": "path('.*query.*|.*key.*')",
        "head": "path('.*classifier.*')",
        "channel": "everything",
    }
    config.data.name = "my_parts:blobs"
    config.optimizer = {"name": "lion", "learning_rate": 3e-3}
    config.schedule = {"name": "my_parts:halving", "times": 2}
    config.task = "my_parts:focal"
    config.user = {"gamma": 2.0}
    config.steps = 12
    config.batch_size = 16
    config.log_every = 3
    config.eval_every = 12
    config.checkpoint_every = 5
    config.tensorboard = False
    return config
"""

MODULE = """
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx


class ViT(nn.Module):
    num_classes: int
    width: int = 32
    depth: int = 1
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (4, 4), strides=4, name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        for i in range(self.depth):
            y = nn.MultiHeadAttention(2, name=f"attention_{i}")(nn.LayerNorm()(x))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.num_classes, name="classifier")(x.mean(1))


class Normed(nn.Module):
    num_classes: int
    mean: tuple = ()
    std: tuple = ()
    width: int = 8
    roles = {"spatial": "path('.*Conv.*')", "rest": "everything"}

    @nn.compact
    def __call__(self, x, training):
        mean, std = (jnp.reshape(jnp.array(v), (1, 1, 1, -1)) for v in (self.mean, self.std))
        x = (x - mean) / std
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not training)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Collections(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        one = self.variable("mixing", "kernel", lambda: jnp.ones((64, 4)))
        two = self.variable("reading", "kernel", lambda: jnp.ones((4, 3)))
        return x.reshape(-1, 64) @ one.value @ two.value


class Counting(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        calls = self.variable("calls", "count", lambda: jnp.zeros((), jnp.int32))
        if self.is_mutable_collection("calls") and not self.is_initializing():
            calls.value += 1
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Sowing(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("losses", "size", x.mean())
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Late(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("stats", "early", lambda: jnp.ones(()))
        if train:
            self.variable("stats", "late", lambda: jnp.ones(()))
        return {"logits": nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1)), "auxiliary": 0.0}


class Halved(nn.Module):
    num_classes: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.reshape(x.shape[0], -1))


class Small(nnx.Module):
    def __init__(self, width: int, num_classes: int, image_shape: tuple, depth: int = 2, *, rngs):
        self.conv = nnx.Conv(image_shape[-1], width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Still(Small):
    def __init__(self, width: int, num_classes: int, image_shape: tuple, *, rngs):
        super().__init__(width, num_classes, image_shape, rngs=rngs)
        self.drop.rate = 0.0


class Broken(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], 63))


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


def blobs():
    rng = np.random.default_rng(0)

    def split(n):
        labels = rng.integers(0, 3, n)
        images = rng.integers(0, 64, (n, 8, 8, 1)) + 60 * labels[:, None, None, None]
        return images.astype(np.uint8), labels

    return {"train": split(96), "test": split(40)}


def focal(logits, batch, user):
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"loss": (1 - jnp.exp(-entropy)) ** user["gamma"] * entropy, "entropy": entropy}


def squares(outputs, batch):
    return {"loss": jnp.square(outputs - batch["image"]).mean((1, 2, 3))}


def averaged(logits, batch):
    return {"loss": logits.mean()}


def lossless(logits, batch):
    return {"entropy": logits.mean(1)}


def halving(total_steps, times):
    return lambda step: 0.5 ** (step * times // total_steps)


def stepped(total_steps):
    return lambda step: 1.0 if step < total_steps / 2 else 0.1


def descent(learning_rate, momentum: float = 0.5):
    return optax.sgd(learning_rate, momentum)


def anything(learning_rate, **keys):
    return optax.sgd(learning_rate, **keys)


def rate(learning_rate):
    return learning_rate


def fixed(rate):
    return optax.sgd(rate)
"""


def write(folder: Path) -> Path:
    """Writes the folder and returns its config file."""
    folder.mkdir(exist_ok=True)
    (folder / "my_parts.py").write_text(textwrap.dedent(MODULE))
    file = folder / "mine.py"
    file.write_text(CONFIG)
    return file
