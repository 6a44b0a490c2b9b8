"""Local scores by tiles: the scores and gradients of the whole, for any pair function."""

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.losses.contrastive import score_loss
from medvlp_jax.losses.local import local_scores
from medvlp_jax.losses.schedules import Sweep

RNG = np.random.default_rng(0)


def pair(regions, text):
    words, mask = text
    return jnp.sum(jnp.where(mask, jnp.max(jnp.tanh(words @ regions.T), axis=1), 0.0))


def parts(images, texts, regions=6, words=4, width=3):
    mask = np.arange(words) < RNG.integers(1, words + 1, texts)[:, None]
    normal = lambda *shape: RNG.normal(size=shape).astype(np.float32)  # noqa: E731
    return normal(images, regions, width), (normal(texts, words, width), mask)


def test_every_image_meets_every_text():
    regions, (words, mask) = parts(5, 7)
    expected = [[pair(image, text) for text in zip(words, mask, strict=True)] for image in regions]
    for sweep in (Sweep(), Sweep("chunked")):
        got = local_scores(regions, (words, mask), pair, sweep=sweep, images_per_tile=2, texts_per_tile=3)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


def test_tiles_have_the_gradients_of_the_whole():
    regions, (words, mask) = parts(6, 6)

    def loss(regions, words, sweep):
        scores = local_scores(regions, (words, mask), pair, sweep=sweep, images_per_tile=4, texts_per_tile=4)
        return score_loss(10.0 * scores)

    of = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnames="sweep")
    (whole, whole_gradients), (tiled, tiled_gradients) = (
        of(regions, words, sweep=Sweep()),
        of(regions, words, sweep=Sweep("chunked")),
    )
    np.testing.assert_allclose(tiled, whole, rtol=1e-6)
    for a, b in zip(tiled_gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert np.all(np.asarray(tiled_gradients[1])[~mask] == 0)  # padding words
