"""Augmented views of one grey image: one 3×3 homography, one interpolation, one lookup table.

Every geometric step (crop, flips, rotation, shift, zoom, perspective) is a 3×3 matrix that maps *output* pixel
coordinates to *input* pixel coordinates; the product of the steps is applied by a single OpenCV warp, so pixels are
interpolated once however many steps there are. Photometric steps then compose into one 256-entry table.

Coordinates are (x, y) with pixel centres on the integers: a side of n pixels spans -0.5 .. n - 0.5. Images are uint8
[H, W]; normalisation belongs to the device.

The steps and their parameters follow torchvision 0.14 (RandomCrop, RandomResizedCrop, RandomRotation, RandomAffine,
RandomPerspective, RandomAutocontrast). Differences: several steps share one interpolation, corners move by real
numbers instead of whole pixels, and content that one step pushes out of the frame may come back in by a later one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data import images

Matrix = NDArray[np.float64]  # 3×3, output coordinates -> input coordinates
Image = NDArray[np.uint8]  # [H, W]

INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
FITS = ("pad", "squash")
OUTSIDES = ("black", "record")

# A reduction beyond this factor is done by area averaging first: a bilinear warp alone would skip pixels.
_MAX_WARP_REDUCTION = 1.5


# One uniform number per random decision, always all of them: switching one augmentation on or off, or changing its
# strength, leaves the draws of the others as they were.
_SLOT_SIZES = {
    **{"crop": 2, "scale": 1, "ratio": 1, "hflip": 1, "vflip": 1, "rotate": 1, "shift": 2, "zoom": 1},
    **{"perspective": 1, "corners": 8, "brightness": 1, "contrast": 1, "gamma": 1, "autocontrast": 1},
}
_ENDS = list(itertools.accumulate(_SLOT_SIZES.values()))
_SLOTS = {name: slice(end - _SLOT_SIZES[name], end) for name, end in zip(_SLOT_SIZES, _ENDS, strict=True)}
_DRAWS = _ENDS[-1]


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """What one random view is made of. The steps are applied in the order of the fields.

    size: side of the view in pixels.
    crop_from: side in pixels of the square frame that the whole record fills; a size×size window is cut from it, so
        `size=224, crop_from=256` cuts 224 px of a record scaled to 256 px. None: the window is the whole record.
    fit: how a non-square record fills the frame: `pad` (black bars, aspect kept) or `squash`.
    outside: what lies outside the window when a later step looks there: `black`, or the rest of the `record`.
    scale: (low, high) area of the window as a fraction of the frame, as in RandomResizedCrop; excludes crop_from.
    ratio: (low, high) width / height of that window, log-uniform. Used with `scale` only.
    hflip, vflip: probabilities.
    rotate: degrees; the angle is uniform in ±rotate.
    shift: fraction of the side; the shift is uniform in ±shift on each axis.
    zoom: (low, high) magnification, uniform.
    perspective: distortion; each corner moves inwards by up to distortion · size / 2 on each axis.
    perspective_p: probability of the perspective step.
    brightness, contrast, gamma: half-widths; the factor (or exponent) is uniform in 1 ± value.
    autocontrast: probability of stretching the darkest pixel to 0 and the brightest to 255.
    interpolation: `bilinear`, `bicubic` or `nearest`.

    Raises ValueError for a value out of range.
    """

    size: int = 224
    crop_from: int | None = None
    fit: str = "pad"
    outside: str = "black"
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    vflip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] | None = None
    perspective: float = 0.0
    perspective_p: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    autocontrast: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size={self.size!r} must be a positive whole number of pixels.")
        if self.crop_from is not None and (not isinstance(self.crop_from, int) or self.crop_from < self.size):
            raise ValueError(
                f"crop_from={self.crop_from!r} must be a whole number of at least size={self.size}: "
                f"a {self.size} px window is cut from a crop_from px frame."
            )
        if self.scale is not None and self.crop_from is not None:
            raise ValueError(
                "scale and crop_from both choose the window. Use scale=(low, high) or crop_from=n, not both."
            )
        for name in ("hflip", "vflip", "perspective_p", "autocontrast"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("perspective", "brightness", "contrast", "gamma", "shift"):
            _check_range(name, getattr(self, name), 0.0, 0.99)
        _check_range("rotate", self.rotate, 0.0, 180.0)
        for name, high in (("scale", 1.0), ("ratio", 10.0), ("zoom", 10.0)):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and 0.0 < pair[0] <= pair[1] <= high):
                raise ValueError(f"{name}={pair!r} must be (low, high) with 0 < low <= high <= {high:g}.")
        _check_choice("fit", self.fit, FITS)
        _check_choice("outside", self.outside, OUTSIDES)
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from {low:g} to {high:g}.")


def _check_choice(name: str, value: str, known: Sequence[str] | dict[str, int]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown. Choose one of {', '.join(known)}.")


# ---- geometry: output coordinates -> input coordinates -----------------------------------------------------------


def window(left: float, top: float, width: float, height: float, size: float) -> Matrix:
    """size×size output <- the width×height window of the input whose first pixel is (left, top)."""
    step_x, step_y = width / size, height / size
    return np.array(
        [[step_x, 0.0, left + 0.5 * step_x - 0.5], [0.0, step_y, top + 0.5 * step_y - 0.5], [0.0, 0.0, 1.0]]
    )


def frame(height: int, width: int, side: float, fit: str = "pad") -> Matrix:
    """side×side frame <- a height×width record, padded to square (the bars split evenly) or squashed."""
    if fit == "squash":
        return window(0.0, 0.0, width, height, side)
    longest = max(height, width)
    # Whole-pixel bars: a padded record then maps exactly onto what padding its array gives.
    return window(-((longest - width) // 2), -((longest - height) // 2), longest, longest, side)


def flip(size: int, *, horizontal: bool, vertical: bool) -> Matrix:
    """Mirror left-right and / or top-bottom."""
    matrix = np.eye(3)
    if horizontal:
        matrix[0, 0], matrix[0, 2] = -1.0, size - 1.0
    if vertical:
        matrix[1, 1], matrix[1, 2] = -1.0, size - 1.0
    return matrix


def affine(size: int, *, degrees: float = 0.0, shift_x: float = 0.0, shift_y: float = 0.0, zoom: float = 1.0) -> Matrix:
    """Rotate counter-clockwise about the centre, magnify by `zoom`, then move by (shift_x, shift_y) pixels."""
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    centre = 0.5 * (size - 1)
    x, y = centre + shift_x, centre + shift_y
    return np.array([[cos, -sin, centre - cos * x + sin * y], [sin, cos, centre - sin * x - cos * y], [0.0, 0.0, 1.0]])


def perspective(size: int, inward_4x2: NDArray[np.float64]) -> Matrix:
    """Moves the corners (top left, top right, bottom right, bottom left) inwards by `inward_4x2` pixels (x, y)."""
    last = size - 1.0
    corners_4x2 = np.array([[0.0, 0.0], [last, 0.0], [last, last], [0.0, last]])
    signs_4x2 = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    moved_4x2 = corners_4x2 + signs_4x2 * inward_4x2
    return cv2.getPerspectiveTransform(moved_4x2.astype(np.float32), corners_4x2.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One drawn geometry: `matrix` maps view pixels to record pixels, `bounds` limits what may be seen.

    bounds: (x0, y0, x1, y1) in record pixels, half open; may reach beyond the record. Outside is black.
    """

    matrix: Matrix
    bounds: tuple[int, int, int, int]


def draw_geometry(spec: ViewSpec, uniform: NDArray[np.float64], height: int, width: int) -> Geometry:
    """The homography of one view of a height×width record.

    Args:
      uniform: the view's random numbers, float64 in [0, 1), as drawn by `draw`.
    """
    u, size = uniform, spec.size
    side = float(spec.crop_from or size)
    if spec.scale is not None:
        window_w, window_h = _resized_window(spec, u, side)
        left, top = u[_SLOTS["crop"]] * (side - window_w, side - window_h)
    else:
        window_w = window_h = float(size)
        left, top = np.floor(u[_SLOTS["crop"]] * (side - size + 1.0))  # whole offsets, as in RandomCrop
    to_record = frame(height, width, side, spec.fit) @ window(left, top, window_w, window_h, size)
    bounds = (0, 0, width, height)
    if spec.outside == "black":
        # Edges of the window in record pixels: exact for whole-pixel windows, else rounded outwards.
        (step_x, _, first_x), (_, step_y, first_y), _ = to_record.tolist()
        edge_x, edge_y = first_x - 0.5 * step_x + 0.5, first_y - 0.5 * step_y + 0.5
        x0, y0 = math.floor(edge_x + 1e-6), math.floor(edge_y + 1e-6)
        bounds = (x0, y0, math.ceil(edge_x + size * step_x - 1e-6), math.ceil(edge_y + size * step_y - 1e-6))
    matrix = to_record
    horizontal, vertical = _hit(u, "hflip", spec.hflip), _hit(u, "vflip", spec.vflip)
    if horizontal or vertical:
        matrix = matrix @ flip(size, horizontal=horizontal, vertical=vertical)
    if spec.rotate or spec.shift or spec.zoom:
        shift_x, shift_y = (2.0 * u[_SLOTS["shift"]] - 1.0) * spec.shift * size
        zoom = 1.0 if spec.zoom is None else _between(u, "zoom", *spec.zoom)
        degrees = _between(u, "rotate", -spec.rotate, spec.rotate)
        matrix = matrix @ affine(size, degrees=degrees, shift_x=shift_x, shift_y=shift_y, zoom=zoom)
    if spec.perspective and _hit(u, "perspective", spec.perspective_p):
        inward_4x2 = u[_SLOTS["corners"]].reshape(4, 2) * (spec.perspective * size / 2.0)
        matrix = matrix @ perspective(size, inward_4x2)
    return Geometry(matrix, bounds)


def _resized_window(spec: ViewSpec, u: NDArray[np.float64], side: float) -> tuple[float, float]:
    area = _between(u, "scale", *spec.scale) * side * side
    ratio = math.exp(_between(u, "ratio", math.log(spec.ratio[0]), math.log(spec.ratio[1])))
    return min(side, math.sqrt(area * ratio)), min(side, math.sqrt(area / ratio))


def _hit(u: NDArray[np.float64], slot: str, probability: float) -> bool:
    return bool(u[_SLOTS[slot].start] < probability)


def _between(u: NDArray[np.float64], slot: str, low: float, high: float) -> float:
    return float(low + (high - low) * u[_SLOTS[slot].start])


def warp(
    image: Image, geometry: Geometry, size: int, interpolation: str = "bilinear", out: Image | None = None
) -> Image:
    """Samples a size×size view of `image`; uint8 [size, size], black outside the bounds.

    out: contiguous uint8 [size, size] to write into (optional).
    """
    height, width = image.shape
    x0, y0 = max(0, geometry.bounds[0]), max(0, geometry.bounds[1])
    x1, y1 = min(width, geometry.bounds[2]), min(height, geometry.bounds[3])
    if out is None:
        out = np.empty((size, size), np.uint8)
    if x0 >= x1 or y0 >= y1:
        out[:] = 0
        return out
    region = image[y0:y1, x0:x1]
    matrix = geometry.matrix.copy()
    matrix[0] -= x0 * matrix[2]
    matrix[1] -= y0 * matrix[2]
    region, matrix = _reduce(region, matrix, size)
    if (copied := _whole_pixels(region, matrix, size)) is not None:
        np.copyto(out, copied)
        return out
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    if matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0:
        return cv2.warpAffine(region, matrix[:2] / matrix[2, 2], (size, size), dst=out, flags=flags)
    return cv2.warpPerspective(region, matrix, (size, size), dst=out, flags=flags)


def _reduce(region: Image, matrix: Matrix, size: int) -> tuple[Image, Matrix]:
    """Averages areas when the view is much coarser than the record."""
    corner = 0.5 * (size - 1)
    centre_3 = matrix @ (corner, corner, 1.0)
    factor = math.sqrt(abs(cv2.determinant(matrix) / centre_3[2] ** 3))  # record pixels per view pixel, at the centre
    if factor < _MAX_WARP_REDUCTION:
        return region, matrix
    height, width = region.shape
    new_w, new_h = max(1, round(width / factor)), max(1, round(height / factor))
    shrink = np.array(
        [
            [new_w / width, 0.0, 0.5 * new_w / width - 0.5],
            [0.0, new_h / height, 0.5 * new_h / height - 0.5],
            [0.0, 0.0, 1.0],
        ]
    )
    return cv2.resize(region, (new_w, new_h), interpolation=cv2.INTER_AREA), shrink @ matrix


def _whole_pixels(region: Image, matrix: Matrix, size: int) -> Image | None:
    """The view as a slice of `region` when the map only moves and mirrors whole pixels inside it; else None."""
    (a, b, tx), (c, d, ty), last = matrix
    if b or c or abs(a) != 1.0 or abs(d) != 1.0 or tx != int(tx) or ty != int(ty) or tuple(last) != (0.0, 0.0, 1.0):
        return None
    left = int(tx) if a > 0 else int(tx) - size + 1
    top = int(ty) if d > 0 else int(ty) - size + 1
    if left < 0 or top < 0 or left + size > region.shape[1] or top + size > region.shape[0]:
        return None
    return region[top : top + size, left : left + size][:: int(d), :: int(a)]


# ---- photometry -----------------------------------------------------------

_LEVELS = np.arange(256, dtype=np.float64)


def draw_table(view: Image, spec: ViewSpec, uniform: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    """Brightness, contrast about the mean grey, gamma and autocontrast of `view` as one uint8 [256] table.

    None when there is nothing to change. Autocontrast leaves a constant view alone.
    """
    u, levels = uniform, _LEVELS
    if spec.brightness:
        levels = np.minimum(levels * _between(u, "brightness", 1.0 - spec.brightness, 1.0 + spec.brightness), 255.0)
    if spec.contrast:
        counts = cv2.calcHist([view], [0], None, [256], [0, 256]).ravel().astype(np.float64)
        mean = float(counts @ levels) / counts.sum()
        factor = _between(u, "contrast", 1.0 - spec.contrast, 1.0 + spec.contrast)
        levels = np.clip(mean + (levels - mean) * factor, 0.0, 255.0)
    if spec.gamma:
        levels = 255.0 * (levels / 255.0) ** _between(u, "gamma", 1.0 - spec.gamma, 1.0 + spec.gamma)
    if _hit(u, "autocontrast", spec.autocontrast):
        low, high, _, _ = cv2.minMaxLoc(view)  # every step rises, so the extremes stay the extremes
        low, high = levels[int(low)], levels[int(high)]
        if high > low:
            levels = np.clip((levels - low) * (255.0 / (high - low)), 0.0, 255.0)
    if levels is _LEVELS:
        return None
    return (levels + 0.5).astype(np.uint8)


# ---- whole views -----------------------------------------------------------


def draw(rng: np.random.Generator) -> NDArray[np.float64]:
    """The random numbers of one view, float64 in [0, 1); their count does not depend on what is switched on."""
    return rng.random(_DRAWS)


def random_view(image: Image, spec: ViewSpec, rng: np.random.Generator, out: Image | None = None) -> Image:
    """One augmented view of `image` (uint8 [H, W], any shape): uint8 [size, size]."""
    uniform = draw(rng)
    geometry = draw_geometry(spec, uniform, *image.shape)
    view = warp(image, geometry, spec.size, spec.interpolation, out)
    table = draw_table(view, spec, uniform)
    return view if table is None else cv2.LUT(view, table, dst=view)


def center_view(image: Image, size: int, crop_from: int | None = None, fit: str = "pad") -> Image:
    """The evaluation view: the record scaled to a crop_from px square, its central size×size window, nothing random."""
    side = ViewSpec(size=size, crop_from=crop_from, fit=fit).crop_from or size
    start = round((side - size) / 2.0)
    return images.resize_keep_aspect(image, side, fit)[start : start + size, start : start + size]
