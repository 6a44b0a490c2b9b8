"""What towers of several methods are made of: pixels to a trunk's levels and regions, tokens to text vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medvlp_jax.encoders.bert import Bert, BertConfig, at_shortest_length, pool
from medvlp_jax.encoders.convolution import Colours
from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.encoders.vit import ViT, vit


def batch_norm(model: Any) -> dict[str, Any]:
    """The fields of `layers.norm.BatchNorm` that `config.model.bn` holds."""
    return {"stats_scope": model.bn.scope, "group_size": model.bn.group_size, "momentum": model.bn.momentum}


def trunk(model: Any, image: Any) -> ResNet | ViT:
    """The image trunk of `config.model` for `pixels` of `config.image`, unbound: a ResNet, or the ViT that
    `model.trunk.vit` names ("B/16")."""
    fields = {name: value for name, value in model.trunk.items() if name != "weights"}
    fields["colours"] = colours(image)
    if "vit" in fields:
        return vit(fields.pop("vit"), **fields, dtype=jnp.dtype(model.dtype))
    norm = {f"bn_{name.removeprefix('stats_')}": value for name, value in batch_norm(model).items()}
    return ResNet(**fields, **norm, bn_views=image.views, dtype=jnp.dtype(model.dtype))


def pixels(image_BxVxHxWx1: Array, image: Any, *, side: int = 0) -> Float[Array, "N H W 1"]:
    """Views uint8 as a trunk takes them, float32, example-major: one channel, of which its `colours` make the others.

    Args: image: `config.image`; side: what views are enlarged to (`enlarge`), 0: not.
    """
    if side:
        image_BxVxHxWx1 = enlarge(image_BxVxHxWx1, side)
    pixel_BxVxHxWx1 = (image_BxVxHxWx1.astype(jnp.float32) / 255.0 - image.mean[0]) / image.std[0]
    return pixel_BxVxHxWx1.reshape(-1, *pixel_BxVxHxWx1.shape[2:])


def colours(image: Any) -> Colours:
    """What channels `(x / 255 - mean) / std` of grey x are of its first, a channel per statistic of `config.image`."""
    (mean, *_), (std, *_) = image.mean, image.std
    return tuple((std / s, (mean - m) / s) for m, s in zip(image.mean, image.std, strict=True))


def enlarge(image: Array, side: int) -> Float[Array, "... S S C"]:
    """Images [..., H, W, C] at another size, float32: bilinear, corners on corners (torch `align_corners`)."""
    rows, columns = (aligned_corners(length, side) for length in image.shape[-3:-1])
    taller = jnp.einsum("sh,...hwc->...swc", rows, image.astype(jnp.float32))
    return jnp.einsum("tw,...swc->...stc", columns, taller)


def aligned_corners(length: int, side: int) -> Float[np.ndarray, "S L"]:
    """The matrix of `enlarge` along one axis: two neighbours each, rows sum to one."""
    place_S = np.linspace(0, length - 1, side)
    return np.maximum(0, 1 - np.abs(place_S[:, None] - np.arange(length))).astype(np.float32)


def with_pooled(levels: dict[str, Array]) -> dict[str, Array]:
    """The levels with `pooled`, the mean of the last map: a ResNet's as it is, of a ViT the mean of its patches; maps
    beside it, no class token."""
    maps = {name: x for name, x in levels.items() if x.ndim == 4}
    if "pooled" in levels:
        return {**maps, "pooled": levels["pooled"]}
    return {**maps, "pooled": jnp.mean(last_map(levels).astype(jnp.float32), axis=(1, 2))}


def last_map(levels: dict[str, Array]) -> Float[Array, "N h w C"]:
    """The last stage of a ResNet, the patches of a ViT."""
    stages = sorted(name for name in levels if name.startswith("stage"))
    return levels[stages[-1] if stages else "patches"]


def regions(head: Callable[..., Array], levels: dict[str, Array], shape: tuple[int, int]) -> Float[Array, "B V h w D"]:
    """What each place of the last map contributes to `head(pooled)`, with the head taken as linear around the pooled
    features: the mean of the regions is the image's vector. Args: levels: with `pooled`. shape: (B, V)."""
    place_NxhxwxC = last_map(levels).astype(jnp.float32)
    region_NxhxwxD = head(place_NxhxwxC, train=False, gates_of_NxI=levels["pooled"][:, None, None])
    return region_NxhxwxD.reshape(*shape, *region_NxhxwxD.shape[1:])


def trained_bert(bert: BertConfig, text: Any) -> Bert:
    """The text tower of `config.text`, unbound, when it is trained."""
    return Bert(bert, remat=text.get("remat", False), dtype=jnp.dtype(text.dtype))


def text_vectors(tower: Bert, ids_BxL: Array, mask_BxL: Array, pooling: str) -> Float[Array, "B E"]:
    """One float32 vector per text from a trained tower bound to its parameters; see `encoders.bert.pool`.

    Texts are cut to the shortest length that holds the batch; see `encoders.bert.at_shortest_length`.
    """

    def read(output, mask_BxL):
        return pool(output.last.astype(jnp.float32), mask_BxL, pooling)

    return of_tokens(tower, read, ids_BxL, mask_BxL)


def of_tokens(tower: Bert, read: Callable[..., Any], ids_BxL: Array, mask_BxL: Array, *more_BxL: Array) -> Any:
    """`read(output, mask, *more)` of a trained tower bound to its parameters, where `output` is a `BertOutput`.

    All are cut to the shortest length that holds the batch; what `read` gives, must not depend on it. With `remat` the
    backward pass computes layers and `read` again: inputs of layers are kept, at the full length, so that they lie in
    the same memory whatever the length.
    """
    if tower.is_initializing():
        return read(tower(ids_BxL, mask_BxL), mask_BxL, *more_BxL)
    # Branches of different lengths must not touch the bound module: its parameters go in as arrays.
    variables, pure, full = tower.variables, tower.clone(parent=None, name=None), ids_BxL.shape[1]
    read = jax.checkpoint(read) if tower.remat else read

    def encode(ids_Bxl, mask_Bxl):
        length = ids_Bxl.shape[1]
        output = pure.apply(variables, ids_Bxl, mask_Bxl, room=full)
        return read(output, mask_Bxl, *(x[:, :length] for x in more_BxL))

    return at_shortest_length(encode, ids_BxL, mask_BxL)
