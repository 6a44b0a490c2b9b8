"""Contrastive terms against NumPy float64 and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses import contrastive as c


def reference(x, y, temperature, targets=None, valid=None, exclude=None):
    """The definition, written as loops over float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    batch = len(x)
    targets = np.eye(batch) if targets is None else np.asarray(targets, np.float64)
    valid = np.ones(batch, bool) if valid is None else np.asarray(valid)
    exclude = np.zeros((batch, batch), bool) if exclude is None else np.asarray(exclude)
    total = 0.0
    for logits in (x @ y.T / temperature, y @ x.T / temperature):
        for i in np.flatnonzero(valid):
            columns = [j for j in range(batch) if valid[j] and (i == j or not exclude[i, j])]
            row = logits[i, columns]
            log_softmax = row - row.max() - np.log(np.sum(np.exp(row - row.max())))
            total -= np.sum(targets[i, columns] * log_softmax)
    return total / max(valid.sum(), 1)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    batch = 12
    similar = rng.random((batch, batch))
    return {
        "x": rng.normal(size=(batch, 8)).astype(np.float32),
        "y": rng.normal(size=(batch, 8)).astype(np.float32),
        "targets": np.eye(batch) + 0.1 * (similar + similar.T),
        "valid": rng.random(batch) < 0.7,
        "exclude": np.abs(np.subtract.outer(rng.integers(0, 4, batch), rng.integers(0, 4, batch))) > 2,
    }


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
def test_equals_the_definition(arrays, temperature, with_targets, with_masks):
    exclude = arrays["exclude"] | arrays["exclude"].T
    options = {"targets": arrays["targets"]} if with_targets else {}
    masks = {"valid": arrays["valid"], "exclude": exclude} if with_masks else {}
    expected = reference(arrays["x"], arrays["y"], temperature, **options, **masks)
    got = c.contrastive(
        arrays["x"],
        arrays["y"],
        temperature=temperature,
        targets_BxB=jnp.asarray(arrays["targets"]) if with_targets else None,
        valid_B=jnp.asarray(arrays["valid"]) if with_masks else None,
        exclude_BxB=jnp.asarray(exclude) if with_masks else None,
    )
    np.testing.assert_allclose(float(got), expected, rtol=2e-6)


def test_equal_logits_give_twice_log_batch():
    x = np.ones((128, 4), np.float32)
    assert float(c.contrastive(x, x, temperature=0.07)) == pytest.approx(2 * np.log(128), rel=1e-6)


def test_swapping_sides_changes_nothing(arrays):
    targets = jnp.asarray(arrays["targets"])
    forward = c.contrastive(arrays["x"], arrays["y"], temperature=0.2, targets_BxB=targets)
    backward = c.contrastive(arrays["y"], arrays["x"], temperature=0.2, targets_BxB=targets)
    assert float(forward) == pytest.approx(float(backward), rel=1e-6)


def test_gradients_by_finite_differences(arrays):
    exclude = jnp.asarray(arrays["exclude"] | arrays["exclude"].T)

    def loss(x, y):
        return c.contrastive(
            x,
            y,
            temperature=0.2,
            targets_BxB=jnp.asarray(arrays["targets"]),
            valid_B=jnp.asarray(arrays["valid"]),
            exclude_BxB=exclude,
        )

    grads = jax.grad(loss, argnums=(0, 1))(arrays["x"], arrays["y"])
    masks = {"valid": arrays["valid"], "exclude": exclude, "targets": arrays["targets"]}
    rng = np.random.default_rng(1)
    for side in (0, 1):
        for _ in range(6):
            i, d = rng.integers(0, 12), rng.integers(0, 8)
            shifted = []
            for sign in (1, -1):
                pair = [arrays["x"].astype(np.float64), arrays["y"].astype(np.float64)]
                pair[side] = pair[side].copy()
                pair[side][i, d] += sign * 1e-5
                shifted.append(reference(*pair, 0.2, **masks))
            numeric = (shifted[0] - shifted[1]) / 2e-5
            np.testing.assert_allclose(float(grads[side][i, d]), numeric, atol=2e-5)


def test_masked_examples_get_no_gradient(arrays):
    valid = jnp.asarray(arrays["valid"])
    grad = jax.grad(lambda x: c.contrastive(x, arrays["y"], temperature=0.07, valid_B=valid))(arrays["x"])
    assert np.all(np.asarray(grad)[~arrays["valid"]] == 0)
    assert np.all(np.any(np.asarray(grad)[arrays["valid"]] != 0, axis=1))


def test_degenerate_rows_stay_finite(arrays):
    x = arrays["x"].copy()
    x[0] = 0.0
    value, grad = jax.value_and_grad(lambda x: c.contrastive(x, arrays["y"], temperature=0.07))(x)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    nothing = c.contrastive(x, arrays["y"], temperature=0.07, valid_B=jnp.zeros(12, bool))
    assert float(nothing) == 0.0


def test_no_gradient_into_targets(arrays):
    def loss(targets):
        return c.contrastive(arrays["x"], arrays["y"], temperature=0.07, targets_BxB=targets)

    assert np.all(np.asarray(jax.grad(loss)(jnp.asarray(arrays["targets"]))) == 0)


def test_same_text_marks_copies_only():
    same = np.asarray(c.same_text(jnp.array([3, 5, 3, 3]), jnp.array([True, True, True, False])))
    assert same.tolist() == [[i != j and {i, j} == {0, 2} for j in range(4)] for i in range(4)]


def test_identical_reports_are_no_negatives():
    # Two images share one text: with the mask, the text side cannot push either away.
    x = np.eye(4, dtype=np.float32)
    y = np.eye(4, dtype=np.float32)
    y[1] = y[0]
    same = c.same_text(jnp.array([7, 7, 1, 2]))
    masked = c.contrastive(x, y, temperature=0.07, exclude_BxB=same)
    assert float(masked) < float(c.contrastive(x, y, temperature=0.07))
