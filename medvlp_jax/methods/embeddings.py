"""What every method's towers return: the only things evaluators see."""

from collections.abc import Mapping
from typing import Any

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class ImageEmbedding:
    """One image tower pass.

    aligned: vectors per text section that they are trained towards, e.g. `impression` -> B×V×D. Any scale.
    pooled_BxVxC: trunk features before any projection, for probes.
    levels: named feature maps, (B·V)×H×W×C, example-major.
    regions: per text section, vectors of image regions in the space of `aligned`, for heat maps: what each place
      contributes, so that their mean is the image's vector. Sections whose image vector has no places are left out.
    local: what `Method.scores` compares with texts: a tree of arrays, (B·V) in front, example-major; None without.
    """

    aligned: dict[str, Float[Array, "B V D"]]
    pooled_BxVxC: Float[Array, "B V C"]
    levels: dict[str, Array]
    regions: dict[str, Float[Array, "B V h w D"]] = struct.field(default_factory=dict)
    local: Any = None


@struct.dataclass
class TextEmbedding:
    """One text tower pass.

    aligned: vectors per section, same spaces as `ImageEmbedding.aligned`. B×D each.
    local: what `Method.scores` compares with images: a tree of arrays, B in front; None without.
    """

    aligned: dict[str, Float[Array, "B D"]]
    local: Any = None


def default_section(regions: Mapping[str, Any], aligned: Mapping[str, Any]) -> str:
    """The text section whose space scores and maps use unless told otherwise: one with image regions, else the last."""
    return next(iter(regions), "") or list(aligned)[-1]
