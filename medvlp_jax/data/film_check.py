"""Does a picture look like a frontal chest radiograph, black air, upright: doubts about an input, never refusals.

Pure functions of arrays and header values. Every threshold below was set on 4,109 radiographs (ChestX-ray14 1,000 at
320 px and 1,000 at 64 px, Montgomery 138, Shenzhen 662, COVID-19 Image Data Collection 349, Kermany 960), of which 20
(0.5 %) raise a doubt that they should not; 4,089 of their inverted copies (99.5 %) are called inverted. More rates:
docs/predict.md; `tests/data/test_film_check.py` measures them again where the images are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from medvlp_jax.data import images
from medvlp_jax.data.dicom import header_values

SMALLEST_SIDE = 64  # pixels
LARGEST_ASPECT = 2.0  # radiographs: at most 1.87
LEAST_RANGE = 40  # grey levels between percentiles 1 and 99; radiographs: at least 62
MOST_CLIPPED = 0.30  # share of pixels that are black or white; radiographs: at most 0.297
CHANNEL_DIFFERENCE, MOST_COLOUR = 32, 0.02  # share of pixels whose channels differ by more grey levels than that
LEAST_PATTERN = 0.2  # radiographs: 99.5 % at least

MODALITIES = ("DX", "CR", "RG")
CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "RIB")
LATERAL_WORDS = ("LL", "RL", "LAT", "LATERAL", "LLD", "RLD")
TAGS = ("Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation")


class Doubt(NamedTuple):
    """One reason not to trust what a model says about an image. `check`: short name; `message`: for people."""

    check: str
    message: str


def check_file(data: bytes, grey_HxW: UInt8[np.ndarray, "H W"]) -> list[Doubt]:
    """All doubts about an image file. Args: data: the bytes of the file; grey_HxW: what was read from them."""
    if images.sniff(data) == "dicom":
        return check_tags(read_tags(data)) + check_grey(grey_HxW)
    colour_HxWx3 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return (check_colour(colour_HxWx3) if colour_HxWx3 is not None else []) + check_grey(grey_HxW)


def check_colour(colour_HxWx3: UInt8[np.ndarray, "H W 3"]) -> list[Doubt]:
    """`colour`: a photograph, or a screenshot with coloured marks."""
    step = max(1, min(colour_HxWx3.shape[:2]) // 256)
    some_HxWx3 = colour_HxWx3[::step, ::step]
    difference_HxW = some_HxWx3.max(axis=2) - some_HxWx3.min(axis=2)
    share = float((difference_HxW > CHANNEL_DIFFERENCE).mean())
    if share <= MOST_COLOUR:
        return []
    return [Doubt("colour", f"{share:.0%} of the pixels are coloured; a radiograph is grey")]


def check_grey(grey_HxW: UInt8[np.ndarray, "H W"]) -> list[Doubt]:
    """`tiny`, `aspect`, then either `empty` or any of `clipped`, and `inverted` or `unlike`."""
    doubts = []
    short, long = sorted(grey_HxW.shape)
    if short < SMALLEST_SIDE:
        doubts.append(Doubt("tiny", f"{grey_HxW.shape[1]} x {grey_HxW.shape[0]} pixels are too few to see findings"))
    if long > LARGEST_ASPECT * short:
        doubts.append(Doubt("aspect", f"{grey_HxW.shape[1]} x {grey_HxW.shape[0]} pixels: too narrow for a chest"))
    content_HxW = _content(grey_HxW)
    count_256 = _histogram(content_HxW)
    low, high = _percentiles(count_256, (1, 99))
    if high - low < LEAST_RANGE:
        doubts.append(Doubt("empty", f"nearly all pixels lie within {high - low:.0f} of 255 grey levels"))
        return doubts
    clipped = float((count_256[:3].sum() + count_256[253:].sum()) / content_HxW.size)
    if clipped > MOST_CLIPPED:
        doubts.append(Doubt("clipped", f"{clipped:.0%} of the pixels are plain black or white: a window too narrow?"))
    pattern = _pattern(content_HxW)
    if pattern < -LEAST_PATTERN:
        message = "lungs bright, heart and abdomen dark: inverted (MONOCHROME1 saved as it was?) or upside down"
        doubts.append(Doubt("inverted", f"{message}; chest pattern {pattern:+.2f}"))
    elif pattern < LEAST_PATTERN:
        message = "does not have the light and dark places of a frontal, upright chest radiograph"
        doubts.append(Doubt("unlike", f"{message}; chest pattern {pattern:+.2f}"))
    return doubts


def chest_pattern(grey_HxW: UInt8[np.ndarray, "H W"]) -> float:
    """How much brighter spine, heart and upper abdomen are than the lungs and the air above the shoulders, -1..1.

    Grey levels are replaced by their ranks, so exposure and contrast do not matter and an inverted image has the
    opposite value. On an 8×8 grid over the image without its bars: mean rank of rows 5-8 × columns 4-5 and rows 7-8 ×
    columns 3-6 (spine, heart, abdomen), minus half of rows 2-4 × columns 3 and 6 (lungs) and half of row 1 without
    columns 4 and 5 (air). The places were chosen by looking at mean images of the sets named above; nothing was fitted.
    """
    return _pattern(_content(grey_HxW))


def _content(grey_HxW: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """At most about 1,024 pixels a side, without bars."""
    step = max(1, max(grey_HxW.shape) // 1024)
    return without_bars(grey_HxW[::step, ::step])


def _histogram(grey_HxW: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, " 256"]:
    """How often each grey level occurs. (`np.bincount` converts first; counts are exact below 16 million pixels.)"""
    return cv2.calcHist([grey_HxW], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def _percentiles(count_256: Int[np.ndarray, " 256"], percent: Sequence[float]) -> list[float]:
    """`np.percentile` of grey levels, from how often each occurs: a tenth of the time."""
    up_to_256 = np.cumsum(count_256)
    found = []
    for place in (p / 100 * (up_to_256[-1] - 1) for p in percent):
        below, above = np.searchsorted(up_to_256, (np.floor(place), np.ceil(place)), "right")
        found.append(float(below + (above - below) * (place - np.floor(place))))
    return found


def _pattern(content_HxW: UInt8[np.ndarray, "H W"]) -> float:
    rank_8x8 = _mean_ranks(content_HxW)
    centre = np.concatenate([rank_8x8[4:, 3:5].ravel(), rank_8x8[6:, 2:6].ravel()]).mean()
    lungs = rank_8x8[1:4, [2, 5]].mean()
    corners = rank_8x8[0, [0, 1, 2, 5, 6, 7]].mean()
    return float(centre - (lungs + corners) / 2)


def _mean_ranks(content_HxW: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "8 8"]:
    """Ranks of grey levels, 0..1, averaged over an 8×8 grid; equal levels share their mean rank."""
    small_64x64 = cv2.resize(content_HxW, (64, 64), interpolation=cv2.INTER_AREA)
    count_256 = _histogram(small_64x64)
    up_to_256 = np.cumsum(count_256)
    rank_256 = (2 * up_to_256 - count_256 - 1) / (2 * small_64x64.size - 2)
    return rank_256[small_64x64].reshape(8, 8, 8, 8).mean(axis=(1, 3))


def without_bars(grey_HxW: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """Without rows and columns at the edge that have one grey level each, bright or dark (padding, collimator)."""
    grey_HxW = np.ascontiguousarray(grey_HxW)
    rows, columns = (np.flatnonzero(_varies(lines)) for lines in (cv2.transpose(grey_HxW), grey_HxW))
    if len(rows) < 8 or len(columns) < 8:
        return grey_HxW
    return grey_HxW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _varies(grey_HxW: UInt8[np.ndarray, "H W"]) -> Bool[np.ndarray, " W"]:
    """Columns whose standard deviation is above 3 grey levels. In whole numbers, and of columns alone: `np.std`
    converts first, and OpenCV takes three times as long to sum along rows."""
    count = grey_HxW.shape[0]
    total, squares = (
        cv2.reduce(grey_HxW, 0, what, dtype=cv2.CV_64F).ravel() for what in (cv2.REDUCE_SUM, cv2.REDUCE_SUM2)
    )
    return count * squares - total**2 > 9 * count**2


def read_tags(data: bytes) -> dict[str, str]:
    """The values of `TAGS` that a DICOM file has, in upper case; nothing that may identify a patient is read."""
    return {name: value.upper() for name, value in header_values(data, TAGS).items()}


def check_tags(tags: Mapping[str, str]) -> list[Doubt]:
    """`modality`, `body_part`, `lateral`, `colour` from DICOM header values; a tag that is missing raises no doubt."""
    doubts = []
    modality, part = tags.get("Modality", ""), tags.get("BodyPartExamined", "")
    view, photometric = tags.get("ViewPosition", ""), tags.get("PhotometricInterpretation", "")
    if modality and modality not in MODALITIES:
        doubts.append(Doubt("modality", f"DICOM Modality is {modality}, not one of {', '.join(MODALITIES)}"))
    if part and not any(word in part for word in CHEST_WORDS):
        doubts.append(Doubt("body_part", f"DICOM BodyPartExamined is {part}, not the chest"))
    if view in LATERAL_WORDS:
        doubts.append(Doubt("lateral", f"DICOM ViewPosition is {view}: a lateral view"))
    if photometric and not photometric.startswith("MONOCHROME"):
        doubts.append(Doubt("colour", f"DICOM PhotometricInterpretation is {photometric}; a radiograph is grey"))
    return doubts
