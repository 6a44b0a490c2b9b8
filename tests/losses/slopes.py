"""Values and slopes of a loss against its definition in NumPy float64."""

import jax
import numpy as np

STEP = 1e-5


def assert_equal(loss, definition, *arrays, rtol: float = 1e-6, slope_rtol: float = 1e-4) -> tuple:
    """`loss(*arrays)` has the value of `definition` and its slopes along random directions, one array at a time.

    Slopes of the definition are central differences in float64. Both take arrays alone. Gradients must be finite; they
    are returned.
    """
    rng = np.random.default_rng(0)
    exact = [np.asarray(x, np.float64) for x in arrays]
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)
    np.testing.assert_allclose(value, definition(*exact), rtol=rtol, atol=rtol)
    for number, (x, gradient) in enumerate(zip(exact, gradients, strict=True)):
        assert np.all(np.isfinite(gradient)), number
        direction = rng.normal(size=x.shape)
        ends = []
        for side in (STEP, -STEP):
            moved = exact.copy()
            moved[number] = x + side * direction
            ends.append(definition(*moved))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        got = np.sum(np.asarray(gradient, np.float64) * direction)
        # Parts of a slope may cancel: errors are relative to what they would be without.
        scale = np.sqrt(np.sum(np.square(np.asarray(gradient, np.float64) * direction)))
        np.testing.assert_allclose(got, slope, rtol=slope_rtol, atol=slope_rtol * max(scale, 1e-6), err_msg=str(number))
    return gradients


def softmax(x, axis=-1, keep=True):
    """Softmax over the kept entries; the others are zero."""
    x = np.where(keep, x, -np.inf)
    x = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return x / np.sum(x, axis=axis, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(scores, targets, keep=True):
    """Cross entropy of every row over the kept columns; targets need not sum to one."""
    with np.errstate(divide="ignore"):
        peak = np.max(np.where(keep, scores, -np.inf), axis=-1, keepdims=True)
        log_sum = peak + np.log(np.sum(np.where(keep, np.exp(scores - peak), 0.0), axis=-1, keepdims=True))
    return -np.sum(np.where(keep, targets * (scores - log_sum), 0.0), axis=-1)
