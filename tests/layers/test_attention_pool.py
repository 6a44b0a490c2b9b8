"""Attention pooling and shared cross-attention against torch's arithmetic, written in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.layers.attention_pool import AttentionPool, masked_softmax
from medvlp_jax.layers.cross_attention import SharedCrossAttention
from medvlp_jax.layers.norm import BatchNorm

B, U, M, E, HEADS = 4, 5, 3, 8, 2
RNG = np.random.default_rng(0)
UNITS = RNG.normal(size=(B, U, E)).astype(np.float32)
SENTENCES = RNG.normal(size=(B, M, E)).astype(np.float32)
MASK = np.arange(U) < np.asarray([5, 1, 3, 0])[:, None]
SENTENCE_MASK = np.arange(M) < np.asarray([3, 1, 2, 0])[:, None]


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def random_like(tree):
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32) * 0.5, tree)


def multi_head(params, query, units):
    """What torch's module returns for one sample: output and head-averaged weights."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    outputs, weights = [], []
    for head in range(HEADS):
        q, k, v = (
            x @ p[name]["kernel"][:, head] + p[name]["bias"][head]
            for name, x in (("query", query), ("key", units), ("value", units))
        )
        weight = softmax(q @ k.T / np.sqrt(E / HEADS))
        weights.append(weight)
        outputs.append(weight @ v)
    mixed = np.concatenate(outputs)
    return mixed @ p["out"]["kernel"].reshape(E, E) + p["out"]["bias"], np.mean(weights, axis=0)


@pytest.mark.parametrize("over_padding", [False, True])
def test_pooling_is_multi_head_attention_of_the_mean(over_padding):
    pool = AttentionPool(HEADS, mean_over_padding=over_padding)
    params = random_like(jax.eval_shape(pool.init, jax.random.key(0), UNITS)["params"])
    got = jax.jit(pool.apply)({"params": params}, UNITS, MASK)
    for i in range(3):
        units = UNITS[i][MASK[i]].astype(np.float64)
        vector, weight = multi_head(params, units.sum(axis=0) / (U if over_padding else len(units)), units)
        np.testing.assert_allclose(got.vector[i], vector, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.weight[i][MASK[i]], weight, rtol=1e-4, atol=1e-6)
    parts = jax.jit(functools.partial(pool.apply, parts=True))({"params": params}, UNITS, MASK).part
    np.testing.assert_allclose(parts.mean(axis=1)[:3], got.vector[:3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.weight.sum(axis=1), [1, 1, 1, 0], rtol=1e-6)
    assert np.all(np.asarray(got.weight)[~MASK] == 0)
    assert np.all(np.isfinite(got.vector))


def test_pooling_has_the_parameters_of_the_released_sizes():
    count = lambda width: sum(  # noqa: E731
        x.size
        for x in jax.tree.leaves(
            jax.eval_shape(lambda: AttentionPool().init(jax.random.key(0), jnp.zeros((1, 2, width))))
        )
    )
    assert (count(2048), count(768)) == (16_785_408, 2_362_368)
    with pytest.raises(ValueError, match="width 10 are not divisible by 8"):
        AttentionPool().init(jax.random.key(0), jnp.zeros((1, 2, 10)))


def test_gradients_of_pooling_are_finite_without_any_unit():
    pool = AttentionPool(HEADS)
    variables = random_like(jax.eval_shape(pool.init, jax.random.key(0), UNITS))

    def loss(units):
        pooled = pool.apply(variables, units, MASK)
        return jnp.sum(pooled.vector**2) + jnp.sum(pooled.weight**2)

    gradient = np.asarray(jax.jit(jax.grad(loss))(UNITS))
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[~MASK] == 0)


def test_softmax_of_nothing_is_zero():
    got = masked_softmax(jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[True, False], [False, False]]))
    np.testing.assert_array_equal(got, [[1, 0], [0, 0]])


@pytest.mark.parametrize("mask_statistics", [True, False])
def test_cross_attention_shares_projections_and_norm(mask_statistics):
    module = SharedCrossAttention(E, {}, mask_statistics=mask_statistics)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), UNITS, SENTENCES, SENTENCE_MASK)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 3 * (E * E + E) + 2 * E
    variables = {**variables, "params": random_like(variables["params"])}
    apply = jax.jit(lambda v, *x: module.apply(v, *x, train=True, mutable=["batch_stats"]))
    got, updates = apply(variables, UNITS, SENTENCES, SENTENCE_MASK)

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    linear = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    score = linear("key", UNITS) @ linear("key", SENTENCES).swapaxes(1, 2) / np.sqrt(E)
    region_attention, sentence_attention = np.zeros((B, U, M)), np.zeros((B, M, U))
    for i in range(3):
        keep = SENTENCE_MASK[i]
        region_attention[i][:, keep] = softmax(score[i][:, keep])
        sentence_attention[i][keep] = softmax(score[i].T[keep])
    np.testing.assert_allclose(got.region_attention, region_attention, atol=1e-6)
    np.testing.assert_allclose(got.sentence_attention, sentence_attention, atol=1e-6)

    regions = linear("out", region_attention @ linear("value", SENTENCES)).reshape(-1, E)
    sentences = linear("out", sentence_attention @ linear("value", UNITS)).reshape(-1, E)
    counted = SENTENCE_MASK.reshape(-1) if mask_statistics else np.ones(B * M, bool)
    means, variances = np.zeros(E), np.ones(E)
    for values, rows, seen in ((regions, np.ones(B * U, bool), got.region), (sentences, counted, got.sentence)):
        mean, variance = values[rows].mean(axis=0), values[rows].var(axis=0)
        expected = (values - mean) / np.sqrt(variance + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        np.testing.assert_allclose(np.asarray(seen).reshape(-1, E), expected, atol=1e-4)
        means = 0.9 * means + 0.1 * mean
        variances = 0.9 * variances + 0.1 * values[rows].var(axis=0, ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"], means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["var"], variances, rtol=1e-4)


def test_statistics_of_groups_leave_out_padding_of_sequences():
    norm = BatchNorm(stats_scope="group", group_size=2)
    variables = jax.jit(functools.partial(norm.init, train=True))(jax.random.key(0), SENTENCES)
    keep = np.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    apply = jax.jit(lambda x, keep: norm.apply(variables, x, train=True, valid_N=keep, mutable=["batch_stats"])[0])
    got = np.asarray(apply(SENTENCES, keep))
    for group in (slice(0, 2), slice(2, 4)):
        rows = SENTENCES[group][keep[group]].astype(np.float64)
        np.testing.assert_allclose(
            got[group][keep[group]], (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5), atol=1e-5
        )
