"""Schedules against their formulas in float64, weight decay and clipping against hand-made AdamW steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common, imitate
from medvlp_jax import methods, optim


def config(**fields):
    result = common.base().optimizer
    result.update(fields)
    return result


def restarts(step, peak, final, first):
    """torch CosineAnnealingWarmRestarts(T_0=first, T_mult=2), by walking through the cycles."""
    length = first
    while step >= length:
        step, length = step - length, 2 * length
    return final + (peak - final) * (1 + np.cos(np.pi * step / length)) / 2


def rates(cfg, total, steps):
    return np.asarray(jax.jit(jax.vmap(optim.schedule(cfg, total)))(jnp.asarray(steps, jnp.int32)), np.float64)


def test_cosine_warms_up_and_ends_at_total_steps():
    cfg = config(learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=20)
    steps = np.arange(101)
    part = np.clip((steps - 20) / 80, 0, 1)
    expected = np.where(steps < 20, 2e-3 * steps / 20, 1e-5 + (2e-3 - 1e-5) * (1 + np.cos(np.pi * part)) / 2)
    got = rates(cfg, 100, steps)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)
    assert got.argmax() == 20
    assert got[100] == pytest.approx(1e-5, rel=1e-5)
    assert np.all(np.diff(got[20:]) < 0)


def test_cosine_without_warm_up_starts_at_the_peak():
    got = rates(config(learning_rate=1e-3), 10, [0, 5, 10, 11])
    np.testing.assert_allclose(got, [1e-3, 5e-4, 0, 0], atol=1e-10)


def test_constant_holds_after_the_warm_up():
    got = rates(config(learning_rate=1e-3, schedule="constant", warmup_steps=4), 10, [0, 2, 4, 9, 1000])
    np.testing.assert_allclose(got, [0, 5e-4, 1e-3, 1e-3, 1e-3], rtol=1e-6)


def test_warm_restarts_of_ten_steps():
    cfg = config(learning_rate=1.0, final_learning_rate=1e-8, schedule="warm_restarts", restart_steps=10)
    got = rates(cfg, 101, np.arange(101))
    np.testing.assert_allclose(got, [restarts(s, 1.0, 1e-8, 10) for s in range(101)], atol=2e-7)
    for restart in (0, 10, 30, 70):  # 10 * (2**c - 1)
        assert got[restart] == 1.0
        assert restart == 0 or got[restart - 1] < 0.03


@pytest.mark.parametrize("first", [1, 7, 1000, 33341])
def test_warm_restarts_around_every_restart(first):
    cfg = config(learning_rate=2e-4, final_learning_rate=1e-8, schedule="warm_restarts", restart_steps=first)
    starts = [first * (2**c - 1) for c in range(12)]
    steps = sorted({s + offset for s in starts for offset in (-2, -1, 0, 1, 2, first // 3) if s + offset >= 0})
    expected = [restarts(s, 2e-4, 1e-8, first) for s in steps]
    np.testing.assert_allclose(rates(cfg, 10, steps), expected, atol=1e-10)


def test_warm_restarts_equal_torch():
    torch = pytest.importorskip("torch")
    cfg = config(learning_rate=0.1, final_learning_rate=1e-8, schedule="warm_restarts", restart_steps=10)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=10, T_mult=2, eta_min=1e-8)
    expected = []
    for _ in range(75):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()
    np.testing.assert_allclose(rates(cfg, 75, np.arange(75)), expected, atol=2e-8)


def test_waves_rise_again_to_the_peak():
    # Two epochs a period: what LoVT's released schedule does.
    cfg = config(learning_rate=1e-4, schedule="waves", periods=2.0)
    np.testing.assert_allclose(
        rates(cfg, 400, [0, 50, 100, 150, 200, 300]), [1e-4, 5e-5, 0, 5e-5, 1e-4, 0], atol=1e-11, rtol=1e-5
    )
    torch = pytest.importorskip("torch")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=100)
    expected = []
    for _ in range(400):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()
    np.testing.assert_allclose(rates(cfg, 400, np.arange(400)), expected, atol=1e-10)


def test_learning_rate_of_zero():
    np.testing.assert_array_equal(rates(config(learning_rate=0.0, warmup_steps=2), 10, [0, 2, 10]), 0.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"schedule": "linear"},
            "optimizer.schedule='linear' is unknown. Choose one of cosine, warm_restarts, waves, constant",
        ),
        (
            {"warmup_steps": 100},
            "optimizer.warmup_steps=100 is not shorter than total_steps=100. Set .*warmup_steps=10",
        ),
        ({"schedule": "warm_restarts"}, "optimizer.restart_steps=0: warm_restarts needs the length of the first cycle"),
        (
            {"schedule": "warm_restarts", "restart_steps": 10, "warmup_steps": 5},
            "optimizer.warmup_steps=5 has no place in warm_restarts",
        ),
        ({"schedule": "waves"}, "optimizer.periods=0.0: waves need how often"),
        (
            {"schedule": "waves", "periods": 2.0, "warmup_steps": 5},
            "optimizer.warmup_steps=5 has no place in waves",
        ),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0 is negative"),
    ],
)
def test_fields_that_are_wrong(fields, words):
    with pytest.raises(ValueError, match=words):
        optim.optimizer(config(**fields), 100)


PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "tokens": {"positions": jnp.ones((4, 2)), "cls": jnp.ones((1, 1, 2))},
}


def test_decay_mask():
    assert jax.tree.leaves(optim.decay_mask(PARAMS, "all")) == [True] * 6
    assert optim.decay_mask(PARAMS, "matrices") == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "tokens": {"positions": False, "cls": False},
    }
    with pytest.raises(ValueError, match=r"optimizer.decay_mask='kernels' is unknown. Choose one of matrices, all"):
        optim.decay_mask(PARAMS, "kernels")


def test_decay_mask_of_imitate():
    cfg = imitate.get_config("demo")
    model = methods.get("imitate").build(cfg)
    size = cfg.image.size
    batch = {
        "image": jnp.zeros((2, 2, size, size, 1), jnp.uint8),
        **{f"{s}_embedding": jnp.zeros((2, 8)) for s in ("findings", "impression")},
        **{f"has_{s}": jnp.ones(2, bool) for s in ("findings", "impression")},
    }
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: model.init({"params": key, "channels": key}, batch, train=True))["params"]
    mask = optim.decay_mask(shapes, "matrices")
    paths = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    by_name = {True: set(), False: set()}
    for name, decays in zip(paths, jax.tree.leaves(mask), strict=True):
        by_name[decays].add(name)
    assert by_name[True] == {"kernel"}
    assert by_name[False] == {"bias", "scale", "positions", "cls"}
    assert sum(jax.tree.leaves(mask)) >= 20


def one_step(grads, **fields):
    tx = optim.optimizer(config(learning_rate=0.1, schedule="constant", **fields), 10)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates)


@pytest.mark.parametrize(("rule", "bias"), [("matrices", 1.0), ("all", 0.995)])
def test_decay_is_decoupled_from_the_gradient(rule, bias):
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    after = one_step(zero, weight_decay=0.05, decay_mask=rule)
    np.testing.assert_allclose(after["conv"]["kernel"], 1 - 0.1 * 0.05, rtol=1e-6)
    np.testing.assert_allclose(after["norm"]["scale"], bias, rtol=1e-6)


def test_adamw_by_hand():
    cfg = config(learning_rate=0.1, schedule="constant", betas=(0.8, 0.9), weight_decay=0.0)
    tx = optim.optimizer(cfg, 10)
    params = jnp.asarray([1.0])
    state = tx.init(params)
    expected, m, v = 1.0, 0.0, 0.0
    for t, grad in enumerate((2.0, -1.0, 0.5), start=1):
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        expected -= 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        updates, state = tx.update(jnp.asarray([grad]), state, params)
        params = optax.apply_updates(params, updates)
        assert float(params[0]) == pytest.approx(expected, rel=1e-5)


def moments(grads, clip_norm):
    tx = optim.optimizer(config(clip_norm=clip_norm, betas=(0.0, 0.999)), 10)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    return optax.tree_utils.tree_get(state, "mu")


def test_clipping_by_global_norm():
    grads = jax.tree.map(lambda x: jnp.full_like(x, 3.0), PARAMS)
    norm = float(optax.tree_utils.tree_norm(grads))
    np.testing.assert_allclose(moments(grads, 1.0)["conv"]["kernel"], 3.0 / norm, rtol=1e-5)
    np.testing.assert_allclose(moments(grads, norm * 2)["conv"]["kernel"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(moments(grads, 0.0)["conv"]["kernel"], 3.0, rtol=1e-6)


# ---- optimizers and rates ---------------------------------------------------------------


def test_decay_of_adam_and_sgd_enters_the_gradient_as_in_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kinds = {
        "adam": (torch.optim.Adam, {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
        "sgd": (torch.optim.SGD, {"momentum": 0.7}, {"betas": (0.7, 0.0)}),
    }
    for name, (theirs, options, fields) in kinds.items():
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        reference = theirs([weight], lr=0.1, weight_decay=0.3, **options)
        cfg = config(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.3, decay_mask="all", **fields)
        tx = optim.optimizer(cfg, 10)
        params = {"kernel": jnp.asarray([1.0, -2.0])}
        state = tx.init(params)
        for grad in ([2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]):
            weight.grad = torch.tensor(grad)
            reference.step()
            updates, state = tx.update({"kernel": jnp.asarray(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match=r"optimizer.name='lion' is unknown. Choose one of adamw, adam, sgd, muon"):
        optim.optimizer(config(name="lion"), 10)


def orthogonal(matrix):
    """Five steps of Newton-Schulz in float64, as Muon's authors publish them; singular values end near one."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_by_hand():
    random = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 4, 5), "bias": (5,)},
        "query": {"kernel": (6, 2, 4)},  # to heads
        "out": {"kernel": (2, 4, 6)},  # from heads
    }
    matrices = {"conv": (36, 5), "query": (6, 8), "out": (8, 6)}
    draw = lambda: jax.tree.map(random.standard_normal, shapes, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    start, grads = draw(), [draw() for _ in range(3)]
    fields = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.3, "decay_mask": "matrices"}
    tx = optim.optimizer(config(name="muon", **fields), 10)
    params = jax.tree.map(jnp.float32, start)
    state = tx.init(params)
    with jax.default_matmul_precision("highest"):
        for grad in grads:
            updates, state = tx.update(jax.tree.map(jnp.float32, grad), state, params)
            params = optax.apply_updates(params, updates)
    for name, flat in matrices.items():
        weight, momentum = start[name]["kernel"].reshape(flat), np.zeros(flat)
        for t, grad in enumerate(grads, start=1):
            gradient = grad[name]["kernel"].reshape(flat)
            momentum = 0.95 * momentum + 0.05 * gradient
            ahead = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * gradient / (1 - 0.95**t)
            step = 0.2 * np.sqrt(max(flat)) * orthogonal(ahead)
            weight = weight - 0.1 * (step + 0.3 * weight)
        np.testing.assert_allclose(params[name]["kernel"].reshape(flat), weight, rtol=1e-4, atol=1e-5, err_msg=name)
    # What is no kernel moves by AdamW, with its size of steps, and decays under the rule `all` alone.
    assert 0.05 < np.abs(params["conv"]["bias"] - start["conv"]["bias"]).max() < 0.4
    zero = jax.tree.map(jnp.zeros_like, params)
    for rule, left in (("matrices", 1.0), ("all", 1 - 0.1 * 0.3)):
        tx = optim.optimizer(config(name="muon", **{**fields, "decay_mask": rule}), 10)
        updates, _ = tx.update(zero, tx.init(params), params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after["conv"]["bias"], left * params["conv"]["bias"], rtol=1e-5)
        np.testing.assert_allclose(after["conv"]["kernel"], 0.97 * params["conv"]["kernel"], rtol=1e-5)


RATES = ("conv/.*=0", "norm/scale=0.1", "(norm|conv)/bias=0.5")


def test_rates_hold_and_slow_down_parameters():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    fields = {"weight_decay": 0.3, "decay_mask": "all"}
    plain, slowed = one_step(grads, **fields), one_step(grads, rates=RATES, **fields)
    moved = lambda after, *path: float(np.ravel(after[path[0]][path[1]])[0]) - 1  # noqa: E731
    assert moved(slowed, "conv", "kernel") == moved(slowed, "conv", "bias") == 0.0  # the first match counts
    assert moved(slowed, "norm", "scale") == pytest.approx(0.1 * moved(plain, "norm", "scale"), rel=1e-5)
    assert moved(slowed, "norm", "bias") == pytest.approx(0.5 * moved(plain, "norm", "bias"), rel=1e-5)
    assert moved(slowed, "tokens", "cls") == moved(plain, "tokens", "cls")
    # What is held has neither moments nor gradients.
    state = optim.optimizer(config(rates=RATES), 10).init(PARAMS)
    assert sum(np.size(x) for x in jax.tree.leaves(state)) < 2 * sum(np.size(x) for x in jax.tree.leaves(PARAMS))
    held = jax.grad(lambda p: sum(x.sum() for x in jax.tree.leaves(optim.hold(p, RATES))))(PARAMS)
    assert not np.any(held["conv"]["kernel"])
    assert np.all(held["norm"]["scale"] == 1)


@pytest.mark.parametrize(
    ("rate", "words"),
    [("conv", "write REGEX=FACTOR"), ("conv/.*=slow", "write REGEX=FACTOR"), ("conv/.*=-1", "write REGEX=FACTOR"),
     ("(=1", "write REGEX=FACTOR"), ("konv/.*=0", "matches no parameter. Parameters lie under conv, norm, tokens")],
)  # fmt: skip
def test_rates_that_are_wrong(rate, words):
    with pytest.raises(ValueError, match=words):
        optim.rate_factors(PARAMS, (rate,))


def test_held_parameters_do_not_count_as_learning():
    params = {"text_tower": {"w": jnp.ones((3, 4))}, "image_head": {"w": jnp.ones(5), "b": jnp.ones(2)}}
    assert optim.count_learning(params, ()) == 19
    assert optim.count_learning(params, ("text_tower/.*=0", "image_head/w=0.1")) == 7
