"""Scores of every image with every text from their parts: regions and words. B×B×W×R numbers, never all at once.

`local_scores` takes any score of one image and one text, e.g. that of `word_region`. The scores go on into
`contrastive.score_loss`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from medvlp_jax.losses.schedules import Sweep


def local_scores(
    images: Any,
    texts: Any,
    pair: Callable[[Any, Any], Array],
    *,
    sweep: Sweep | None = None,
    images_per_tile: int = 16,
    texts_per_tile: int = 16,
) -> Float[Array, "N M"]:
    """`pair` of every image with every text.

    Args:
      images: tree of arrays with N entries on the leading axis, e.g. regions N×R×D.
      texts: tree of arrays with M entries, e.g. words M×W×D and their mask M×W. They are what is gathered.
      pair: score of one image (a tree without the leading axis) and one text, a scalar; pure, and finite for trees of
        zeros, which fill up tiles.
      sweep: `dense` keeps what gradients need of all pairs; otherwise tiles are computed again in the backward pass, so
        that the parts of one tile exist at a time. With a mesh, images stay where they are.
      images_per_tile: of each device. texts_per_tile: of all devices together.

    Returns: scores, as `pair` gives them.
    """
    sweep = sweep or Sweep()
    tile = jax.vmap(jax.vmap(pair, in_axes=(None, 0)), in_axes=(0, None))
    if sweep.schedule == "dense":
        return tile(images, texts)
    count_N, count_M = (jax.tree.leaves(side)[0].shape[0] for side in (images, texts))
    own_N, own_M = count_N // sweep.devices, count_M // sweep.devices
    size_N, size_M = min(images_per_tile, own_N), min(max(texts_per_tile // sweep.devices, 1), own_M)
    image_chunks = jax.tree.map(lambda x: sweep.split(x, size_N), images)
    text_chunks = jax.tree.map(lambda x: sweep.split(x, size_M), texts)

    def against(text_chunk):
        text_chunk = jax.tree.map(sweep.place, text_chunk)  # gathered

        def step(_, image_chunk):
            return None, jax.checkpoint(tile)(image_chunk, text_chunk)

        score_KxnxM = lax.scan(step, None, image_chunks)[1]
        return sweep.join(score_KxnxM, count_N)

    score_KxNxm = lax.map(against, text_chunks)
    score_KxmxN = score_KxNxm.swapaxes(1, 2)
    score_KxdxmxN = score_KxmxN.reshape(score_KxmxN.shape[0], sweep.devices, size_M, count_N)
    score_MxN = score_KxdxmxN.swapaxes(0, 1).reshape(sweep.devices, -1, count_N)[:, :own_M].reshape(count_M, count_N)
    return sweep.place(score_MxN.T, sweep.axes)
