"""Batch normalisation of a 1x1 convolution from the moments of its *input*: the output before normalisation is never
kept.

For y = a W, the mean and variance of y over all rows follow from the mean m and the covariance S of a,
`mean = m W`, `var_o = w_o' S w_o`, and so does every sum over rows that the backward pass needs. Where W widens (I < O,
the last convolution of a bottleneck block), a is a quarter of y: an accelerator that is bound by memory writes y once,
already normalised, and reads `a` and the gradient where it would read `a`, y and the gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EXACT = lax.Precision.HIGHEST  # of products of moments and parameters, which are small


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def product_norm(
    a: Float[Array, "N H W I"], kernel: Float[Array, "1 1 I O"], scale: Array, bias: Array, epsilon: float
) -> tuple[Float[Array, "N H W O"], Float[Array, " O"], Float[Array, " O"]]:
    """`(y - mean) / sqrt(var + epsilon) * scale + bias` for y, the 1x1 convolution of a with kernel.

    Args: a, kernel: in the compute dtype. scale, bias: float32.
    Returns: the normalised output in the dtype of a; mean and biased variance over all rows, float32, for running
      statistics: no gradient flows through these two.
    """
    return _forward(a, kernel, scale, bias, epsilon)[0]


def _forward(a, kernel, scale, bias, epsilon):
    rows = a.shape[0] * a.shape[1] * a.shape[2]
    weight_IxO = kernel[0, 0].astype(jnp.float32)
    mean_I = jnp.mean(a.astype(jnp.float32), axis=(0, 1, 2))
    covariance_IxI = _outer(a, a) / rows - mean_I[:, None] * mean_I
    spread_IxO = jnp.matmul(covariance_IxI, weight_IxO, precision=EXACT)
    mean_O = jnp.matmul(mean_I, weight_IxO, precision=EXACT)
    var_O = jnp.maximum(jnp.sum(weight_IxO * spread_IxO, axis=0), 0.0)
    inverse_O = lax.rsqrt(var_O + epsilon)
    factor_O = inverse_O * scale
    z = (_product(a, kernel, jnp.float32) - mean_O) * factor_O + bias
    saved = (a, kernel, scale, mean_I, spread_IxO, mean_O, inverse_O)
    return (z.astype(a.dtype), mean_O, var_O), saved


def _backward(epsilon, saved, gradients):
    a, kernel, scale, mean_I, spread_IxO, mean_O, inverse_O = saved
    gradient = gradients[0]
    rows = a.shape[0] * a.shape[1] * a.shape[2]
    weight_IxO = kernel[0, 0].astype(jnp.float32)
    factor_O = inverse_O * scale
    product_IxO = _outer(a, gradient)
    bias_O = jnp.sum(gradient.astype(jnp.float32), axis=(0, 1, 2))
    # The sum of y times gradient over rows, from the sum of a times gradient.
    scale_O = inverse_O * (jnp.sum(weight_IxO * product_IxO, axis=0) - mean_O * bias_O)
    # The gradient of y is factor * gradient - constant - slope * (y - mean), and y - mean = (a - mean_I) W.
    constant_O, slope_O = factor_O * bias_O / rows, factor_O * inverse_O * scale_O / rows
    kernel_IxO = product_IxO * factor_O - rows * (mean_I[:, None] * constant_O + spread_IxO * slope_O)
    back_IxI = jnp.matmul(weight_IxO * slope_O, weight_IxO.T, precision=EXACT)
    offset_I = jnp.matmul(weight_IxO, constant_O, precision=EXACT) - jnp.matmul(mean_I, back_IxI, precision=EXACT)
    turned = (weight_IxO * factor_O).T.astype(a.dtype)[None, None]
    # One of the two products is kept on the way: in the compute dtype.
    a_gradient = _product(gradient, turned, a.dtype).astype(jnp.float32) - offset_I
    a_gradient -= _product(a, back_IxI.astype(a.dtype)[None, None], jnp.float32)
    return a_gradient.astype(a.dtype), kernel_IxO[None, None].astype(kernel.dtype), scale_O, bias_O


product_norm.defvjp(_forward, _backward)


def _product(x: Array, kernel: Array, dtype: jnp.dtype) -> Array:
    """1x1 convolution in the given dtype."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=dtype
    )


def _outer(x: Array, y: Array) -> Float[Array, "I O"]:
    """Sum over rows of x times y, float32."""
    return lax.dot_general(x, y, (((0, 1, 2), (0, 1, 2)), ((), ())), preferred_element_type=jnp.float32)
