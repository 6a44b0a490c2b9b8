"""Letters burnt into the edge of a radiograph: side markers, and text that a machine wrote into the pixels.

A rule, not a reader: what is bright, sharp-edged, made of thin strokes, as high as a letter, on a darker ground and
near the border is taken for a letter and painted over with the grey around it. It is careful with anatomy and therefore
misses text: it does not make a set anonymous. How often it hits: docs/data.md, from `benchmarks/burned_in.py`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from medvlp_jax.data import images

CORNER = (0.2, 0.3)  # of height and width: a letter lies in a corner of that size wholly,
EDGE = 0.08  # or in a strip of that share of the shorter side along any border
HEIGHTS = (0.012, 0.09)  # of the shorter side
LEAST_HEIGHT = 5  # pixels
LEAST_CONTRAST = 45  # grey levels of 255 over the ground
LEAST_LEVEL = 0.75  # of the grey level that only 0.5 % of the pixels exceed
LONGEST = 1.4  # width over height
EVEN = 90  # percentile of the ground that still is darker than two fifths of the way to the letter
FILL = (0.12, 0.8)  # share of its box that a letter covers
THICKEST = 0.42  # stroke over height
SOFTEST = 2.2  # how much larger a letter is at a quarter of its contrast than at three quarters; bones: more
WORKING_SIDE = 1024  # pixels; larger pictures are looked at in this size


class Region(NamedTuple):
    """Rows top..bottom and columns left..right (ends exclusive) that were painted over, and with what."""

    top: int
    left: int
    bottom: int
    right: int
    level: float


def blank(image: np.ndarray) -> tuple[np.ndarray, list[Region]]:
    """The image without what looks like letters near its border. Args: image: (H, W) uint8 or uint16.

    Returns: the image itself when nothing was found, else a copy; and the regions. Nothing else of it changes.
    """
    step = max(1, round(max(image.shape) / WORKING_SIDE))
    grey = images.to_uint8(image)
    if step > 1:
        small = (max(1, image.shape[1] // step), max(1, image.shape[0] // step))
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    found = letters(grey)
    if not found:
        return image, []
    out = image.copy()
    rows, columns = image.shape[0] / grey.shape[0], image.shape[1] / grey.shape[1]
    regions = []
    for box in found:
        top, bottom = int(box.top * rows), min(int(np.ceil(box.bottom * rows)), image.shape[0])
        left, right = int(box.left * columns), min(int(np.ceil(box.right * columns)), image.shape[1])
        level = float(np.median(_frame(image, top, left, bottom, right)))
        out[top:bottom, left:right] = level
        regions.append(Region(top, left, bottom, right, level))
    return out, regions


def letters(grey_HxW: UInt8[np.ndarray, "H W"]) -> list[Region]:
    """The boxes of what looks like letters, with a margin, in pixels of the picture; none in one below 64 pixels."""
    height, width = grey_HxW.shape
    short = min(height, width)
    if short < 64:
        return []
    low, high = max(LEAST_HEIGHT, HEIGHTS[0] * short), HEIGHTS[1] * short
    bright = LEAST_LEVEL * float(np.percentile(grey_HxW, 99.5))
    size = 2 * int(THICKEST * high / 2) + 1  # strokes are thinner, so opening takes them away
    opened = cv2.morphologyEx(grey_HxW, cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    thin = ((cv2.subtract(grey_HxW, opened) > LEAST_CONTRAST) & (grey_HxW > bright)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    candidates = []
    letters_HxW = np.zeros_like(thin)
    of_height = (stats[:count, cv2.CC_STAT_HEIGHT] >= low) & (stats[:count, cv2.CC_STAT_HEIGHT] <= high)
    of_height[0] = False  # the ground
    for number in np.flatnonzero(of_height):
        left, top, w, h, area = (int(value) for value in stats[number])
        box = (top, left, top + h, left + w)
        if not (w <= LONGEST * h and _near_border(box, height, width)):
            continue
        if not FILL[0] <= area / (w * h) <= (1.0 if w < THICKEST * h else FILL[1]):
            continue
        strokes = (labels[top : top + h, left : left + w] == number).astype(np.uint8)
        if _thickest(strokes) <= THICKEST * h + 1:
            candidates.append((box, strokes))
            letters_HxW[top : top + h, left : left + w] |= strokes
    letters_HxW = cv2.dilate(letters_HxW, np.ones((3, 3), np.uint8))
    found = []
    for (top, left, bottom, right), strokes in candidates:
        if _stands_out(grey_HxW, letters_HxW, strokes, top, left, bottom, right):
            more = max(2, (bottom - top) // 4)
            ends = min(height, bottom + more), min(width, right + more)
            found.append(Region(max(0, top - more), max(0, left - more), *ends, 0.0))
    return found


def _near_border(box: tuple[int, int, int, int], height: int, width: int) -> bool:
    """Wholly in a corner or an edge, and not cut off by the border itself."""
    top, left, bottom, right = box
    if top == 0 or left == 0 or bottom == height or right == width:
        return False
    edge = EDGE * min(height, width)
    if bottom <= edge or right <= edge or top >= height - edge or left >= width - edge:
        return True
    high, broad = CORNER[0] * height, CORNER[1] * width
    return (bottom <= high or top >= height - high) and (right <= broad or left >= width - broad)


def _thickest(strokes: np.ndarray) -> float:
    """Pixels across the thickest place."""
    return 2 * float(cv2.distanceTransform(cv2.copyMakeBorder(strokes, 1, 1, 1, 1, 0), cv2.DIST_L2, 3).max())


def _stands_out(
    grey: np.ndarray, letters: np.ndarray, strokes: np.ndarray, top: int, left: int, bottom: int, right: int
) -> bool:
    """Sharp edges, on a darker and even ground but for other letters."""
    height = bottom - top
    level = float(np.median(grey[top:bottom, left:right][strokes > 0]))
    around = _frame(grey, top, left, bottom, right)
    others = _frame(letters, top, left, bottom, right)
    around = around[others == 0] if (others == 0).mean() > 0.2 else around
    ground = float(np.median(around))
    contrast = level - ground
    if contrast < LEAST_CONTRAST or float(np.percentile(around, EVEN)) > ground + 0.4 * contrast:
        return False
    gap = max(1, height // 8)
    box = grey[max(0, top - gap) : bottom + gap, max(0, left - gap) : right + gap]
    wide, narrow = ((box > ground + share * contrast).sum() for share in (0.25, 0.75))
    # Edges are a pixel wide, which matters for small letters.
    return bool(narrow) and wide / narrow <= SOFTEST + 6 / height


def _frame(image: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """The pixels around a box, in a frame of a third of its height."""
    gap = max(2, (bottom - top) // 8)
    more = gap + max(2, (bottom - top) // 3)
    rows, columns = slice(max(0, top - more), bottom + more), slice(max(0, left - more), right + more)
    outside = np.ones(image[rows, columns].shape, bool)
    inner_top, inner_left = top - gap - rows.start, left - gap - columns.start
    outside[max(0, inner_top) : bottom + gap - rows.start, max(0, inner_left) : right + gap - columns.start] = False
    pixels = image[rows, columns][outside]
    return pixels if pixels.size else image[rows, columns].ravel()


def header_facts(data: bytes) -> list[str]:
    """What a DICOM header says of annotations: slugs to be counted. Overlays are never drawn into the picture."""
    import pydicom

    from medvlp_jax.data.dicom import hush

    hush()
    facts = []
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # a damaged header says nothing
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
        said = str(header.get("BurnedInAnnotation") or "").strip().upper()
        facts.append(f"BurnedInAnnotation {said if said in ('YES', 'NO') else 'not said'}")
        if any(0x6000 <= tag.group <= 0x60FF and tag.group % 2 == 0 for tag in tuple(header.keys())):
            facts.append("DICOM overlay left out")
    return facts
