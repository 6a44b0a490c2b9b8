"""Projection heads: from a tower's features to the space where images and texts meet."""

import math
from collections.abc import Callable

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


# Name -> initialiser of a linear layer's kernel; its bias is zero. `inverse_root`: normal with variance 1 / inputs, the
# projections of CLIP (arXiv 2103.00020). `torch` is the default of torch's Linear, bias too.
INITS = {
    "torch": None,
    "kaiming_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "inverse_root": nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
}


class Linear(nn.Module):
    """Dense layer, initialised as torch does unless told otherwise: weight and bias uniform within 1/sqrt(inputs).

    Attributes: features: output width. dtype: compute type; parameters stay float32. use_bias: whether there is one.
      init: one of `INITS`. Raises: ValueError for another.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    init: str = "torch"

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        if self.init not in INITS:
            raise ValueError(f"Unknown initialisation {self.init!r}. Choose one of {', '.join(INITS)}.")
        uniform = symmetric_uniform(1.0 / math.sqrt(x.shape[-1]))
        kernel = self.param("kernel", INITS[self.init] or uniform, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", uniform if self.init == "torch" else nn.initializers.zeros, (self.features,))
        return y + bias.astype(self.dtype)


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without affine parameters; or less of it.

    Attributes:
      hidden, features: widths. `hidden=0`: one linear layer.
      norm: fields of `BatchNorm` (scope, group_size, views, ...); None: no norms.
      dtype: compute type; statistics are float32.
      use_bias, init: of the linear layers. norm_output: False leaves out the last BatchNorm.
    Source: cheliu-computation/IMITATE-TMI2024@cd1c575, the three projection heads; philip-mueller/lovt@f548985, ConVIRT
      (without norms) and LoVT (without the last); one layer without bias rajpurkarlab/CheXzero@5c341db.
    """

    hidden: int
    features: int
    norm: dict | None
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    init: str = "torch"
    norm_output: bool = True

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

        Args: x_NxI features; valid_N rows that may enter the batch statistics, with as many of the leading axes of the
          features as needed ([N, M] for sentences); gates_of_NxI (evaluation only): the ReLU lets through what it would
          for these features, which makes the head linear around them: outputs of parts whose mean is `gates_of_NxI`
          have the head's output for it as their mean.
        """
        layer = {"dtype": self.dtype, "use_bias": self.use_bias, "init": self.init}
        x = x_NxI
        if self.hidden:
            linear1 = Linear(self.hidden, **layer, name="linear1")
            norm1 = self._norm("norm1")
            x = norm1(linear1(x), train=train, valid_N=valid_N)
            if gates_of_NxI is None:
                x = nn.relu(x)
            else:
                x = jnp.where(norm1(linear1(gates_of_NxI), train=False) > 0, x, 0)
        x = Linear(self.features, **layer, name="linear2")(x)
        if self.norm_output:
            x = self._norm("norm2", use_scale=False, use_bias=False)(x, train=train, valid_N=valid_N)
        return x.astype(jnp.float32)

    def _norm(self, name: str, **fields: bool) -> Callable[..., Array]:
        if self.norm is None:
            return lambda x, **_: x
        return BatchNorm(**{**self.norm, **fields}, dtype=self.dtype, name=name)
