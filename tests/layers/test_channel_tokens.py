"""IMITATE's read branch: pooling, sampling, attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.layers import channel_tokens as ct

RESNET50 = (256, 512, 1024, 2048)


def test_pooling_of_ramps():
    enlarged = ct.pooling_matrix(7) @ np.arange(7)
    np.testing.assert_allclose(enlarged, [0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6])
    enlarged = ct.pooling_matrix(14) @ np.arange(14)
    expected = [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6, 7, 7.5, 8.5, 9.5, 10.5, 11.5, 12.5, 13]
    np.testing.assert_allclose(enlarged, expected)
    for size in (3, 6, 7, 14, 28, 56):
        np.testing.assert_allclose(ct.pooling_matrix(size).sum(axis=1), 1, rtol=1e-6)


def test_counts_of_a_resnet50():
    assert ct.kept_channels(RESNET50) == (64, 76, 102, 204)
    indices = ct.sample_channels(jax.random.key(0), RESNET50)
    assert sum(len(i) for i in indices) == 446
    assert all(int(i.min()) >= 0 and int(i.max()) < width for i, width in zip(indices, RESNET50, strict=True))
    assert len(np.unique(indices[3])) < 204  # with replacement
    distinct = ct.sample_channels(jax.random.key(0), RESNET50, replace=False)
    assert [len(np.unique(i)) for i in distinct] == [64, 76, 102, 204]


def test_shares_that_do_not_fit():
    with pytest.raises(ValueError, match="leaves"):
        ct.kept_channels((2, 4, 8, 16), ct.KEEP)
    with pytest.raises(ValueError, match="2 stages"):
        ct.kept_channels(RESNET50, (0.1, 0.2))


def test_tokens_are_pooled_maps_of_the_chosen_channels():
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(2, n, n, c)).astype(np.float32) for n, c in ((12, 5), (6, 7))]
    indices = (jnp.array([4, 0, 4]), jnp.array([6, 6]))
    tokens = np.asarray(ct.channel_tokens(stages, indices, grid=4))
    assert tokens.shape == (2, 5, 16)
    matrix = ct.pooling_matrix(12, 4).astype(np.float64)
    np.testing.assert_allclose(tokens[1, 2], (matrix @ stages[0][1, :, :, 4] @ matrix.T).ravel(), atol=1e-6)
    matrix = ct.pooling_matrix(6, 4).astype(np.float64)
    np.testing.assert_allclose(tokens[0, 3], (matrix @ stages[1][0, :, :, 6] @ matrix.T).ravel(), atol=1e-6)
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 2])  # drawn twice


def test_a_channel_drawn_twice_gets_both_gradients():
    rng = np.random.default_rng(0)
    stage, cotangent = rng.normal(size=(2, 4, 4, 5)).astype(np.float32), rng.normal(size=(2, 3, 16))
    _, pull = jax.vjp(lambda s: ct.channel_tokens([s], [jnp.array([4, 0, 4])], grid=4), stage)
    expected = np.zeros(stage.shape)
    for token, channel in enumerate((4, 0, 4)):
        expected[..., channel] += cotangent[:, token].reshape(2, 4, 4)
    np.testing.assert_allclose(pull(cotangent.astype(np.float32))[0], expected, atol=1e-6)


def test_maps_pooled_beforehand_give_the_same_tokens_and_gradients():
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(2, n, n, c)).astype(np.float32) for n, c in ((12, 5), (4, 6), (3, 7))]
    indices = (jnp.array([4, 0, 4]), jnp.array([1]), jnp.array([6, 6]))
    assert [s.shape[1] for s in ct.shrink_maps(stages, grid=4)] == [4, 4, 3]
    cotangent = rng.normal(size=(2, 6, 16)).astype(np.float32)
    plain, pull_plain = jax.vjp(lambda s: ct.channel_tokens(s, indices, grid=4), stages)
    early, pull_early = jax.vjp(lambda s: ct.channel_tokens(ct.shrink_maps(s, grid=4), indices, grid=4), stages)
    np.testing.assert_allclose(early, plain, atol=1e-6)
    for a, b in zip(pull_early(cotangent)[0], pull_plain(cotangent)[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_several_draws_at_once_equal_one_after_another():
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(2, n, n, c)).astype(np.float32) for n, c in ((6, 5), (3, 7))]
    draws = [(jnp.array([4, 0, 4]), jnp.array([6, 6])), (jnp.array([1, 2, 3]), jnp.array([5, 0]))]
    together = ct.channel_tokens(stages, [jnp.stack(of_stage) for of_stage in zip(*draws, strict=True)], grid=4)
    assert together.shape == (2, 2, 5, 16)
    for i, indices in enumerate(draws):
        np.testing.assert_allclose(together[:, i], ct.channel_tokens(stages, indices, grid=4), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 7, 3), (2, 3, 4, 3)])
def test_the_gradient_of_pooling_on_cpus_is_that_of_the_products(shape):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(size=size).astype(np.float32)) for size in (shape, (2, 4, 4, 3)))
    ours, theirs = (jax.vjp(lambda x, f=f: f(x, grid=4), x) for f in (ct._pool_on_cpu, ct._pool_elsewhere))
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    np.testing.assert_allclose(ours[1](cotangent)[0], theirs[1](cotangent)[0], atol=1e-6)


def full_attention(params, tokens, length, heads, mask_padding):
    """All rows of x + attention(x) in float64, of which the branch uses the last."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    batch, count, width = tokens.shape
    padded = np.concatenate([tokens, np.zeros((batch, length - count, width))], axis=1)
    cls = np.broadcast_to(p["cls"] + p["positions"][0], (batch, 1, width))
    x = np.concatenate([padded + p["positions"][1:], cls], axis=1)
    q, k, v = (np.einsum("bpt,thd->bphd", x, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value"))
    scores = np.einsum("bqhd,bphd->bhqp", q, k) / np.sqrt(width // heads)
    if mask_padding:
        scores[..., count:length] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqp,bphd->bqhd", weights, v)
    return x + np.einsum("bqhd,hdt->bqt", mixed, p["out"]["kernel"]) + p["out"]["bias"]


@pytest.mark.parametrize("mask_padding", [False, True])
def test_summary_is_the_last_row_of_full_attention(mask_padding):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 9, 16)).astype(np.float32)
    module = ct.ChannelAttention(tokens=12, heads=4, mask_padding=mask_padding)
    params = module.init(jax.random.key(0), tokens)["params"]
    assert params["positions"].shape == (13, 16)
    assert np.all(np.asarray(params["cls"]) == 0)
    params = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype(np.float32), params)
    with jax.default_matmul_precision("highest"):
        got = module.apply({"params": params}, tokens)
    np.testing.assert_allclose(got, full_attention(params, tokens, 12, 4, mask_padding)[:, -1], atol=1e-5)


def test_too_many_tokens():
    with pytest.raises(ValueError, match="do not fit 4 positions"):
        ct.ChannelAttention(tokens=4).init(jax.random.key(0), jnp.zeros((1, 5, 16)))
