"""Reading, refusing, resizing and encoding of radiographs. Every file is made here."""

import importlib.util
import io
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import get_decoder

from benchmarks import fuzz_images, mimic_folder
from medvlp_jax.data import dicom as dicom_reader
from medvlp_jax.data import images
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import local_data

GREY = ellipses(0)


def encoded(suffix, image):
    return cv2.imencode(suffix, image)[1].tobytes()


def changed(data, **elements):
    header = pydicom.dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(header, name, value)
    buffer = io.BytesIO()
    header.save_as(buffer)
    return buffer.getvalue()


def refused(data, **options):
    with pytest.raises(images.ImageError) as caught:
        images.read_image(data, **options)
    assert caught.value.reason in images.REASONS
    return caught.value.reason


def test_png_keeps_every_value(tmp_path):
    path = tmp_path / "a.jpg"  # a wrong suffix is not trusted
    path.write_bytes(images.encode_png(GREY))
    np.testing.assert_array_equal(images.read_image(path), GREY)
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(images.read_image(images.encode_png(deep)), deep)


def test_jpeg_is_close():
    image = images.read_image(images.encode_jpeg(GREY, quality=95))
    assert image.dtype == np.uint8
    assert image.shape == GREY.shape
    assert np.abs(image.astype(int) - GREY).mean() < 2


def test_colour_becomes_grey_or_is_refused():
    same = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(images.read_image(encoded(".png", same)), GREY)
    red = np.zeros_like(same)
    red[..., 2] = GREY  # OpenCV order: blue, green, red
    np.testing.assert_allclose(images.read_image(encoded(".png", red)), GREY * 0.299, atol=1)
    assert refused(encoded(".png", red), colour="refuse") == "not_grey"
    np.testing.assert_array_equal(images.read_image(encoded(".png", same), colour="refuse"), GREY)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_kinds_of_png(mode):
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(buffer, "PNG")
    np.testing.assert_allclose(images.read_image(buffer.getvalue()), GREY, atol=1)


def test_one_bit_png():
    buffer = io.BytesIO()
    Image.fromarray(GREY > 100).save(buffer, "PNG")
    assert set(np.unique(images.read_image(buffer.getvalue()))) == {0, 255}


def test_rotation_tags_do_not_turn_the_image():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(buffer, "JPEG", exif=exif)
    assert images.read_image(buffer.getvalue()).shape == GREY.shape


@pytest.mark.parametrize("lost", [2, 100, 1000])
def test_truncated_files(lost):
    assert refused(images.encode_jpeg(GREY)[:-lost]) == "truncated_image"
    assert refused(images.encode_png(GREY)[: -lost - 12]) == "truncated_image"


def test_padding_behind_the_end_is_harmless():
    image = images.read_image(images.encode_jpeg(GREY) + b"\0" * 100)
    assert image.shape == GREY.shape


def test_damaged_png():
    data = bytearray(images.encode_png(GREY))
    data[len(data) // 2] ^= 0xFF
    assert refused(bytes(data)) in ("unreadable_image", "truncated_image")


def test_files_that_are_no_images(tmp_path):
    assert refused(b"") == "empty_file"
    assert refused(b"\x89PNG") == "truncated_image"
    assert refused(b"GIF89a" + b"x" * 400) == "unknown_image_format"
    assert refused(tmp_path / "absent.png") == "missing_file"
    assert refused(tmp_path) == "missing_file"
    (tmp_path / "empty.png").write_bytes(b"")
    assert refused(tmp_path / "empty.png") == "empty_file"
    assert refused(images.encode_png(np.full((9, 9), 5, np.uint8))) == "blank_image"


def test_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(images.ImageError("empty_file", "0 bytes")))
    assert (error.reason, error.detail) == ("empty_file", "0 bytes")


def test_dicom_monochrome1_is_inverted():
    deep = GREY.astype(np.uint16) * 16
    plain = images.read_image(dicom(deep))
    inverted = images.read_image(dicom(deep, inverted=True))
    assert plain.dtype == np.uint16
    assert (plain.min(), plain.max()) == (0, 65535)
    np.testing.assert_allclose(plain.astype(int), inverted, atol=1)
    np.testing.assert_allclose(images.to_uint8(plain), images.to_uint8(deep), atol=1)


def test_dicom_of_eight_bits_keeps_its_values():
    np.testing.assert_array_equal(images.read_image(dicom(GREY, bits=8)), GREY)
    same = changed(dicom(GREY, bits=8), RescaleSlope="1", RescaleIntercept="0")
    np.testing.assert_array_equal(images.read_image(same), GREY)


def test_dicom_window_clips():
    deep = GREY.astype(np.uint16) * 16
    low, high = 1000, 2000
    image = images.read_image(changed(dicom(deep), WindowCenter="1500", WindowWidth="1000"))
    assert (image[deep < low - 10] == 0).all()
    assert (image[deep > high + 10] == 65535).all()
    inside = (deep > low + 50) & (deep < high - 50)
    np.testing.assert_allclose(image[inside] / 65535, (deep[inside] - 1000) / 1000, atol=0.01)


def test_dicom_with_a_broken_window_still_reads():
    broken = changed(dicom(GREY.astype(np.uint16) * 16), WindowCenter="1500", WindowWidth="0")
    assert images.read_image(broken).max() == 65535


def test_dicom_of_several_frames_needs_a_choice():
    frames = np.stack([GREY, GREY[::-1]]).astype(np.uint16)
    data = dicom(frames)
    assert refused(data) == "multi_frame"
    assert refused(data, frame=2) == "multi_frame"
    np.testing.assert_array_equal(images.read_image(data, frame=1), images.read_image(data, frame=0)[::-1])


def test_dicom_flaws():
    data = dicom(GREY.astype(np.uint16) * 16)
    assert refused(data[:-5000]) in ("truncated_image", "unreadable_image")
    assert refused(data[:400]) in ("truncated_image", "unreadable_image")
    compressed = pydicom.dcmread(io.BytesIO(data))
    compressed.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000
    buffer = io.BytesIO()
    compressed.PixelData = pydicom.encaps.encapsulate([b"no codestream"])
    compressed["PixelData"].is_undefined_length = True
    compressed.save_as(buffer)
    assert refused(buffer.getvalue()) == "unreadable_image"


def test_to_uint8_never_wraps():
    deep = np.array([[0, 30000, 65535]], np.uint16)
    np.testing.assert_array_equal(images.to_uint8(deep), [[0, 117, 255]])
    assert images.to_uint8(GREY) is GREY
    with pytest.raises(ValueError, match="float32"):
        images.to_uint8(GREY.astype(np.float32))


@pytest.mark.parametrize(
    ("fit", "shape"), [("pad", (64, 64)), ("squash", (64, 64)), ("shorter", (77, 64))], ids=["pad", "squash", "shorter"]
)
def test_resize(fit, shape):
    image = images.resize_keep_aspect(GREY, 64, fit)
    assert image.shape == shape
    assert image.dtype == np.uint8
    if fit == "pad":  # 96 x 80 -> 64 x 53, five or six black columns on either side
        assert not image[:, :5].any()
        assert not image[:, -6:].any()
        assert image[:, 6].any()


def test_resize_averages_areas():
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = images.resize_keep_aspect(checker, 32, "squash")
    assert np.abs(small.astype(int) - 127).max() <= 1
    assert images.resize_keep_aspect(checker, 64).tobytes() == checker.tobytes()
    assert images.resize_keep_aspect(GREY[:1], 32).shape == (32, 32)


def large_film(height, width):
    """A phantom with the noise of a film, as JPEG."""
    return mimic_folder.picture(3, height, width)


@pytest.mark.parametrize("fit", images.FITS)
def test_a_large_jpeg_is_decoded_at_a_quarter(fit):
    """Nearly equal to the whole picture shrunk at once, in grey levels of 255."""
    data, size = large_film(1280, 1024), 128 if fit != "squash" else 96
    image, whole = images.read_for_resize(data, size, fit)
    assert (image.shape, whole) == ((320, 256), (1280, 1024))
    found = images.resize_keep_aspect(image, size, fit, whole=whole).astype(int)
    difference = np.abs(found - images.resize_keep_aspect(images.read_image(data), size, fit))
    assert difference.mean() < 0.3
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize(("height", "width", "size"), [(1282, 1024, 128), (1280, 1022, 128), (1020, 512, 128)])
def test_other_jpegs_are_decoded_whole(height, width, size):
    data = large_film(height, width)
    image, whole = images.read_for_resize(data, size)
    assert whole == (height, width)
    np.testing.assert_array_equal(image, images.read_image(data))


def test_real_radiographs_decoded_at_a_part_of_their_size():
    """The same, on radiographs with sharp letters, over sizes in the proportion of 2,500 to 256 pixels."""
    files = sorted(local_data("covid_cxr").glob("images/*.jpg"))[:120]
    difference, reduced = [], 0
    for path in files:
        data = path.read_bytes()
        image, whole = images.read_for_resize(data, 32)
        reduced += image.shape != whole
        found = images.resize_keep_aspect(image, 32, whole=whole).astype(int)
        difference.append(np.abs(found - images.resize_keep_aspect(images.read_image(data), 32)))
    assert reduced > 20
    assert np.mean(difference) < 0.5
    assert np.percentile(difference, 99) <= 4


def test_reading_for_resize_refuses_what_reading_refuses():
    data = large_film(1280, 1024)
    for bad, reason in ((data[:-3000], "truncated_image"), (data[:-1], "truncated_image"), (b"", "empty_file")):
        with pytest.raises(images.ImageError) as caught:
            images.read_for_resize(bad, 128)
        assert caught.value.reason == reason == refused(bad)
    flat = images.encode_jpeg(np.full((1280, 1024), 7, np.uint8))
    with pytest.raises(images.ImageError, match="blank_image"):
        images.read_for_resize(flat, 128)


def test_colour_jpegs_read_for_resize():
    grey = images.read_image(large_film(1280, 1024))
    tinted = encoded(".jpg", np.stack([grey, grey // 2, grey], axis=2))
    image, whole = images.read_for_resize(tinted, 128)
    assert image.shape == (320, 256)
    found = images.resize_keep_aspect(image, 128, whole=whole).astype(int)
    assert np.abs(found - images.resize_keep_aspect(images.read_image(tinted), 128)).mean() < 1


def test_resize_refuses():
    with pytest.raises(ValueError, match="pad, shorter, squash"):
        images.resize_keep_aspect(GREY, 64, "crop")
    with pytest.raises(ValueError, match="size=0"):
        images.resize_keep_aspect(GREY, 0)


def test_crop_border():
    framed = np.zeros((120, 100), np.uint8)
    framed[10:106, 5:85] = np.maximum(GREY, 20)
    np.testing.assert_array_equal(images.crop_border(framed), np.maximum(GREY, 20))
    assert images.crop_border(framed, margin=3).shape == (102, 86)
    dark = np.zeros((8, 8), np.uint8)
    np.testing.assert_array_equal(images.crop_border(dark), dark)


def test_encoders_refuse():
    with pytest.raises(ValueError, match="uint16"):
        images.encode_jpeg(GREY.astype(np.uint16))
    with pytest.raises(ValueError, match=r"\(96, 80, 3\)"):
        images.encode_png(np.zeros((96, 80, 3), np.uint8))


def test_no_header_value_reaches_a_message():
    data = changed(dicom(GREY.astype(np.uint16)), PatientName="Secret^Name", Rows=500)
    with pytest.raises(images.ImageError) as caught:
        images.read_image(data)
    assert "Secret" not in str(caught.value)


def with_pixels(stored, **elements):
    """A DICOM file of any type of pixel."""
    bits = 8 * stored.dtype.itemsize
    data = dicom(np.zeros(stored.shape[:2], np.uint16), bits=bits if bits in (8, 16) else 16)
    signed = int(stored.dtype.kind == "i")
    samples = stored.shape[2] if stored.ndim == 3 else 1
    sizes = dict(BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)
    more = dict(PlanarConfiguration=0) if samples > 1 else {}
    return changed(data, PixelData=stored.tobytes(), SamplesPerPixel=samples, **{**sizes, **more, **elements})


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_dicom_of_every_integer(dtype):
    """Signed values keep their order; the range becomes 0..255 or 0..65535."""
    values = GREY.astype(np.int64) - (128 if np.dtype(dtype).kind == "i" else 0)
    image = images.read_image(with_pixels(values.astype(dtype)))
    if dtype == np.uint8:
        np.testing.assert_array_equal(image, GREY)
    else:
        top = 255 if np.dtype(dtype).itemsize == 1 else 65535
        span = int(GREY.max()) - int(GREY.min())
        np.testing.assert_allclose(image.astype(float), (GREY - float(GREY.min())) * top / span, atol=0.51)


def test_rescale_comes_before_the_window():
    """Stored 0..4095, slope -1, intercept 4095: inverted; the window is in rescaled values."""
    deep = GREY.astype(np.uint16) * 16
    tags = dict(RescaleSlope="-1", RescaleIntercept="4095", WindowCenter="3000", WindowWidth="1000")
    image = images.read_image(changed(dicom(deep), **tags))
    shown = np.clip((4095 - deep.astype(float) - 2500) / 1000, 0, 1)
    np.testing.assert_allclose(image / 65535, shown, atol=0.002)


def test_the_first_of_several_windows_counts():
    deep = dicom(GREY.astype(np.uint16) * 16)
    one = changed(deep, WindowCenter="1500", WindowWidth="1000")
    several = changed(deep, WindowCenter=["1500", "900", "2000"], WindowWidth=["1000", "100", "4000"])
    np.testing.assert_array_equal(images.read_image(one), images.read_image(several))
    assert (images.read_image(one) != images.read_image(deep)).any()
    sigmoid = images.read_image(changed(one, VOILUTFunction="SIGMOID"))
    assert (sigmoid != images.read_image(one)).any()
    exact = images.read_image(changed(one, VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(exact.astype(int), images.read_image(one).astype(int), atol=100)


def test_look_up_table_goes_before_a_window():
    """A VOI LUT sequence of 4096 entries that squares the values, and a window that must not be used."""
    deep = GREY.astype(np.uint16) * 16
    item = pydicom.Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new("LUTData", "OW", (np.arange(4096, dtype=np.uint32) ** 2 // 256).astype(np.uint16).tobytes())
    image = images.read_image(changed(dicom(deep), VOILUTSequence=[item], WindowCenter="1", WindowWidth="2"))
    expected = (deep.astype(np.uint32) ** 2 // 256).astype(float)
    expected = (expected - expected.min()) * 65535 / (expected.max() - expected.min())
    np.testing.assert_allclose(image, expected, atol=0.51)


def test_modality_look_up_table():
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "OW", np.arange(255, -1, -1, dtype=np.uint16).tobytes())
    image = images.read_image(changed(dicom(GREY, bits=8), ModalityLUTSequence=[item]))
    low, high = int(GREY.min()), int(GREY.max())
    np.testing.assert_allclose(image, (high - GREY.astype(float)) * 255 / (high - low), atol=0.51)


def test_colour_dicom():
    """RGB, the same as YBR_FULL, and grey saved with a palette."""
    rgb = np.stack([GREY, ellipses(1), ellipses(2)], -1)
    expected = rgb.astype(float) @ (0.299, 0.587, 0.114)
    image = images.read_image(with_pixels(rgb, PhotometricInterpretation="RGB"))
    np.testing.assert_allclose(image, expected, atol=1)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    np.testing.assert_allclose(
        images.read_image(with_pixels(ybr, PhotometricInterpretation="YBR_FULL")), expected, atol=2
    )
    assert refused(with_pixels(rgb, PhotometricInterpretation="RGB"), colour="refuse") == "not_grey"
    header = pydicom.dcmread(io.BytesIO(with_pixels(GREY, PhotometricInterpretation="PALETTE COLOR")))
    for element in (1, 2, 3):
        header.add_new((0x28, 0x1100 + element), "US", [256, 0, 16])
        header.add_new((0x28, 0x1200 + element), "OW", (np.arange(255, -1, -1, dtype=np.uint16) * 257).tobytes())
    buffer = io.BytesIO()
    header.save_as(buffer)
    image = images.read_image(buffer.getvalue())
    np.testing.assert_array_equal(image, (255 - GREY).astype(np.uint16) * 257)


def test_tags_that_are_missing():
    """What a file without SamplesPerPixel, BitsStored or PixelRepresentation nearly always means; not how big it is."""
    whole = pydicom.dcmread(io.BytesIO(dicom(GREY, bits=8)))
    for name in ("SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit"):
        delattr(whole, name)
    buffer = io.BytesIO()
    whole.save_as(buffer)
    np.testing.assert_array_equal(images.read_image(buffer.getvalue()), GREY)
    for name in ("Rows", "Columns", "BitsAllocated", "PixelData", "PhotometricInterpretation"):
        lacking = pydicom.dcmread(io.BytesIO(dicom(GREY, bits=8)))
        delattr(lacking, name)
        buffer = io.BytesIO()
        lacking.save_as(buffer)
        assert refused(buffer.getvalue()) in ("unreadable_image", "truncated_image"), name


def test_dicom_without_preamble_or_meta():
    header = pydicom.dcmread(io.BytesIO(dicom(GREY, bits=8)))
    buffer = io.BytesIO()
    file = pydicom.filebase.DicomFileLike(buffer)
    file.is_little_endian, file.is_implicit_VR = True, True
    pydicom.filewriter.write_dataset(file, header)
    np.testing.assert_array_equal(images.read_image(buffer.getvalue()), GREY)


SAMPLES = [
    ("JPEG baseline", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"),
    ("JPEG 2000 lossless", "MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ("RLE", "MR_small_RLE.dcm", "MR_small.dcm"),
    ("RLE, two frames", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle.dcm"),
    ("big endian", "MR_small_bigendian.dcm", "MR_small.dcm"),
    ("implicit", "MR_small_implicit.dcm", "MR_small.dcm"),
    ("padded", "MR_small_padded.dcm", "MR_small.dcm"),
    ("JPEG-LS", "MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    ("JPEG lossless", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
]
"""Syntax, a file of pydicom's that has it, and one with the same picture."""
CODECS = [
    ("JPEG lossless", "SC_rgb_jpeg_gdcm.dcm", (100, 100), "pylibjpeg"),
    ("JPEG-LS lossless", "MR_small_jpeg_ls_lossless.dcm", (64, 64), "pyjpegls"),
    ("JPEG-LS lossy, 16 bits", "JPEGLSNearLossless_16.dcm", (50, 10), "pyjpegls"),
    ("JPEG-LS lossy, colour", "SC_rgb_jls_lossy_line.dcm", (100, 100), "pyjpegls"),
    ("JPEG extended, 12 bits", "JPGExtended.dcm", (1024, 256), "pylibjpeg"),
    ("JPEG 2000, green blue red", "GDCMJ2K_TextGBR.dcm", (400, 400), "pylibjpeg"),
]
"""Syntax, a file of pydicom's, its size, and which package of the extra `codecs` reads it."""


@pytest.mark.parametrize(("compressed", "plain"), [pair[1:] for pair in SAMPLES], ids=[pair[0] for pair in SAMPLES])
def test_transfer_syntaxes(compressed, plain):
    folder = Path(pydicom.data.__file__).parent / "test_files"
    syntax = pydicom.dcmread(folder / compressed).file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        with pytest.raises(images.ImageError, match=r"unreadable_image.*pip install pylibjpeg .*pyjpegls"):
            images.read_image(folder / compressed)
        return
    image, expected = images.read_image(folder / compressed, frame=0), images.read_image(folder / plain)
    np.testing.assert_allclose(image.astype(float), expected.astype(float), atol=2 if "dcmtk" in compressed else 0)


@pytest.mark.parametrize(("name", "shape", "codec"), [row[1:] for row in CODECS], ids=[row[0] for row in CODECS])
def test_the_extra_codecs(name, shape, codec):
    """With their packages these files are read; without, the reason says which to install."""
    path = Path(pydicom.data.__file__).parent / "test_files" / name
    if importlib.util.find_spec({"pyjpegls": "jpeg_ls", "pylibjpeg": "libjpeg"}[codec]) is None:
        with pytest.raises(images.ImageError, match=f"unreadable_image.*pip install.*{codec}"):
            images.read_image(path)
        pytest.skip(f"{codec} is not installed (extra codecs)")
    assert images.read_image(path).shape == shape


def test_codecs_change_nothing_of_what_pillow_reads():
    """The libjpeg of pylibjpeg rounds otherwise, and pydicom would prefer it."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    for name in ("SC_rgb_jpeg_dcmtk.dcm", "SC_jpeg_no_color_transform.dcm", "MR_small_jp2klossless.dcm"):
        header = pydicom.dcmread(folder / name)
        pixels = pydicom.pixels.pixel_array(header, decoding_plugin="pillow")
        expected = images.to_grey(pixels, "mix") if pixels.ndim == 3 else None
        if expected is not None:
            np.testing.assert_array_equal(images.read_image(folder / name), expected)
        np.testing.assert_array_equal(dicom_reader._decoded(header, 0), pixels)


def test_sizes_are_looked_at_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 5000)
    for data in (images.encode_png(GREY), images.encode_jpeg(GREY), dicom(GREY.astype(np.uint16))):
        assert refused(data) == "too_large"
    with pytest.raises(images.ImageError, match="too_large"):
        images.resize_keep_aspect(GREY, 100)
    monkeypatch.undo()
    monkeypatch.setattr(images, "LARGEST_FILE", 1000)
    (tmp_path / "a.png").write_bytes(images.encode_png(GREY))
    assert refused(tmp_path / "a.png") == "too_large"
    assert refused(dicom(np.zeros((1, 40000), np.uint16))) == "too_large"  # a side of more than 32768


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [True, False])
def test_files_of_many_scans(mode, progressive):
    """Each scan of a progressive file costs as much time as an image."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(buffer, "JPEG", progressive=progressive)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    repeated = data[:last] + data[last:-2] * (images.MOST_SCANS + 1) + data[-2:]
    assert refused(repeated) == "unreadable_image"
    with pytest.raises(images.ImageError, match="more than 50 scans" if progressive else "unreadable_image"):
        images.read_for_resize(repeated, 8)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png") == "unreadable_image"


def test_a_compressed_frame_of_another_size_than_the_header():
    data = fuzz_images.made_samples()["made JPEG 2000"]
    assert images.read_image(data).shape == GREY.shape
    assert refused(changed(data, Rows=95)) == "unreadable_image"
    for rows, columns in ((20000, 30000), (97, 80)):  # beyond what may be decoded, and a little more than the header
        data = fuzz_images.made_samples()["made JPEG"]
        place = data.index(b"\xff\xc0\x00") + 5
        wrong = data[:place] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + data[place + 4 :]
        assert refused(wrong) == ("too_large" if rows > 97 else "unreadable_image")


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"])
def test_sizes_in_streams_that_pillow_does_not_know(name):
    header = pydicom.dcmread(Path(pydicom.data.__file__).parent / "test_files" / name)
    dicom_reader._check_stream(header, 0, 1, (header.Columns, header.Rows))
    with pytest.raises(images.ImageError, match="another size"):
        dicom_reader._check_stream(header, 0, 1, (header.Columns, header.Rows + 1))
    for stream in (b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x04aa", b"\xff\xd8\xff\xfe\x00\x00" * 9):
        with pytest.raises(images.ImageError, match="without a size"):
            dicom_reader._jpeg_size(stream)


def test_values_are_mapped_once_for_each_level():
    """As if every pixel went through alone, whatever the type; levels come in rising order."""
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32):
        values = np.random.default_rng(0).integers(-100, 100, (40, 30)).astype(dtype)
        seen = []
        image = images.by_level(values, lambda levels, seen=seen: seen.append(levels) or levels.astype(np.float32) / 3)
        np.testing.assert_array_equal(image, values.astype(np.float32) / 3)
        if np.dtype(dtype).itemsize <= 2:
            np.testing.assert_array_equal(seen[0], np.unique(values))


def test_mutations_are_read_or_refused_for_a_documented_reason(tmp_path):
    """`benchmarks/fuzz_images.py` in small, without its limits."""
    known = fuzz_images.samples()
    kinds = {name: kind for name, kind in fuzz_images.KINDS.items() if name != "bomb"}
    fates = []
    for number in range(150):
        kind, sample, data = fuzz_images.mutated(number, 1, known, kinds)
        what, expected = fuzz_images.make(data, number, tmp_path / "x")
        assert expected, (number, kind, sample, what)
        fates.append(what)
    assert 10 < fates.count("read") < 140


def test_nothing_that_pydicom_says_of_a_header_is_shown(caplog, recwarn):
    """pydicom logs and warns with the values of malformed tags."""
    data = changed(dicom(GREY, bits=8), PatientID="X").replace(b"LO\x02\x00X ", b"IS\x02\x001A")
    with caplog.at_level("DEBUG"):
        assert images.read_image(data).shape == GREY.shape
    assert not caplog.records
    assert not recwarn.list
