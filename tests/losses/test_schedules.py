"""Tiled schedules: the numbers of the definition on any mesh, padding included, and what `auto` decides."""

import json
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep, choose


@pytest.mark.devices
def test_every_schedule_equals_float64_on_every_mesh():
    done = tiny.run([sys.executable, "tests/losses/cases.py"], devices=8)
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 12  # three schedules on four meshes
    assert max(value for value, _ in worst.values()) <= 1e-6


@pytest.mark.parametrize("case", cases.CASES[::4], ids=lambda case: f"{case.kind}-{case.targets}-{case.mask}")
def test_chunks_equal_float64(case):
    value, gradients = cases.distance(case, cases.ours(case, Sweep("chunked", 7)))
    assert value <= 1e-6
    assert gradients <= 1e-5


@pytest.mark.parametrize("kind", cases.KINDS)
def test_rectangular_batches(kind):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (7, 11))
    weights = jnp.asarray(rng.random((7, 11)), jnp.float32)
    valid = jnp.asarray(rng.random(11) < 0.7)

    def loss(x, y, sweep):
        return contrastive(x, y, temperature=0.2, targets=weights, valid_M=valid, kind=kind, sweep=sweep)

    of = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    (dense, dense_gradients), (tiled, tiled_gradients) = of(x, y, Sweep()), of(x, y, Sweep("chunked", 4))
    np.testing.assert_allclose(tiled, dense, rtol=1e-6)
    for a, b in zip(tiled_gradients, dense_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.all(np.asarray(tiled_gradients[1])[~np.asarray(valid)] == 0)


def test_nothing_valid_is_zero_not_nan():
    x = jnp.ones((6, 3))
    value, gradient = jax.value_and_grad(
        lambda x: contrastive(x, x, temperature=0.1, valid_N=jnp.zeros(6, bool), sweep=Sweep("chunked", 4))
    )(x)
    assert float(value) == 0.0
    assert np.all(np.asarray(gradient) == 0)


def test_bfloat16_products_stay_near():
    x, y = (jnp.asarray(cases.arrays()[name]) for name in "xy")
    exact = contrastive(x, y, temperature=0.2)
    for sweep in (Sweep(), Sweep("chunked", 8)):
        near = contrastive(x, y, temperature=0.2, dtype=jnp.bfloat16, sweep=sweep)
        assert near.dtype == jnp.float32
        assert float(near) == pytest.approx(float(exact), rel=1e-2)


def test_auto_is_dense_until_it_does_not_fit():
    small = choose(1024, 1024, 512, devices=16)
    assert small.schedule == "dense"
    assert "dense is the simplest and fits 512 MiB" in small.reason
    assert choose(16384, 16384, 512, budget_bytes=2**30).schedule == "chunked"
    assert choose(131072, 131072, 512, devices=64).schedule == "ring"
    with pytest.raises(ValueError, match=r"No schedule keeps .* Use a smaller batch"):
        choose(131072, 131072, 512, budget_bytes=2**20)


def test_what_cannot_be_tiled_says_so():
    with pytest.raises(ValueError, match="Choose one of dense, chunked, ring"):
        Sweep("sparse")
    with pytest.raises(ValueError, match="chunk=0 must be positive"):
        Sweep("chunked", 0)
    with pytest.raises(ValueError, match="needs the mesh"):
        Sweep("ring")
