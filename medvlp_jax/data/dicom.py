"""One grey picture out of a DICOM file, whose header may be wrong in any way.

pydicom decodes; what is refused, and before how much memory is spent, is decided here. Its messages hold header values,
which may identify a patient: no error here repeats them or keeps them as its cause.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvlp_jax.data.images import (
    LARGEST_FILE,
    MOST_PIXELS,
    MOST_SCANS,
    ImageError,
    by_level,
    check_size,
    spread,
    stream_size,
    to_grey,
)

DEFLATED = b"1.2.840.10008.1.2.1.99"
CODECS = "its decoder may be missing: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pyjpegls"
"""The packages of the extra `codecs`."""
FIRST_CODEC = "pillow"
"""Always there, so that other codecs, once installed, change nothing of the files that could be read before."""
DEFAULTS = {"SamplesPerPixel": 1, "PixelRepresentation": 0}
"""Values of tags that must be there and sometimes are not."""


def read_dicom(data: bytes, frame: int | None, colour: str) -> np.ndarray:
    """A grey image (H, W) uint8 or uint16; see `images.read_image`. Raises: ImageError."""
    hush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_deflated(data)
            header = _header(data)
            return _grey(header, _pixels(header, frame), colour)
        except ImageError:
            raise
        except Exception as error:  # a damaged header may raise anything, at any access
            raise ImageError("unreadable_image", f"DICOM: {type(error).__name__}") from None


def header_values(data: bytes, tags: Sequence[str]) -> dict[str, str]:
    """The values of these tags that a DICOM file has; no other tag is looked at. Values that cannot be read are left
    out."""
    import pydicom

    hush()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=list(tags))
        except Exception:  # pydicom has no list of what a damaged header may raise
            return {}
        for name in tags:
            with contextlib.suppress(Exception):
                value = header.get(name)
                found[name] = "" if value is None else str(value).strip()
    return {name: value for name, value in found.items() if value}


def hush() -> None:
    """Silences pydicom's logger for good: it logs the values of malformed tags, as its warnings do. For good, because
    readers in several threads would turn it on for each other."""
    import pydicom  # sets the level itself

    logging.getLogger(pydicom.__name__).setLevel(logging.CRITICAL + 1)


def _check_deflated(data: bytes) -> None:
    """Raises ImageError "too_large" for a deflated file that grows beyond `LARGEST_FILE`; pydicom would unpack it."""
    if DEFLATED not in data:
        return
    from pydicom.filereader import read_dataset

    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if str(meta.get("TransferSyntaxUID", "")).encode() == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        if len(inflater.decompress(data[file.tell() :], LARGEST_FILE + 1)) > LARGEST_FILE:
            raise ImageError("too_large", f"a deflated DICOM file of more than {LARGEST_FILE} bytes")


def _header(data: bytes) -> Any:
    import pydicom

    header = pydicom.dcmread(io.BytesIO(data), force=True)
    if "DirectoryRecordSequence" in header:
        raise ImageError("unreadable_image", "a DICOMDIR: it names image files and holds no image")
    if "PixelData" not in header or not header.get("Rows") or not header.get("Columns"):
        raise ImageError("truncated_image" if "Rows" in header else "unreadable_image", "DICOM without pixel data")
    if "TransferSyntaxUID" not in getattr(header, "file_meta", {}):
        little = header.original_encoding[1] is not False
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        )
    for name, value in {**DEFAULTS, "BitsStored": header.get("BitsAllocated")}.items():
        if header.get(name) is None:
            setattr(header, name, value)
    return header


def _pixels(header: Any, frame: int | None) -> np.ndarray:
    """Stored values (H, W) or (H, W, 3) of one frame. Raises: ImageError."""
    rows, columns = int(header.Rows), int(header.Columns)
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1 and frame is None:
        raise ImageError("multi_frame", "several frames; choose one with frame=")
    if frames > 1 and not 0 <= frame < frames:
        raise ImageError("multi_frame", f"it has no frame {frame}")
    index = frame if frames > 1 else 0
    check_size(rows, columns)
    if int(header.BitsAllocated) > 16 and rows * columns > MOST_PIXELS // 4:  # every value is mapped on its own
        raise ImageError("too_large", f"{columns} x {rows} pixels of more than 16 bits; at most {MOST_PIXELS // 4}")
    syntax = header.file_meta.TransferSyntaxUID
    _check_stream(header, index, frames, (columns, rows))
    try:
        return _decoded(header, index)
    except (ValueError, EOFError, OSError) as error:
        short = "bytes" in str(error) or "length" in str(error)
        raise ImageError("truncated_image" if short else "unreadable_image", "DICOM pixel data") from None
    except Exception:  # a compressed syntax without its decoder, a broken stream
        hint = f"; {CODECS}" if syntax.is_compressed else ""
        raise ImageError("unreadable_image", f"DICOM pixel data, {syntax.name}{hint}") from None


def _decoded(header: Any, index: int) -> np.ndarray:
    """The frame by `FIRST_CODEC` where it knows the syntax, else or where it fails by what is installed."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = header.file_meta.TransferSyntaxUID
    codecs = get_decoder(syntax).available_plugins if syntax.is_transfer_syntax and syntax.is_compressed else ()
    if FIRST_CODEC in codecs:
        try:
            return pixel_array(header, index=index, decoding_plugin=FIRST_CODEC)
        except Exception:  # among others 12 bits, which Pillow does not know
            if len(codecs) == 1:
                raise
    return pixel_array(header, index=index)


def _check_stream(header: Any, index: int, frames: int, size: tuple[int, int]) -> None:
    """Raises ImageError when a compressed frame has another size than the header says: decoders go by the stream, and
    some of them for minutes."""
    from PIL import UnidentifiedImageError
    from pydicom.encaps import get_frame

    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        return
    stream = get_frame(header.PixelData, index, number_of_frames=frames)
    try:
        found = stream_size(stream, ("JPEG", "JPEG2000"))
    except ImageError:
        raise
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError, EOFError):
        if stream[:2] != b"\xff\xd8":
            return  # RLE: its decoder goes by the header
        found = _jpeg_size(stream)  # 12 bits, JPEG-LS: nothing that Pillow knows
    if found != size:
        raise ImageError("unreadable_image", "the compressed picture has another size than the header says")


def _jpeg_size(stream: bytes) -> tuple[int, int]:
    """(width, height) in the frame header of any kind of JPEG, JPEG-LS included. Raises: ImageError."""
    place = 2
    while stream[place : place + 1] == b"\xff" and place + 9 <= len(stream):
        kind = stream[place + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            height, width = (int.from_bytes(stream[start : start + 2], "big") for start in (place + 5, place + 7))
            if kind not in (0xF7, 0xC3) and stream.count(b"\xff\xda") > MOST_SCANS:
                break
            return width, height
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    raise ImageError("unreadable_image", "a JPEG stream without a size, or of too many scans")


def _grey(header: Any, pixels: np.ndarray, colour: str) -> np.ndarray:
    """What a viewer shows: rescaled, windowed, MONOCHROME1 inverted, colours mixed."""
    from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi_lut

    interpretation = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if interpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
    if pixels.ndim == 3:  # pydicom has made RGB of YBR
        if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
            pixels = by_level(pixels, lambda levels: spread(levels, 65535))
        return to_grey(pixels, colour)
    eight_bit = int(header.get("BitsStored", 8)) <= 8

    def shown(levels: np.ndarray) -> np.ndarray:
        try:
            windowed = apply_voi_lut(apply_rescale(levels, header), header, index=0)
            if (
                not header.get("VOILUTSequence")
                and header.get("WindowWidth")
                and float(header.get("RescaleSlope", 1)) < 0
            ):
                windowed = -windowed  # pydicom 3.0.2 turns a window around when the slope is negative
            if not np.isfinite(windowed).all():
                windowed = levels
        except Exception:  # a malformed look-up table or window: the stored values still make an image
            windowed = levels
        if eight_bit and levels.dtype == np.uint8 and np.array_equal(windowed, levels):
            return levels
        return spread(windowed, 255 if eight_bit else 65535)

    image = by_level(pixels, shown)
    return np.iinfo(image.dtype).max - image if interpretation == "MONOCHROME1" else image
