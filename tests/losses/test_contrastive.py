"""The dense losses against NumPy float64, and what must hold for any of them."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses import contrastive as c
from medvlp_jax.losses import targets as t


@pytest.fixture
def arrays():
    return cases.arrays()


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.kind}-{case.targets}-{case.mask}")
def test_dense_equals_float64(case):
    value, gradients = cases.distance(case, cases.ours(case))
    assert value <= 1e-6
    assert gradients <= 1e-5


def test_equal_logits_give_twice_log_batch():
    x = np.ones((128, 4), np.float32)
    assert float(c.contrastive(x, x, temperature=0.07)) == pytest.approx(2 * np.log(128), rel=1e-6)


def test_sigmoid_near_zero_cosine_is_the_closed_form():
    # SigLIP starts at scale 10 and bias -10: softplus(10) + (N - 1) softplus(-10) for orthogonal embeddings.
    x, y = np.eye(8, 16, dtype=np.float32), np.eye(8, 16, 8, dtype=np.float32)
    value = c.contrastive(x, y, temperature=0.1, bias=-10.0, kind="sigmoid")
    assert float(value) == pytest.approx(np.log1p(np.exp(10)) + 7 * np.log1p(np.exp(-10)), rel=1e-6)


@pytest.mark.parametrize("count", [2, 128])
def test_siglip_as_it_starts(count):
    # Scale 10 and bias -10 (arXiv 2303.15343): no cosines yet, and all matches found.
    none, all_found = np.eye(count, 2 * count, dtype=np.float32), np.eye(count, 2 * count, dtype=np.float32)
    for other, value in ((np.roll(none, count, axis=1), 10.000045), (all_found, np.log(2))):
        loss = jax.jit(lambda x, y: c.contrastive(x, y, temperature=0.1, bias=-10.0, kind="sigmoid"))(none, other)
        assert float(loss) == pytest.approx(value + 4.5399e-5 * (count - 1), rel=1e-6)


def test_convirt_weighs_its_directions(arrays):
    # Softmax over texts counts 3/4, softmax over images 1/4 (arXiv 2010.00747).
    x, y = arrays["x"], arrays["y"]
    to_text, to_image = (c.contrastive(x, y, temperature=0.1, directions=one) for one in ((1.0, 0.0), (0.0, 1.0)))
    assert float(to_text) != pytest.approx(float(to_image), rel=1e-3)
    both = c.contrastive(x, y, temperature=0.1, directions=(0.75, 0.25))
    assert float(both) == pytest.approx(float(0.75 * to_text + 0.25 * to_image), rel=1e-6)
    unit = np.eye(32, dtype=np.float32)
    for z, value in ((np.ones((32, 4), np.float32), np.log(32)), (unit, np.log1p(31 * np.exp(-10.0)))):
        loss = c.contrastive(z, z, temperature=0.1, directions=(0.75, 0.25))
        assert float(loss) == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_swapping_sides_changes_nothing(arrays):
    forward = c.contrastive(arrays["x"], arrays["y"], temperature=0.2, targets=t.same_id(arrays["id"]))
    backward = c.contrastive(arrays["y"], arrays["x"], temperature=0.2, targets=t.same_id(arrays["id"]))
    assert float(forward) == pytest.approx(float(backward), rel=1e-6)


def test_the_order_of_a_batch_does_not_matter(arrays):
    order = np.random.default_rng(1).permutation(cases.COUNT)
    values = [
        float(c.contrastive(arrays["x"][o], arrays["y"][o], temperature=0.2, targets=t.same_id(arrays["id"][o])))
        for o in (np.arange(cases.COUNT), order)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_masked_examples_get_no_gradient(arrays):
    valid = arrays["rows"]
    grad = jax.grad(lambda x: c.contrastive(x, arrays["y"], temperature=0.07, valid_N=jnp.asarray(valid)))(arrays["x"])
    assert np.all(np.asarray(grad)[~valid] == 0)
    assert np.all(np.any(np.asarray(grad)[valid] != 0, axis=1))


def test_degenerate_rows_stay_finite(arrays):
    x = arrays["x"].copy()
    x[0] = 0.0
    value, grad = jax.value_and_grad(lambda x: c.contrastive(x, arrays["y"], temperature=0.07))(x)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    nothing = c.contrastive(x, arrays["y"], temperature=0.07, valid_N=jnp.zeros(cases.COUNT, bool))
    assert float(nothing) == 0.0


def test_no_gradient_into_targets(arrays):
    def loss(targets):
        return c.contrastive(arrays["x"], arrays["y"], temperature=0.07, targets=targets)

    assert np.all(np.asarray(jax.grad(loss)(jnp.asarray(arrays["matrix"]))) == 0)


def test_identical_reports_are_no_negatives():
    # Two images share one text: with the mask, the text side cannot push either away.
    x = np.eye(4, dtype=np.float32)
    y = np.eye(4, dtype=np.float32)
    y[1] = y[0]
    apart = t.without_duplicates(t.identity(4), jnp.array([7, 7, 1, 2]))
    assert np.asarray(apart.whole().keep).sum() == 14
    masked = c.contrastive(x, y, temperature=0.07, targets=apart)
    assert float(masked) < float(c.contrastive(x, y, temperature=0.07))


def test_medclip_with_one_label_each_tends_to_clip(arrays):
    one_label_each = jnp.eye(cases.COUNT)
    targets = t.softmax_of(one_label_each, one_label_each, scale=50.0)
    medclip = c.contrastive(arrays["x"], arrays["y"], temperature=0.2, targets=targets)
    assert float(medclip) == pytest.approx(float(c.contrastive(arrays["x"], arrays["y"], temperature=0.2)), rel=1e-6)


def test_unknown_kinds_and_directions_are_refused(arrays):
    with pytest.raises(ValueError, match="softmax, sigmoid"):
        c.contrastive(arrays["x"], arrays["y"], temperature=0.1, kind="hinge")
    with pytest.raises(ValueError, match="no directions"):
        c.contrastive(arrays["x"], arrays["y"], temperature=0.1, kind="sigmoid", directions=(0.75, 0.25))
