"""Projection heads: from a tower's features to the space where images and texts meet."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medvlp_jax.layers.norm import BatchNorm


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform on [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """Dense layer initialised as torch does: weight and bias uniform within 1/sqrt(inputs).

    Attributes: features: output width. dtype: compute type; parameters stay float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        init = symmetric_uniform(1.0 / math.sqrt(x.shape[-1]))
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without affine parameters.

    Attributes:
      hidden, features: widths.
      norm: fields of `BatchNorm` (scope, group_size, views, ...).
      dtype: compute type; statistics are float32.
    Source: cheliu-computation/IMITATE-TMI2024@cd1c575, the three projection heads.
    """

    hidden: int
    features: int
    norm: dict
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_NxI: Float[Array, "N ... I"],
        *,
        train: bool,
        valid_N: Bool[Array, " N"] | None = None,
        gates_of_NxI: Float[Array, "N ... I"] | None = None,
    ) -> Float[Array, "N ... O"]:
        """The projected features, float32.

        Args: x_NxI features; valid_N rows that may enter the batch statistics; gates_of_NxI (evaluation only): the ReLU
          lets through what it would for these features, which makes the head linear around them: outputs of parts
          whose mean is `gates_of_NxI` have the head's output for it as their mean.
        """
        linear1 = Linear(self.hidden, dtype=self.dtype, name="linear1")
        norm1 = BatchNorm(**self.norm, dtype=self.dtype, name="norm1")
        x = norm1(linear1(x_NxI), train=train, valid_N=valid_N)
        if gates_of_NxI is None:
            x = nn.relu(x)
        else:
            x = jnp.where(norm1(linear1(gates_of_NxI), train=False) > 0, x, 0)
        x = Linear(self.features, dtype=self.dtype, name="linear2")(x)
        affine_free = {**self.norm, "use_scale": False, "use_bias": False}
        x = BatchNorm(**affine_free, dtype=self.dtype, name="norm2")(x, train=train, valid_N=valid_N)
        return x.astype(jnp.float32)
