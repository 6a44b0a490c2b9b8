"""Local scores: GLoRIA's formula in float64, tiles against the whole, masks, several devices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from medvlp_jax.losses.contrastive import score_loss
from medvlp_jax.losses.local import local_scores, word_region_score
from medvlp_jax.losses.schedules import Sweep


def parts(images=5, texts=7, regions=6, words=4, width=3):
    rng = np.random.default_rng(0)
    mask = np.arange(words) < rng.integers(1, words + 1, texts)[:, None]
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return normal(images, regions, width), (normal(texts, words, width), mask)


def pair(regions, text):
    return word_region_score(regions, *text)


def definition(regions, words):
    """The formula, without any padding, in float64."""
    regions, words = regions.astype(np.float64), words.astype(np.float64)
    dots = np.exp(regions @ words.T)
    first = dots / dots.sum(axis=1, keepdims=True)
    second = np.exp(4 * first)
    second = second / second.sum(axis=0)
    seen = second.T @ regions
    cosines = np.sum(seen * words, axis=1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(words, axis=1)
    return np.log(np.sum(np.exp(5 * cosines)))


@pytest.mark.parametrize("sweep", [Sweep(), Sweep("chunked")], ids=lambda s: s.schedule)
def test_scores_equal_float64(sweep):
    regions, (words, mask) = parts()
    got = local_scores(regions, (words, mask), pair, sweep=sweep, images_per_tile=2, texts_per_tile=3)
    expected = [[definition(image, text[keep]) for text, keep in zip(words, mask, strict=True)] for image in regions]
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_tiles_have_the_gradients_of_the_whole():
    regions, (words, mask) = parts(6, 6)

    def loss(regions, words, sweep):
        scores = local_scores(regions, (words, mask), pair, sweep=sweep, images_per_tile=4, texts_per_tile=4)
        return score_loss(10.0 * scores)

    of = jax.value_and_grad(loss, argnums=(0, 1))
    (whole, whole_gradients), (tiled, tiled_gradients) = (
        of(regions, words, Sweep()),
        of(regions, words, Sweep("chunked")),
    )
    np.testing.assert_allclose(tiled, whole, rtol=1e-6)
    for a, b in zip(tiled_gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert np.all(np.asarray(tiled_gradients[1])[~mask] == 0)  # padding words


def test_a_text_without_words_scores_zero_and_has_no_gradient():
    regions, (words, _) = parts()
    of = jax.value_and_grad(lambda words: word_region_score(regions[0], words, jnp.zeros(4, bool)))
    value, gradient = of(words[0])
    assert float(value) == 0.0
    assert np.all(np.asarray(gradient) == 0)


ON_DEVICES = """
import sys
sys.path.insert(0, "tests/losses"); sys.path.insert(0, "tests")
import jax, numpy as np
from test_local import pair, parts
from medvlp_jax import sharding
from medvlp_jax.losses.contrastive import score_loss
from medvlp_jax.losses.local import local_scores
from medvlp_jax.losses.schedules import Sweep

jax.config.update("jax_default_matmul_precision", "highest")
regions, (words, mask) = parts(24, 24)

def value_and_gradients(mesh):
    sweep = Sweep("chunked", mesh=mesh) if mesh else Sweep()
    def loss(regions, words):
        scores = local_scores(regions, (words, mask), pair, sweep=sweep, images_per_tile=4, texts_per_tile=8)
        return score_loss(10.0 * scores)
    place = sharding.batch_sharding(mesh) if mesh else None
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*jax.device_put((regions, words), place))

whole = value_and_gradients(None)
for mesh in (sharding.make_mesh(4, 1, jax.devices()[:4]), sharding.make_mesh(2, 2, jax.devices()[:4])):
    tiled = value_and_gradients(mesh)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tiled), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
print("equal")
"""


@pytest.mark.devices
def test_four_devices_equal_one():
    assert "equal" in tiny.run([sys.executable, "-c", ON_DEVICES], devices=4).stdout
