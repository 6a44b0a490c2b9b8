"""A similarity map drawn over its image, in the geometry of that image, with a scale of the colours."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from medvlp_jax.heatmap import overlay, upsample

SHORTEST, LONGEST = 512, 1024  # longer side of a picture, pixels
_FONT = ImageFont.load_default(size=14)
_LINE, _BAR = 18, 86  # height of a line of text, width of the scale


def display(grey_HxW: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """The image at display size: same aspect, longer side within SHORTEST..LONGEST."""
    scale = float(np.clip(max(grey_HxW.shape), SHORTEST, LONGEST)) / max(grey_HxW.shape)
    height, width = (max(1, round(side * scale)) for side in grey_HxW.shape)
    return cv2.resize(grey_HxW, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def onto_image(
    heat_hxw: Float[np.ndarray, "h w"],
    view_size: int,
    view_to_image: Float[np.ndarray, "3 3"],
    image_shape: tuple[int, int],
    picture_shape: tuple[int, int],
) -> Float[np.ndarray, "H W"]:
    """A map over the evaluation view -> over the whole image, at `picture_shape`; NaN where the view did not reach.

    Args: view_size: side of the view; view_to_image: from `data.view_geometry`; image_shape: height and width.
    """
    step_y, step_x = (image / picture for image, picture in zip(image_shape, picture_shape, strict=True))
    picture_to_image = np.array([[step_x, 0, 0.5 * step_x - 0.5], [0, step_y, 0.5 * step_y - 0.5], [0, 0, 1]])
    picture_to_view = np.linalg.inv(view_to_image) @ picture_to_image
    heat_HxW = cv2.warpAffine(
        upsample(heat_hxw, view_size),
        picture_to_view[:2],
        picture_shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    for axis, row in ((1, 0), (0, 1)):  # the map is a scale and a shift per axis
        place = picture_to_view[row, row] * np.arange(picture_shape[axis]) + picture_to_view[row, 2]
        outside = (place < -0.5) | (place > view_size - 0.5)
        heat_HxW[(slice(None), outside) if axis else outside] = np.nan
    return heat_HxW


def draw(
    grey_HxW: UInt8[np.ndarray, "H W"],
    heat_HxW: Float[np.ndarray, "H W"],
    low: float,
    high: float,
    caption: Sequence[str],
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """RGB picture: map over image, a thin frame around what the model saw when that is not all, scale, caption.

    Args: low, high: values of the coldest colour (which shows the image as it is) and of the hottest.
    """
    height, width = grey_HxW.shape
    seen_HxW = ~np.isnan(heat_HxW)
    picture = overlay(grey_HxW, np.where(seen_HxW, heat_HxW, low), low=low, high=high)
    caption = list(caption)
    if not seen_HxW.all():
        caption.append("Outside the frame: not seen by the model.")
        rows, columns = np.flatnonzero(seen_HxW.any(axis=1)), np.flatnonzero(seen_HxW.any(axis=0))
        corners = (int(columns[0]), int(rows[0])), (int(columns[-1]), int(rows[-1]))
        cv2.rectangle(picture, *corners, (150, 150, 150), 1)
    lines = [part for line in caption for part in textwrap.wrap(line, max(20, (width + _BAR) // 7))[:3]]
    body = max(height, 120)  # the scale needs that much
    canvas = np.zeros((body + _LINE * len(lines) + 8, width + _BAR, 3), np.uint8)
    canvas[:height, :width] = picture
    # The scale shows the colours as they come out over a middle grey.
    top, bottom = 24, body - 24
    ramp = np.repeat(np.linspace(high, low, bottom - top)[:, None], 18, axis=1)
    canvas[top:bottom, width + 8 : width + 26] = overlay(np.full(ramp.shape, 96, np.uint8), ramp, low=low, high=high)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for share in (0.0, 0.5, 1.0):
        value = high + share * (low - high)
        pen.text(
            (width + 31, top + share * (bottom - top) - 9), f"{round(value, 2) + 0.0:+.2f}", fill="white", font=_FONT
        )
    for i, line in enumerate(lines):
        pen.text((6, body + 4 + _LINE * i), line, fill="white", font=_FONT)
    return np.asarray(image)


def save_png(path: Path, picture_HxWx3: UInt8[np.ndarray, "H W 3"]) -> None:
    """Raises: OSError when it cannot be written."""
    Image.fromarray(picture_HxWx3).save(path, "PNG")
