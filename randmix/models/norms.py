"""BatchNorm fused with an activation before or after it, over all axes but the last.

In training, the statistics of the global batch normalise, and the running statistics are updated:
running = momentum * running + (1 - momentum) * batch, with the variance scaled by n / (n - 1) as in
PyTorch, whose ``momentum=0.1`` is 0.9 here.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.models.parameters import declare, ones, zeros
from randmix.ops import act_norm as ops


class _BatchNorm(nn.Module):
    """Base class of both orders; a subclass sets its operators for batch and running statistics.

    Attributes:
        activation: a key of `randmix.ops.activations.ACTIVATIONS`.
        momentum: weight of the old running statistics, in [0, 1].
        epsilon: added to the variance.
    """

    activation: str
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Normalises and activates x; returns [..., C] in ``x.dtype``.

        Args:
            x: [..., C], any floating dtype: the result of a layer, without its bias.
            offset: [C], that bias; None means zero.
            train: normalise with the statistics of the batch and update the running ones, which are
                float32; otherwise normalise with the running statistics.
        """
        shape = x.shape[-1:]
        scale = declare(self, "norm", "scale", ones, shape)
        bias = declare(self, "norm", "bias", zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        options = {"activation": self.activation, "epsilon": self.epsilon, "offset": offset}
        if not train:
            return self.by_running(
                x, running_mean.value, running_variance.value, scale, bias, **options
            )
        y, mean, variance = self.by_batch(x, scale, bias, shift=running_mean.value, **options)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value = _moving_average(running_mean.value, mean, self.momentum)
            running_variance.value = _moving_average(
                running_variance.value, unbiased, self.momentum
            )
        return y


class ActNorm(_BatchNorm):
    """Activation, then BatchNorm, as in ConvMixer."""

    by_batch = staticmethod(ops.act_norm)
    by_running = staticmethod(ops.act_norm_inference)


class NormAct(_BatchNorm):
    """BatchNorm, then activation, as in the pre-activation ResNet."""

    by_batch = staticmethod(ops.norm_act)
    by_running = staticmethod(ops.norm_act_inference)


def _moving_average(running: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    return momentum * running + (1 - momentum) * new
