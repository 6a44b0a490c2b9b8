"""Medical image files -> grey arrays -> encoded bytes.

`read_image` opens DICOM, PNG (8 and 16 bit) and JPEG, and refuses what it cannot read faithfully with an
`ImageError` whose `reason` is a slug that builders count. Grey stays one channel. Sizes are looked at before anything
is decoded, so that no file, however broken, takes more than about a GiB of memory (`benchmarks/fuzz_images.py`).
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

Fit = Literal["pad", "shorter", "squash"]
FITS: tuple[str, ...] = ("pad", "shorter", "squash")
REASONS: tuple[str, ...] = (
    "missing_file",
    "empty_file",
    "truncated_image",
    "unreadable_image",
    "unknown_image_format",
    "not_grey",
    "multi_frame",
    "blank_image",
    "too_large",
)
MOST_PIXELS = 2**26
"""Of an image, and of a frame of a DICOM file: 8192 x 8192. A film scanned at 50 um has 60 million, a detector 20."""
LONGEST_SIDE = 2**15
LARGEST_FILE = 2**28
"""Bytes."""
MOST_SCANS = 50
"""Of a progressive JPEG file; writers make about ten, and each costs as much time as a whole image."""


class ImageError(ValueError):
    """An image that cannot be used. `reason` is one of `REASONS`; `detail` says more, without pixels or header values
    but for sizes.

    Raised by `read_image`; builders turn it into a counted rejection.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageError, (self.reason, self.detail)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises: ImageError "missing_file", "empty_file", "too_large" or "unreadable_image"."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):  # a pipe would never end
            raise ImageError("unreadable_image", "not a regular file")
        if state.st_size > LARGEST_FILE:
            raise ImageError("too_large", f"{state.st_size} bytes; at most {LARGEST_FILE}")
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ImageError("missing_file", "no such file") from error
    except OSError as error:
        raise ImageError("unreadable_image", f"{error.strerror}") from error
    if not data:
        raise ImageError("empty_file", "0 bytes")
    return data


def read_image(
    source: str | os.PathLike[str] | bytes, *, frame: int | None = None, colour: Literal["mix", "refuse"] = "mix"
) -> np.ndarray:
    """A grey image (H, W): uint8, or uint16 for 16-bit PNG and for DICOM of more than 8 bits.

    DICOM: modality rescale, then the first VOI look-up table or window if there is one, then MONOCHROME1 inverted;
    more than 8 stored bits are spread over 0..65535 (the window, or the range of the values). PNG 16 bit keeps its
    values.

    Args: source: path or the bytes of a file. frame: which frame of a multi-frame DICOM; None refuses such files.
      colour: "mix" turns colour pixels into grey (ITU-R 601 weights), "refuse" raises "not_grey" when channels differ.
    Raises: ImageError, with a reason of `REASONS`.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError("empty_file", "0 bytes")
    kind = sniff(data)
    if kind == "dicom":
        from medvlp_jax.data import dicom

        image = dicom.read_dicom(data, frame, colour)
    else:
        image, _ = check_complete(data, kind)
        if image is None:
            image = _read_raster(data, kind, colour)
        elif image.ndim == 3:
            image = to_grey(image, colour)
    if image.size == 0:
        raise ImageError("unreadable_image", f"shape {image.shape}")
    if image.min() == image.max():
        raise ImageError("blank_image", "every pixel has the same value")
    return np.ascontiguousarray(image)


def read_for_resize(
    data: bytes, size: int, fit: Fit = "pad", *, frame: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """As `read_image`, for a picture that will be resized: a large JPEG is decoded at a quarter of its size.

    That is done where both sides are multiples of four, and where at least twice as many pixels are left each way as
    the resized picture has. (Half the size would save nothing: the bits must be read all the same.) Shrunk further by
    `resize_keep_aspect`, it differs little from the whole picture shrunk at once: `tests/data/test_images.py` holds the
    bounds. Colour is mixed to grey.

    Returns: (image, (height, width) of the picture in the file). Raises: ImageError, as `read_image`.
    """
    if data and sniff(data) == "jpeg":
        image, whole = check_complete(data, "jpeg", quarter_for=(size, fit))
        if image is not None:
            image = to_grey(image, "mix") if image.ndim == 3 else image
            if image.min() < image.max():  # a quarter may be blank where the whole picture is not
                return np.ascontiguousarray(image), whole
    image = read_image(data, frame=frame)
    return image, image.shape


def sniff(data: bytes) -> Literal["png", "jpeg", "dicom"]:
    """The format of a file from its first bytes; file names are not trusted. Raises: ImageError
    "unknown_image_format"."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[128:132] == b"DICM" or (data[:2] in (b"\x02\x00", b"\x08\x00") and data[3:4] == b"\x00"):
        return "dicom"  # the second form has no preamble: it starts with an element of the groups 2 or 8
    if len(data) < 132:
        raise ImageError("truncated_image", f"{len(data)} bytes")
    raise ImageError("unknown_image_format", "neither PNG, JPEG nor DICOM")


def check_complete(
    data: bytes, kind: str, *, quarter_for: tuple[int, Fit] | None = None
) -> tuple[np.ndarray | None, tuple[int, int]]:
    """Raises ImageError "truncated_image" when a PNG or JPEG stops early: OpenCV decodes such files to grey bars in
    silence. "too_large" before anything is decoded, "unreadable_image" for what is damaged.

    Args: quarter_for: decode at a quarter where that is enough for this size and fit (see `read_for_resize`).
    Returns: (the picture, or None where Pillow, which is strict, would change its values; (height, width) of the file).
    """
    if kind == "png" and b"IEND" not in data[-64:]:
        raise ImageError("truncated_image", "no IEND chunk at the end")
    # Some writers pad the file after the end marker, so it is looked for near the end, not at it.
    if kind == "jpeg" and b"\xff\xd9" not in data[-4096:]:
        raise ImageError("truncated_image", "no end-of-image marker")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large radiograph is no decompression bomb; check_size knows which is
            with _opened(data, ("PNG", "JPEG")) as image:
                width, height = image.size
                check_size(height, width)
                if quarter_for and image.mode in ("L", "RGB") and height % 4 == width % 4 == 0:
                    new_height, new_width = _resized_shape(height, width, *quarter_for)
                    if height >= 8 * new_height and width >= 8 * new_width:
                        image.draft("L", (width // 4, height // 4))
                image.load()  # strict: raises where OpenCV would fill in
                depth = data[24] if kind == "png" else 8
                same = (image.mode, depth) in (("L", 8), ("RGB", 8), ("I;16", 16))
                return np.array(image) if same else None, (height, width)
    except ImageError:
        raise
    except Exception as error:  # Pillow has no list of what a damaged file may raise
        short = any(word in str(error).lower() for word in ("truncated", "end of", "eof", "not enough"))
        raise ImageError(
            "truncated_image" if short else "unreadable_image", f"{kind}: {type(error).__name__}"
        ) from None


def stream_size(data: bytes, formats: tuple[str, ...]) -> tuple[int, int]:
    """(width, height) that a compressed image says it has. Raises: ImageError for too many scans; what Pillow raises
    when it knows no such image."""
    with _opened(data, formats) as image:
        return image.size


def _opened(data: bytes, formats: tuple[str, ...]) -> Any:
    """The image as Pillow opens it, its header read and nothing decoded. Raises: as `stream_size`."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ImageError("too_large", f"more than {MOST_PIXELS} pixels") from None
    one_scan = image.mode == "L" and not image.info.get("progressive")  # a second one ends its decoder
    if image.format == "JPEG" and not one_scan and data.count(b"\xff\xda") > MOST_SCANS:
        raise ImageError("unreadable_image", f"a JPEG of more than {MOST_SCANS} scans")
    return image


def check_size(height: int, width: int) -> None:
    """Raises ImageError "too_large" beyond `MOST_PIXELS` or `LONGEST_SIDE`."""
    if height * width > MOST_PIXELS or max(height, width) > LONGEST_SIDE:
        raise ImageError("too_large", f"{width} x {height} pixels; at most {MOST_PIXELS}, {LONGEST_SIDE} a side")


def _read_raster(data: bytes, kind: str, colour: str) -> np.ndarray:
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("unreadable_image", f"{kind} decoder failed") from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ImageError("unreadable_image", f"{kind} decoder failed")
    return to_grey(image[..., 2::-1], colour) if image.ndim == 3 else image  # OpenCV keeps colours as blue, green, red


def to_grey(image_HxWx3: np.ndarray, colour: str) -> np.ndarray:
    """Red, green, blue (uint8 or uint16) -> grey. Raises: ImageError "not_grey" as `read_image` says."""
    red, green, blue = (image_HxWx3[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red
    if colour == "refuse":
        raise ImageError("not_grey", "the colour channels differ")
    return cv2.cvtColor(np.ascontiguousarray(image_HxWx3), cv2.COLOR_RGB2GRAY)


def by_level(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of an array (..., of integers) that maps equal values to equal values: it is asked once for every
    value that occurs, in rising order, so 20 million pixels take no 20 million float64.

    Args: function: N values -> N values; may look at all of them (their range). Values wider than 16 bits go in one by
      one.
    """
    if image.dtype.kind not in "iu" or image.dtype.itemsize > 2:
        return function(image.ravel()).reshape(image.shape)
    unsigned = image.view(f"u{image.dtype.itemsize}")
    occurs = np.zeros(1 << 8 * image.dtype.itemsize, bool)
    for rows in _strips(unsigned):
        occurs[rows] = True
    levels = np.flatnonzero(occurs).astype(unsigned.dtype).view(image.dtype)
    levels.sort()
    values = function(levels)
    table = np.zeros(occurs.size, values.dtype)
    table[levels.view(unsigned.dtype)] = values
    out = np.empty(image.shape, values.dtype)
    for rows, of_out in zip(_strips(unsigned), _strips(out), strict=True):
        of_out[...] = table[rows]
    return out


def _strips(image: np.ndarray) -> Iterator[np.ndarray]:
    """Views of a few rows each: indexing makes 8 bytes of every pixel."""
    step = max(1, 2**20 // max(1, image[:1].size))
    for start in range(0, len(image), step):
        yield image[start : start + step]


def spread(values: np.ndarray, top: int) -> np.ndarray:
    """Values of any range -> 0..top (255 or 65535), the smallest 0 and the largest `top`."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (top / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(scaled).astype(np.uint8 if top == 255 else np.uint16)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """uint8 as it is; uint16 spread from its own range over 0..255. (Scaling by 256 would wrap the brightest pixels
    to 0.)"""
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        raise ValueError(f"to_uint8 takes uint8 or uint16, not {image.dtype}.")
    return by_level(image, lambda levels: spread(levels, 255))


def crop_border(image: np.ndarray, *, threshold: float = 0.02, margin: int = 0) -> np.ndarray:
    """Cut rows and columns at the edge whose pixels are all dark (collimator, film border).

    Args: threshold: as a share of the type's range; a row is dark when its 99th percentile is at or below it.
    margin: pixels kept. An image that is dark throughout is returned unchanged.
    """
    return image[border_window(image, threshold=threshold, margin=margin)]


def border_window(image: np.ndarray, *, threshold: float = 0.02, margin: int = 0) -> tuple[slice, slice]:
    """The rows and columns that `crop_border` keeps."""
    limit = threshold * np.iinfo(image.dtype).max
    rows = np.flatnonzero(np.percentile(image, 99, axis=1) > limit)
    columns = np.flatnonzero(np.percentile(image, 99, axis=0) > limit)
    if not len(rows) or not len(columns):
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    ends = [min(kept[-1] + 1 + margin, size) for kept, size in zip((rows, columns), image.shape, strict=True)]
    return slice(max(rows[0] - margin, 0), ends[0]), slice(max(columns[0] - margin, 0), ends[1])


def resize_keep_aspect(
    image: np.ndarray, size: int, fit: Fit = "pad", *, whole: tuple[int, int] | None = None
) -> np.ndarray:
    """Resize a grey image, by area averaging when it shrinks and bicubic when it grows.

    Args: image: (H, W) uint8 or uint16. size: pixels. fit: "pad" resizes the longer side to `size` and centres the
      image on black, size x size; "shorter" resizes the shorter side to `size` and keeps the rest; "squash"
      stretches to size x size. whole: (height, width) of the picture that `image` is a part-size copy of, both from
      `read_for_resize`.
    Raises: ValueError for another fit or a size below 1; ImageError "too_large" for a result beyond `MOST_PIXELS`.
    """
    if fit not in FITS or size < 1:
        raise ValueError(f"fit={fit!r}, size={size}: fit must be one of {', '.join(FITS)} and size at least 1.")
    new_height, new_width = _resized_shape(*(whole or image.shape), size, fit)
    check_size(new_height, new_width)
    resized = _resize(image, new_height, new_width)
    if fit != "pad":
        return resized
    canvas = np.zeros((size, size), image.dtype)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def _resized_shape(height: int, width: int, size: int, fit: str) -> tuple[int, int]:
    if fit == "squash":
        return size, size
    scale = size / (max if fit == "pad" else min)(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape == (height, width):
        return image
    shrinks = height * width <= image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


# Rows as differences from the row above, zlib looking for runs alone.
_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a grey uint8 or uint16 image (H, W); lossless. On radiographs as small as zlib's usual search
    makes them, written six times as fast and read 1.5 times as fast."""
    return _encode(".png", image, _PNG)


def encode_jpeg(image: np.ndarray, *, quality: int = 95) -> bytes:
    """JPEG bytes of a grey uint8 image (H, W). Raises: ValueError for 16-bit images, which JPEG cannot hold."""
    if image.dtype != np.uint8:
        raise ValueError(f"JPEG holds uint8, not {image.dtype}; use encode_png or to_uint8.")
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix: str, image: np.ndarray, options: Sequence[int]) -> bytes:
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"Expected a grey uint8 or uint16 image (H, W), got {image.dtype} {image.shape}.")
    return cv2.imencode(suffix, image, options)[1].tobytes()
