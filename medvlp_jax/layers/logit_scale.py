"""The learnable temperature and bias of contrastive logits."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LogitScale(nn.Module):
    """`scale * cosine + bias` with learnable scale, kept as its logarithm, and bias.

    Attributes:
      temperature: scale is `1 / temperature` at the start.
      highest: bound of the scale, 0 for none. At the bound only gradients that lower the scale pass.
      bias: at the start; None: no bias.
    Source: arXiv 2103.00020 section 2.5 (scale, clipped at 100); arXiv 2303.15343 (bias).
    """

    temperature: float
    highest: float = 0.0
    bias: float | None = None

    @nn.compact
    def __call__(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(scale, bias), float32 scalars; the bias is 0 without one."""
        start = nn.initializers.constant(-math.log(self.temperature))
        log_scale = self.param("log_scale", start, (), jnp.float32)
        if self.highest:
            log_scale = at_most(log_scale, math.log(self.highest))
        if self.bias is None:
            return jnp.exp(log_scale), jnp.zeros(())
        return jnp.exp(log_scale), self.param("bias", nn.initializers.constant(self.bias), (), jnp.float32)


@jax.custom_vjp
def at_most(x: Array, bound: float) -> Array:
    """`min(x, bound)` that descent can leave again: above the bound, gradients pass that lower x."""
    return jnp.minimum(x, bound)


def _forward(x, bound):
    return jnp.minimum(x, bound), x > bound


def _backward(above, gradient):
    return jnp.where(above & (gradient < 0), 0.0, gradient), None


at_most.defvjp(_forward, _backward)
