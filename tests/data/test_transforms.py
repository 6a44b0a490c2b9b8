"""Geometry by coordinates and by pixels, lookup tables, and what the random numbers decide."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from medvlp_jax.data import transforms
from medvlp_jax.data.transforms import ViewSpec

RELEASED = ViewSpec(224, crop_from=256, hflip=0.5, vflip=0.5, rotate=30, perspective=0.5, autocontrast=0.5)


def smooth(height, width, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    return cv2.normalize(blurred, None, 10, 245, cv2.NORM_MINMAX).astype(np.uint8)


def map_points(matrix, points_Nx2):
    mapped = np.c_[points_Nx2, np.ones(len(points_Nx2))] @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def fixed(**values):
    """The random numbers 0.5 everywhere, except for the named slots."""
    uniform = np.full(transforms._DRAWS, 0.5)
    for name, value in values.items():
        uniform[transforms._SLOTS[name]] = value
    return uniform


def test_composition_equals_one_step_after_another_on_coordinates():
    spec = ViewSpec(20, crop_from=26, hflip=1.0, vflip=1.0, rotate=30, shift=0.1, zoom=(0.8, 1.2), perspective=0.5)
    corners = np.linspace(0.1, 0.8, 8)
    uniform = fixed(crop=(0.3, 0.9), rotate=0.9, shift=(0.2, 0.7), zoom=0.75, perspective=0.1, corners=corners)
    matrix = transforms.draw_geometry(
        spec, uniform, 52, 52
    ).matrix  # a record of 52 px: two record pixels a frame pixel
    points = np.random.default_rng(0).uniform(0, 19, (50, 2))

    # The last step first, because the maps lead from the view back to the record; each written out by hand.
    last = np.array([[0, 0], [19, 0], [19, 19], [0, 19]], float)
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], float)
    moved = last + signs * corners.reshape(4, 2) * 0.5 * 20 / 2
    p = cv2.perspectiveTransform(
        points[None].astype(np.float64), cv2.getPerspectiveTransform(moved.astype(np.float32), last.astype(np.float32))
    )[0]
    p = p - 9.5 - np.array([(0.4 - 1) * 0.1 * 20, (1.4 - 1) * 0.1 * 20])
    angle = np.deg2rad(0.8 * 30)
    p = p @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).T / 1.1 + 9.5
    p = 19 - p
    p = p + np.floor(np.array([0.3, 0.9]) * 7)
    p = (p + 0.5) * 2 - 0.5
    np.testing.assert_allclose(map_points(matrix, points), p, atol=1e-3)


def test_one_warp_looks_like_several_warps():
    image = smooth(96, 96)
    spec = ViewSpec(96, rotate=30, perspective=0.3, perspective_p=1.0, zoom=(1.3, 1.3))
    uniform = transforms.draw(np.random.default_rng(5))
    once = transforms.warp(image, transforms.draw_geometry(spec, uniform, 96, 96), 96)
    steps = [dataclasses.replace(spec, perspective=0.0), dataclasses.replace(spec, rotate=0.0, zoom=None)]
    twice = image
    for step in steps:
        twice = transforms.warp(twice, transforms.draw_geometry(step, uniform, 96, 96), 96)
    inside = (once > 0) & (twice > 0)
    assert inside.mean() > 0.5
    assert np.median(np.abs(once.astype(int) - twice)[inside]) <= 1  # pixels at the border mix with black twice


def test_rotation_turns_counter_clockwise_as_pillow_does():
    image = smooth(65, 65)
    matrix = transforms.affine(65, degrees=20)
    ours = transforms.warp(image, transforms.Geometry(matrix, (0, 0, 65, 65)), 65)
    theirs = np.asarray(PILImage.fromarray(image).rotate(20, PILImage.Resampling.BILINEAR))
    middle = slice(16, 49)
    assert np.abs(ours.astype(int) - theirs)[middle, middle].max() <= 2


def test_perspective_moves_corners_inwards():
    inward = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    matrix = transforms.perspective(32, inward)
    moved = np.array([[1, 2], [31 - 3, 4], [31 - 5, 31 - 6], [7, 31 - 8]], float)
    np.testing.assert_allclose(map_points(matrix, moved), [[0, 0], [31, 0], [31, 31], [0, 31]], atol=1e-4)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_whole_pixel_views_are_exact_copies(interpolation, monkeypatch):
    image = smooth(40, 40)
    spec = ViewSpec(24, crop_from=40, hflip=1.0, vflip=1.0, interpolation=interpolation)
    geometry = transforms.draw_geometry(spec, fixed(crop=(0.25, 0.75)), 40, 40)
    expected = image[12 : 12 + 24, 4 : 4 + 24][::-1, ::-1]
    np.testing.assert_array_equal(transforms.warp(image, geometry, 24, interpolation), expected)
    monkeypatch.setattr(transforms, "_whole_pixels", lambda *_: None)  # and the interpolating path agrees
    np.testing.assert_array_equal(transforms.warp(image, geometry, 24, interpolation), expected)


def test_affine_and_perspective_warps_agree():
    image, bounds = smooth(64, 64), (0, 0, 64, 64)
    matrix = transforms.affine(64, degrees=13, shift_x=3, zoom=1.1)
    barely = matrix.copy()
    barely[2, 0] = 1e-12  # no longer affine to the eye of the code
    a = transforms.warp(image, transforms.Geometry(matrix, bounds), 64)
    b = transforms.warp(image, transforms.Geometry(barely, bounds), 64)
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 48), (48, 30), (31, 48)])
def test_non_square_record_is_padded_to_square(height, width):
    image = smooth(height, width)
    padded = np.zeros((48, 48), np.uint8)
    top, left = (48 - height) // 2, (48 - width) // 2
    padded[top : top + height, left : left + width] = image
    np.testing.assert_array_equal(transforms.center_view(image, 48), padded)
    spec = ViewSpec(32, crop_from=48, hflip=0.5, rotate=25, perspective=0.4, outside="record")
    for seed in range(10):
        a = transforms.random_view(image, spec, np.random.default_rng(seed)).astype(int)
        b = transforms.random_view(padded, spec, np.random.default_rng(seed))
        assert np.abs(a - b).max() <= 1


def test_squash_fills_the_view():
    image = np.full((30, 60), 200, np.uint8)
    np.testing.assert_array_equal(transforms.center_view(image, 20, fit="squash"), np.full((20, 20), 200))
    assert (transforms.center_view(image, 20) == 0).any()


def test_center_view_is_the_middle():
    image = smooth(256, 256)
    np.testing.assert_array_equal(transforms.center_view(image, 224, crop_from=256), image[16:240, 16:240])
    np.testing.assert_array_equal(transforms.center_view(image, 256), image)


def test_reduction_averages_areas():
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(transforms.center_view(checks, 64)) <= 1  # sampling alone would give black and white
    spec = ViewSpec(64, rotate=30)
    view = transforms.random_view(checks, spec, np.random.default_rng(0))
    assert np.abs(view[16:48, 16:48].astype(int) - 127).max() < 40


def test_outside_of_the_window_is_black_or_the_record():
    image = np.full((256, 256), 200, np.uint8)
    spec = ViewSpec(224, crop_from=256, rotate=30)
    uniform = fixed(rotate=0.99)
    black = transforms.warp(image, transforms.draw_geometry(spec, uniform, 256, 256), 224)
    record = transforms.warp(
        image, transforms.draw_geometry(dataclasses.replace(spec, outside="record"), uniform, 256, 256), 224
    )
    assert (black == 0).sum() > (record == 0).sum() > 0
    assert black[112, 112] == record[112, 112] == 200


def test_random_window_covers_every_offset_and_area():
    offsets = set()
    for seed in range(300):
        uniform = transforms.draw(np.random.default_rng(seed))
        geometry = transforms.draw_geometry(ViewSpec(8, crop_from=10), uniform, 10, 10)
        offsets.add((geometry.matrix[0, 2], geometry.matrix[1, 2]))
        geometry = transforms.draw_geometry(ViewSpec(8, scale=(0.25, 0.5), ratio=(0.5, 2.0)), uniform, 40, 40)
        area = geometry.matrix[0, 0] * geometry.matrix[1, 1] * 64 / 1600
        assert 0.2 < area <= 0.5 + 1e-6
        edges = map_points(geometry.matrix, np.array([[-0.5, -0.5], [7.5, 7.5]]))
        assert edges.min() >= -0.5 - 1e-6
        assert edges.max() <= 39.5 + 1e-6
    assert offsets == {(x, y) for x in range(3) for y in range(3)}


def test_switching_one_step_off_leaves_the_other_draws():
    off = dataclasses.replace(RELEASED, rotate=0.0, perspective=0.0)
    for seed in range(5):
        uniform = transforms.draw(np.random.default_rng(seed))
        with_all = transforms.draw_geometry(RELEASED, uniform, 256, 256)
        without = transforms.draw_geometry(off, uniform, 256, 256)
        assert with_all.bounds == without.bounds  # the same window


def test_views_repeat_with_the_generator_and_do_not_touch_the_record():
    image = smooth(256, 256)
    before = image.copy()
    a = transforms.random_view(image, RELEASED, np.random.default_rng(3))
    b = transforms.random_view(image, RELEASED, np.random.default_rng(3))
    c = transforms.random_view(image, RELEASED, np.random.default_rng(4))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert a.shape == (224, 224)
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_flip_probability():
    mirrored = 0
    image = np.zeros((4, 4), np.uint8)
    image[0, 0] = 9
    for seed in range(400):
        view = transforms.random_view(image, ViewSpec(4, hflip=0.25), np.random.default_rng(seed))
        mirrored += view[0, 3] == 9
    assert 70 < mirrored < 130


def test_autocontrast_matches_pillow_to_one_level():
    view = np.random.default_rng(0).integers(40, 180, (32, 32)).astype(np.uint8)
    table = transforms.draw_table(view, ViewSpec(autocontrast=1.0), fixed())
    theirs = np.asarray(ImageOps.autocontrast(PILImage.fromarray(view)))
    assert np.abs(table[view].astype(int) - theirs).max() <= 1
    assert (table[view].min(), table[view].max()) == (0, 255)


def test_table_composes_brightness_contrast_gamma():
    view = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    spec = ViewSpec(brightness=0.2, contrast=0.4, gamma=0.3)
    table = transforms.draw_table(view, spec, fixed(brightness=0.0, contrast=1.0 - 1e-9, gamma=0.75))
    bright = view * 0.8
    contrast = np.clip(bright.mean() + (bright - bright.mean()) * 1.4, 0, 255)
    expected = 255 * (contrast / 255) ** 1.15
    assert np.abs(table[view] - expected).max() <= 0.51


def test_constant_view_survives_every_photometric_step():
    spec = ViewSpec(8, brightness=0.5, contrast=0.5, gamma=0.5, autocontrast=1.0)
    for level in (0, 128, 255):
        view = transforms.random_view(np.full((8, 8), level, np.uint8), spec, np.random.default_rng(1))
        assert np.ptp(view) == 0
    assert transforms.draw_table(np.zeros((4, 4), np.uint8), ViewSpec(), fixed()) is None


def test_tiny_records():
    for shape in ((1, 1), (1, 300), (300, 1)):
        view = transforms.random_view(np.full(shape, 77, np.uint8), RELEASED, np.random.default_rng(0))
        assert view.shape == (224, 224)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 224, "crop_from": 200}, "crop_from=200 must be a whole number of at least size=224"),
        ({"hflip": 1.5}, "hflip=1.5 must be a number from 0 to 1"),
        ({"hflip": True}, "hflip=True"),
        ({"perspective": 1.0}, "perspective=1.0"),
        ({"scale": (0.9, 0.5)}, r"scale=\(0.9, 0.5\)"),
        ({"scale": (0.5, 1.0), "crop_from": 256}, "not both"),
        ({"fit": "stretch"}, "Choose one of pad, squash"),
        ({"interpolation": "lanczos"}, "nearest, bilinear, bicubic"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        ViewSpec(**arguments)
