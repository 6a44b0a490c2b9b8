"""Reading, refusing, resizing and encoding of radiographs. Every file is made here."""

import io
import pickle

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from benchmarks import mimic_folder
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
