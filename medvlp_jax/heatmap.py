"""Where in an image a text is seen: what image regions contribute to the cosine with it, over the evaluation view."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

BLUR_SIGMA = 1.5  # of BioViL's maps, in regions (microsoft/hi-ml, health_multimodal)


def unit(x: Float[np.ndarray, "*n D"], dtype: type = np.float32) -> Float[np.ndarray, "*n D"]:
    """Rows of length one; zero rows stay zero (a cosine with them is 0), rows that are not finite stay so."""
    x = np.asarray(x, dtype)
    with np.errstate(invalid="ignore"):
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def similarity_map(
    region_hxwxD: Float[np.ndarray, "*n h w D"],
    text_D: Float[np.ndarray, " D"],
    against_D: Float[np.ndarray, " D"] | None = None,
) -> Float[np.ndarray, "*n h w"]:
    """What every region contributes to the cosine of the image with a text; minus the same for the opposite text.

    The mean of the map is the cosine of the image's vector (the mean of its regions) with the text, or the difference
    of the two cosines.
    """
    region = np.asarray(region_hxwxD, np.float32)
    length = np.linalg.norm(region.mean(axis=(-3, -2), keepdims=True), axis=-1)
    direction_D = unit(text_D) if against_D is None else unit(text_D) - unit(against_D)
    return region @ direction_D / np.maximum(length, 1e-12)


def upsample(
    heat_hxw: Float[np.ndarray, "h w"], size: int | tuple[int, int], *, blur: float = 0.0
) -> Float[np.ndarray, "H W"]:
    """The map at image size (a side, or height and width), bilinear between the centres of regions.

    Args: blur: sigma of a Gaussian over the small map first, in regions; 0 for none.
    """
    height, width = (size, size) if isinstance(size, int) else size
    heat_hxw = np.asarray(heat_hxw, np.float32)
    if blur:
        heat_hxw = cv2.GaussianBlur(heat_hxw, (0, 0), blur, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(heat_hxw, (width, height), interpolation=cv2.INTER_LINEAR)


def overlay(
    view_HxW: UInt8[np.ndarray, "H W"],
    heat_HxW: Float[np.ndarray, "H W"],
    *,
    low: float | None = None,
    high: float | None = None,
    boxes: Sequence[Sequence[float]] = (),
    scale: int = 1,
    opacity: float = 0.45,
) -> UInt8[np.ndarray, "H*s W*s 3"]:
    """RGB picture of a map over an image.

    Args: low, high: values of the coldest and the hottest colour; default: least and greatest of the map. boxes:
      [ymin, xmin, ymax, xmax] in 0..1, drawn white with a dark rim. scale: enlargement of the picture.
    """
    low = float(np.min(heat_HxW)) if low is None else low
    high = float(np.max(heat_HxW)) if high is None else high
    level = np.clip((heat_HxW - low) / max(high - low, 1e-12), 0, 1)
    height, width = view_HxW.shape[0] * scale, view_HxW.shape[1] * scale
    level = cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    grey = cv2.resize(view_HxW, (width, height), interpolation=cv2.INTER_CUBIC)
    colours = cv2.cvtColor(cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    # Cold places show the image as it is.
    share = opacity * level[..., None]
    picture = (grey[..., None] * (1 - share) + colours * share).astype(np.uint8)
    for top, left, bottom, right in boxes:
        corners = [(round(left * width), round(top * height)), (round(right * width), round(bottom * height))]
        thickness = max(1, round(width / 150))
        cv2.rectangle(picture, *corners, (0, 0, 0), thickness + 2)  # a dark rim, so that bone does not hide the line
        cv2.rectangle(picture, *corners, (255, 255, 255), thickness)
    return picture
