"""A bright spot is found in the view where the map says, for every operation and for chains of them."""

import numpy as np
import pytest

from medvlp_jax.data import preprocess
from medvlp_jax.data.view_geometry import box_in_view, view_to_image

STRINGS = (
    "center(96)",
    "center(96, crop_from=110)",
    "center(96, crop_from=120, fit='squash')",
    "resize(128)|center(64)",
    "resize(80, 'squash')|center(64, crop_from=80)",
    "resize(100, fit='shorter')|pad_to_square(7)|center(96)",
    "crop_border|center(96, crop_from=104)",
    "crop_border(0.05, margin=3)|pad_to_square|resize(128)|center(112, crop_from=128)",
)


@pytest.mark.parametrize("string", STRINGS)
@pytest.mark.parametrize("shape", [(300, 200), (150, 333), (90, 90)], ids=str)
def test_a_spot_is_where_the_map_says(string, shape):
    height, width = shape
    x, y = 0.6 * width, 0.45 * height
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    sigma = 0.02 * max(shape)
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    grey = np.full(shape, 20, np.uint8)
    grey[:20], grey[:, -15:] = 0, 0  # bars for crop_border
    grey = np.maximum(grey, (255 * spot).astype(np.uint8))
    view = preprocess.build(f"{string}|keep('image')")({"image": grey}, np.random.default_rng(0))["image"][0, ..., 0]
    weight = np.where(view > 60, view, 0).astype(float)
    view_x, view_y = (np.average(axis, weights=weight) for axis in np.meshgrid(*map(np.arange, view.shape[::-1])))
    matrix = view_to_image(preprocess.parse(string), grey)
    got_x, got_y, one = matrix @ (view_x, view_y, 1.0)
    assert one == 1.0
    pixel = max(matrix[0, 0], matrix[1, 1], 1.0)  # image pixels per view pixel
    assert abs(got_x - x) < 0.35 * pixel
    assert abs(got_y - y) < 0.35 * pixel


def test_whole_pixels_are_exact():
    matrix = view_to_image(preprocess.parse("center(64, crop_from=100)"), np.ones((100, 100), np.uint8))
    np.testing.assert_array_equal(matrix, [[1, 0, 18], [0, 1, 18], [0, 0, 1]])
    matrix = view_to_image(preprocess.parse("pad_to_square"), np.ones((50, 100), np.uint8))
    np.testing.assert_array_equal(matrix @ (7, 25, 1), (7, 0, 1))


def test_random_views_have_no_map():
    with pytest.raises(ValueError, match=r"views.*Known: crop_border"):
        view_to_image(preprocess.parse("views(1, size=64)"), np.ones((90, 90), np.uint8))


@pytest.mark.parametrize("string", STRINGS)
def test_a_box_is_where_its_pixels_are(string):
    grey = np.full((300, 200), 40, np.uint8)
    grey[:20], grey[:, -15:] = 0, 0  # bars for crop_border
    grey[90:150, 60:130] = 255
    view = preprocess.build(f"{string}|keep('image')")({"image": grey}, np.random.default_rng(0))["image"][0, ..., 0]
    rows, columns = np.flatnonzero((view > 150).any(axis=1)), np.flatnonzero((view > 150).any(axis=0))
    expected = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    got = box_in_view((0.3, 0.3, 0.5, 0.65), view_to_image(preprocess.parse(string), grey), grey.shape, len(view))
    np.testing.assert_allclose(np.array(got) * len(view), expected, atol=1)


def test_boxes_outside_of_the_view_are_none_and_others_are_cut():
    matrix = view_to_image(preprocess.parse("center(64, crop_from=128)"), np.ones((128, 128), np.uint8))
    assert box_in_view((0.0, 0.0, 0.2, 0.9), matrix, (128, 128), 64) is None
    assert box_in_view((0.0, 0.0, 0.5, 1.0), matrix, (128, 128), 64) == (0.0, 0.0, 0.5, 1.0)


def test_boxes_in_views_that_are_not_square():
    grey = np.ones((120, 80), np.uint8)
    matrix = view_to_image(preprocess.parse("resize(40, fit='shorter')"), grey)
    np.testing.assert_allclose(box_in_view((0.1, 0.2, 0.5, 0.9), matrix, grey.shape, (60, 40)), (0.1, 0.2, 0.5, 0.9))
