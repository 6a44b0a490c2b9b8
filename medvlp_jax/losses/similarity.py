"""Unit rows and products of rows, in float32 unless told otherwise."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def unit_rows(x_BxD: Float[Array, "B D"], *, eps: float = 1e-12) -> Float[Array, "B D"]:
    """Rows scaled to length one in float32; rows shorter than `eps` stay (almost) zero and get no NaN gradient."""
    x_BxD = x_BxD.astype(jnp.float32)
    squared_Bx1 = jnp.sum(x_BxD * x_BxD, axis=-1, keepdims=True)
    return x_BxD * lax.rsqrt(jnp.maximum(squared_Bx1, eps * eps))


def product(x_NxD: Float[Array, "N D"], y_DxM: Float[Array, "D M"]) -> Float[Array, "N M"]:
    """`x @ y` accumulated in float32; float32 operands are not rounded, also where matmuls do that by default."""
    exact = lax.Precision.HIGHEST if x_NxD.dtype == jnp.float32 else None
    return jnp.matmul(x_NxD, y_DxM, precision=exact, preferred_element_type=jnp.float32)


def similarity(x_NxD: Float[Array, "N D"], y_MxD: Float[Array, "M D"]) -> Float[Array, "N M"]:
    """Cosine of every row of `x` with every row of `y`, float32 in [-1, 1]."""
    return product(unit_rows(x_NxD), unit_rows(y_MxD).T)
