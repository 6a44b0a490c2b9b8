"""The losses of regions, units and prototypes on several devices against the same on one. As a script, under devices:

python tests/losses/on_devices.py
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import sharding
from medvlp_jax.layers.text_units import segment_reduce
from medvlp_jax.losses.orthogonality import cosine_alignment, orthogonality_loss
from medvlp_jax.losses.prototypes import prototype_loss
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.sentence_region import sentence_region_terms, spatial_targets
from medvlp_jax.losses.token_alignment import attention_weights, token_alignment_loss
from medvlp_jax.losses.word_region import word_region_loss

B, R, W, D = 24, 6, 5, 4
NAMES = ("regions", "regions seen", "words", "words seen")


def arrays():
    """Per example: regions, words, what they see, and which words are real; three examples have none."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, W + 1, B) * (np.arange(B) % 8 != 5)
    normal = lambda *shape: rng.normal(size=(B, *shape)).astype(np.float32)  # noqa: E731
    regions, regions_seen, words, words_seen = normal(R, D), normal(R, D), normal(W, D), normal(W, D)
    return regions, regions_seen, words, words_seen, np.arange(W) < lengths[:, None]


def losses(mesh, regions, regions_seen, words, words_seen, mask):
    """Every loss once, with its masks."""
    valid = jnp.any(mask, axis=1)
    image, text = jnp.mean(regions, axis=1), jnp.mean(words, axis=1)
    weight = attention_weights(jnp.where(mask, jnp.abs(words[..., 0]), 0.0))
    segment = jnp.where(mask, jnp.arange(W) // 2, -1)
    sentences, seen = (segment_reduce(x, segment, W // 2 + 1, how) for x, how in ((words, "max"), (words_seen, "mean")))
    real = jnp.any(segment[:, None] == jnp.arange(W // 2 + 1)[:, None], axis=2)
    sweep = Sweep("chunked", mesh=mesh) if mesh else Sweep()
    tiles = {"sweep": sweep, "images_per_tile": 2, "texts_per_tile": 8}
    share = jnp.abs(sentences[..., 0])
    grid = spatial_targets(2, 3)
    local = sentence_region_terms(
        regions, regions_seen, sentences, seen, real, regions[..., 0] ** 2, share, target_RxR=grid
    )
    return {
        "orthogonality": orthogonality_loss(image, valid_B=valid),
        "alignment": cosine_alignment(image, text, valid_B=valid),
        "word_region": word_region_loss(regions, words, mask, **tiles),
        "tokens": sum(token_alignment_loss(words, regions, mask, weight)),
        "prototypes": prototype_loss(image, text, regions_seen[0] + 0.1, valid_B=valid),
        "sentence_region": sum(local),
    }


def values_and_gradients(mesh):
    *floats, mask = jax.device_put(arrays(), sharding.batch_sharding(mesh) if mesh else None)

    def total(*floats):
        terms = losses(mesh, *floats, mask)
        return sum(terms.values()), terms

    (_, terms), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*floats)
    return jax.tree.map(np.asarray, (terms, gradients))


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    terms, gradients = values_and_gradients(None)
    spread, spread_gradients = values_and_gradients(sharding.make_mesh(2, 4))
    worst = {name: float(abs(spread[name] - value) / abs(value)) for name, value in terms.items()}
    for name, a, b in zip(NAMES, spread_gradients, gradients, strict=True):
        worst[f"gradient of {name}"] = float(np.abs(a - b).max() / np.abs(b).max())
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
