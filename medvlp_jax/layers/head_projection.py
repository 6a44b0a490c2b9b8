"""Parameters of multi-head projections, owned apart from the product so that the product can take any form."""

from typing import Any

import jax
from flax import linen as nn


class HeadProjection(nn.Module):
    """Owner of the kernel [in, heads, head_dim] and bias [heads, head_dim] of a query, key or value projection.

    Attributes:
        heads, head_dim: shape of the output.
        use_bias: whether there is a bias, initialised to zero.
        kernel_init: initialiser; sees the fans of the flat matrix.
    """

    heads: int
    head_dim: int
    use_bias: bool
    kernel_init: Any

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns float32 kernel and bias (None without `use_bias`) for inputs of `width` numbers."""
        shape = (width, self.heads, self.head_dim)
        kernel = self.param("kernel", flat_init(self.kernel_init, (width, self.heads * self.head_dim)), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]) if self.use_bias else None
        return kernel, bias


def flat_init(init: nn.initializers.Initializer, flat_shape: tuple[int, int]) -> nn.initializers.Initializer:
    """Initialises a head-split kernel with the fans of the flat matrix."""

    def initialize(key, shape, dtype=jax.numpy.float32):
        return init(key, flat_shape, dtype).reshape(shape)

    return initialize
