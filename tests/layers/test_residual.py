"""The end of a residual block: values and gradients of the plain form, written once on CPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.layers.norm import BatchNorm
from medvlp_jax.layers.residual import join

SHAPE = (4, 3, 5, 6)


def plain_in_float64(x, center, factor, shift, shortcut, gradient):
    """Value, and gradients of x, factor, shift and shortcut."""
    y = np.maximum((x - center) * factor + shift + shortcut, 0)
    gradient = np.where(y > 0, gradient, 0)
    over = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)
    return (
        y,
        gradient * factor,
        np.sum(gradient * (x - center), over, keepdims=True),
        np.sum(gradient, over, keepdims=True),
        gradient,
    )


@pytest.mark.parametrize("statistics", [(1, 1, 1, 6), (4, 1, 1, 6)])
def test_join_equals_float64_with_its_gradients(statistics):
    rng = np.random.default_rng(0)
    x, shortcut, gradient = (rng.normal(size=SHAPE) for _ in range(3))
    center, factor, shift = (rng.normal(size=statistics) for _ in range(3))
    operands = [a.astype(np.float32) for a in (x, center, factor, shift, shortcut)]
    y, pull = jax.vjp(join, *operands)
    gradients = pull(gradient.astype(np.float32))
    assert not np.any(gradients[1])  # of the center
    expected = plain_in_float64(*operands, gradient)
    for got, want in zip((y, gradients[0], *gradients[2:]), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("scope", ["global", "group", "frozen"])
@pytest.mark.parametrize("train", [True, False])
def test_a_norm_with_a_shortcut_is_the_norm_and_the_rest(scope, train):
    rng = np.random.default_rng(1)
    x, shortcut, gradient = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    norm = BatchNorm(stats_scope=scope, group_size=1, views=2)
    variables = norm.init(jax.random.key(0), x, train=True)
    variables = jax.tree.map(lambda a: a + rng.uniform(0.1, 1, a.shape).astype(np.float32), variables)

    def ends(params, x, shortcut, together):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        more = {"shortcut": shortcut} if together else {}
        y, changed = norm.apply(given, x, train=train, mutable=["batch_stats"], **more)
        return (y if together else jnp.maximum(y + shortcut, 0)), changed

    results = []
    for together in (True, False):
        y, pull, changed = jax.vjp(lambda *a: ends(*a, together), variables["params"], x, shortcut, has_aux=True)  # noqa: B023
        results.append((y, pull(gradient), changed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


def test_a_chain_is_written_once_per_link_on_cpus_and_left_alone_elsewhere():
    def chain(x, shortcut, scale):
        outputs = []
        for _ in range(3):
            shortcut = join(x, scale, scale, scale, shortcut)
            x = jnp.einsum("nhwi,io->nhwo", shortcut, jnp.ones((6, 6)))
            outputs.append(shortcut.reshape(4, -1))  # a reader that wants another shape
        return outputs

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (SHAPE, SHAPE, (1, 1, 1, 6))]
    traced = jax.jit(chain).trace(*shapes)
    program = traced.lower(lowering_platforms=("cpu",)).compile().as_text()
    assert len(re.findall(r" call\(", program)) == 3
    assert len(re.findall(r"f32\S* maximum\(", program)) == 3
    assert "inlineable" not in traced.lower(lowering_platforms=("tpu",)).as_text()
