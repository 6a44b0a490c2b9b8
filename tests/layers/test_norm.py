import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medvlp_jax.layers.norm import BatchNorm

RNG = np.random.default_rng(0)


def initialized(norm, x):
    return jax.jit(lambda x: norm.init(jax.random.key(0), x, train=True))(x)


def trained(norm, x, variables=None, **kwargs):
    apply = jax.jit(lambda v, x, kwargs: norm.apply(v, x, train=True, mutable=["batch_stats"], **kwargs))
    y, updates = apply(variables or initialized(norm, x), x, kwargs)
    return np.asarray(y), updates["batch_stats"]


def test_global_scope_matches_torch_over_several_steps():
    torch = pytest.importorskip("torch")
    theirs, norm = torch.nn.BatchNorm2d(5), BatchNorm()
    theirs.weight.data.uniform_(0.5, 1.5)
    theirs.bias.data.uniform_(-1, 1)
    variables = initialized(norm, jnp.zeros((2, 3, 3, 5)))
    variables["params"] = {"scale": theirs.weight.detach().numpy(), "bias": theirs.bias.detach().numpy()}
    for _ in range(3):
        x = RNG.normal(2, 3, (4, 3, 2, 5)).astype(np.float32)
        y, stats = trained(norm, x, variables)
        variables["batch_stats"] = stats
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
        np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)
    theirs.eval()
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(norm.apply(variables, x, train=False), expected, atol=2e-6)


def test_statistics_by_hand():
    x = jnp.asarray([[0.0], [2.0], [4.0]])
    y, stats = trained(BatchNorm(epsilon=0.0, use_scale=False, use_bias=False), x)
    np.testing.assert_allclose(y[:, 0], np.asarray([-1, 0, 1]) * 1.5**0.5, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], [0.1 * 2.0], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [0.9 + 0.1 * 4.0], rtol=1e-6)  # unbiased: 8 / (3 - 1)


def test_group_scope_is_each_group_and_view_on_its_own():
    views, group, examples = 2, 3, 6
    norm = BatchNorm(stats_scope="group", group_size=group, views=views)
    x = RNG.normal(1, 2, (examples * views, 2, 4)).astype(np.float32)
    y, stats = trained(norm, x)
    split = x.reshape(examples, views, 2, 4)
    mean, var = np.zeros(4), np.ones(4)
    for view in range(views):
        means, variances = [], []
        for start in range(0, examples, group):
            rows = split[start : start + group, view]
            alone, _ = trained(BatchNorm(), rows)
            np.testing.assert_allclose(y.reshape(split.shape)[start : start + group, view], alone, atol=1e-5)
            means.append(rows.mean((0, 1)))
            variances.append(rows.reshape(-1, 4).var(0, ddof=1))
        mean = 0.9 * mean + 0.1 * np.mean(means, 0)
        var = 0.9 * var + 0.1 * np.mean(variances, 0)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_one_group_of_everything_equals_global():
    x = RNG.normal(size=(4, 3, 5)).astype(np.float32)
    grouped, grouped_stats = trained(BatchNorm(stats_scope="group", group_size=4), x)
    plain, plain_stats = trained(BatchNorm(), x)
    np.testing.assert_allclose(grouped, plain, atol=1e-6)
    np.testing.assert_allclose(grouped_stats["var"], plain_stats["var"], rtol=1e-6)


def test_frozen_scope_uses_and_keeps_the_running_statistics():
    norm = BatchNorm(stats_scope="frozen")
    x = jnp.asarray(RNG.normal(3, 2, (4, 5)), jnp.float32)
    variables = initialized(norm, x)
    variables["batch_stats"] = {"mean": jnp.full(5, 3.0), "var": jnp.full(5, 4.0)}
    y, stats = trained(norm, x, variables)
    np.testing.assert_allclose(y, (x - 3) / np.sqrt(4 + 1e-5), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stats["mean"], variables["batch_stats"]["mean"])
    np.testing.assert_array_equal(stats["var"], variables["batch_stats"]["var"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variance_survives_a_mean_far_larger_than_the_spread(dtype):
    x = jnp.asarray(1000 + 8 * RNG.normal(size=(256, 3)), dtype)
    y, stats = trained(BatchNorm(), x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose((np.asarray(stats["var"]) - 0.9) * 10, exact.var(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(np.asarray(y, np.float64).std(0), 1, atol=2e-2)
    assert y.dtype == dtype


def test_rows_that_are_not_valid_stay_out_of_the_statistics():
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    valid = np.asarray([True, True, False, True, False, True])
    y, stats = trained(BatchNorm(), x, valid_N=jnp.asarray(valid))
    alone, alone_stats = trained(BatchNorm(), x[valid])
    np.testing.assert_allclose(y[valid], alone, atol=1e-6)
    np.testing.assert_allclose(stats["var"], alone_stats["var"], rtol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"stats_scope": "group", "group_size": 2, "views": 2}])
def test_gradients_are_those_of_finite_differences(fields):
    norm = BatchNorm(**fields)
    x = jnp.asarray(RNG.normal(size=(8, 2, 3)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
    variables = initialized(norm, x)

    def loss(x, params):
        y, _ = norm.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(weights * y**2)

    check_grads(jax.jit(loss), (x, variables["params"]), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_init_leaves_statistics_alone_and_takes_any_batch():
    norm = BatchNorm(stats_scope="group", group_size=4, views=2)
    variables = initialized(norm, jnp.ones((1, 1, 1, 3)))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        ({"stats_scope": "local"}, 4, "stats_scope='local'.*global, group, frozen"),
        ({"stats_scope": "group", "group_size": 3}, 4, "group_size=3 does not divide the batch of 4 examples"),
        ({"stats_scope": "group"}, 4, "group_size >= 1"),
        ({"stats_scope": "group", "group_size": 1, "views": 3}, 4, "4 rows.*views=3"),
        ({}, 1, "at least 2 values per channel"),
    ],
)
def test_impossible_statistics_are_refused(fields, rows, message):
    variables = initialized(BatchNorm(), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=message):
        BatchNorm(**fields).apply(variables, jnp.ones((rows, 3)), train=True, mutable=["batch_stats"])
