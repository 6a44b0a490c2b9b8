"""What methods share that compare parts: regions of an image, and words or sentences of a text from a trained tower."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medvlp_jax.encoders.bert import BertConfig
from medvlp_jax.methods import towers
from medvlp_jax.methods.two_towers import one_section


def text_tower(config: Any, bert: BertConfig | None, units: str) -> BertConfig:
    """The shape of the text tower of a method that reads `units` of one text, BERT-base when none is given.

    Raises: ValueError for a tower that is frozen, other units, or more than one text.
    """
    one_section(config)
    if not config.text.trained or config.text.units != units:
        raise ValueError(
            f"text.trained={config.text.trained}, text.units={config.text.units!r}: {config.method} reads {units} from "
            f"a text tower that is trained. Leave both as configs/{config.method}.py has them."
        )
    return bert or BertConfig()


def local_level(levels: dict[str, Array], name: str) -> Float[Array, "N h w C"]:
    """The level of a trunk that regions are made from. Raises: ValueError naming the levels that have places."""
    maps = {known: x for known, x in levels.items() if x.ndim == 4 and known not in ("attention", "class_parts")}
    if name not in maps:
        raise ValueError(
            f"model.local.level={name!r}: missing local level. This trunk has {', '.join(sorted(maps))}. "
            f"Use --config.model.local.level={sorted(maps)[-1]}, or a trunk with this level."
        )
    return maps[name]


def levels_and_regions(
    trunk: Any, region_head: Any, image_BxVxHxWx1: Array, image: Any, model: Any, *, train: bool
) -> tuple[dict[str, Array], Float[Array, "N h w D"]]:
    """The levels of a bound trunk, and its places at `model.local.level` through the head for regions.

    Args: image, model: `config.image` and `config.model`, with `upsample`: side of what the trunk sees, 0: views as
      they are. Raises: as `local_level`.
    """
    pixel_NxHxWxC = towers.pixels(image_BxVxHxWx1, image, side=model.upsample)
    levels = dict(trunk(pixel_NxHxWxC, train=train))
    return levels, region_head(local_level(levels, model.local.level), train=train)


def tokens_of(batch: dict[str, Array], section: str) -> tuple[Int[Array, "B L"], Bool[Array, "B L"], Int[Array, "B L"]]:
    """Ids, mask and segment of a section of a batch; what is not real has no segment."""
    ids_BxL, mask_BxL, segment_BxL = (batch[f"{section}_{name}"] for name in ("ids", "mask", "segment"))
    return ids_BxL, mask_BxL, jnp.where(mask_BxL, segment_BxL, -1)


def flat_regions(region_NxhxwxD: Float[Array, "N h w D"]) -> Float[Array, "N R D"]:
    """Places of a map as a list, row by row."""
    return region_NxhxwxD.reshape(region_NxhxwxD.shape[0], -1, region_NxhxwxD.shape[-1])
