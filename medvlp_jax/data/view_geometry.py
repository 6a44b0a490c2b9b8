"""Where a pixel of the evaluation view lies in the image that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from medvlp_jax.data import images, preprocess

Matrix = Float[np.ndarray, "3 3"]
Part = tuple[UInt8[np.ndarray, "h w"], Matrix]


def view_to_image(ops: Sequence[preprocess.Op], grey_HxW: UInt8[np.ndarray, "H W"]) -> Matrix:
    """Homogeneous (x, y) of view pixel centres -> those of pixels of `grey_HxW`, through `ops`.

    Args: ops: what makes the view, `decode` left out; the image itself decides where `crop_border` cuts.
    Raises: ValueError for an operation that has no place-to-place map here, such as random `views`.
    """
    image, matrix = grey_HxW, np.eye(3)
    for op in ops:
        if op.name not in _MAPS:
            raise ValueError(f"No map from the view to the image is known for {op}. Known: {', '.join(_MAPS)}.")
        image, step = _MAPS[op.name](image, *op.args, **dict(op.kwargs))
        matrix = matrix @ step
    return matrix


def box_in_view(
    box: Sequence[float], matrix: Matrix, image_shape: tuple[int, int], view_size: int | tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """A box of an image in the frame of its view, cut to it; None when it lies outside.

    Args: box: [ymin, xmin, ymax, xmax] in 0..1, as the result. matrix: from `view_to_image`. view_size: side of the
      view, or its (height, width).
    """
    height, width = image_shape
    view_h, view_w = view_size if isinstance(view_size, tuple) else (view_size, view_size)
    top, left, bottom, right = np.asarray(box, np.float64) * (height, width, height, width) - 0.5  # to pixel centres
    corners_3x2 = np.linalg.inv(matrix) @ [[left, right], [top, bottom], [1.0, 1.0]]
    (left, right), (top, bottom) = np.clip((corners_3x2[:2] + 0.5) / [[view_w], [view_h]], 0, 1)
    return None if top >= bottom or left >= right else (top, left, bottom, right)


def _crop_border(image: UInt8[np.ndarray, "H W"], threshold: float = 0.02, margin: int = 0) -> Part:
    rows, columns = images.border_window(image, threshold=threshold, margin=margin)
    return image[rows, columns], _scale_and_shift(1.0, 1.0, columns.start, rows.start)


def _resize(image: UInt8[np.ndarray, "H W"], size: int, fit: str = "pad") -> Part:
    resized = images.resize_keep_aspect(image, size, fit)
    height, width = image.shape
    inner_h, inner_w = resized.shape
    if fit == "pad":  # bars around the resized image
        scale = size / max(height, width)
        inner_h, inner_w = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (resized.shape[1] - inner_w) // 2, (resized.shape[0] - inner_h) // 2
    step_x, step_y = width / inner_w, height / inner_h
    # The edges of images agree, not the centres of their first pixels.
    return resized, _scale_and_shift(step_x, step_y, (0.5 - left) * step_x - 0.5, (0.5 - top) * step_y - 0.5)


def _pad_to_square(image: UInt8[np.ndarray, "H W"], value: int = 0) -> Part:
    height, width = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), value, np.uint8)
    square[top : top + height, left : left + width] = image
    return square, _scale_and_shift(1.0, 1.0, -left, -top)


def _center(image: UInt8[np.ndarray, "H W"], size: int = 224, crop_from: int | None = None, fit: str = "pad") -> Part:
    framed, matrix = _resize(image, crop_from or size, fit)
    start = round(((crop_from or size) - size) / 2.0)
    window = framed[start : start + size, start : start + size]
    return window, matrix @ _scale_and_shift(1.0, 1.0, start, start)


def _scale_and_shift(step_x: float, step_y: float, x: float, y: float) -> Matrix:
    return np.array([[step_x, 0.0, x], [0.0, step_y, y], [0.0, 0.0, 1.0]])


_MAPS: dict[str, Callable[..., Any]] = {
    "crop_border": _crop_border,
    "resize": _resize,
    "pad_to_square": _pad_to_square,
    "center": _center,
}
