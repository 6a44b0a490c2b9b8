"""Maps whose place is known: a bright square, analytic Gaussians, views that crop."""

import dataclasses

import numpy as np
import pytest

from medvlp_jax.evaluators import grounding
from medvlp_jax.heatmap import overlay, similarity_map, upsample
from tests.evaluators import fake

SIZE, GRID = 48, 6


def square(row, column):
    """An image with one bright square, and its box."""
    image = np.zeros((SIZE, SIZE), np.float32)
    step = SIZE // GRID
    image[row * step : (row + 1) * step, column * step : (column + 1) * step] = 1.0
    return image, np.array([row, column, row + 1, column + 1], np.float32) / GRID


def world(sign=1.0, finding="Lung Lesion", **settings):
    """Regions that hold the brightness of their place along the axis of every affirming text."""
    places = [(0, 0), (2, 3), (5, 1), (4, 4), (1, 5), (3, 2)]
    images, boxes = zip(*(square(*place) for place in places), strict=True)
    step = SIZE // GRID
    small = np.stack(images).reshape(-1, GRID, step, GRID, step).mean(axis=(2, 4))
    regions = np.stack([sign * (2 * small - 1), np.ones_like(small)], axis=-1)
    records = [
        {
            "image_shape": (SIZE, SIZE),
            "sentences": ["Nothing else.", "A nodule."],
            "boxes": {"box": box[None], "finding": [finding], "sentence": np.array([1])},
        }
        for box in boxes
    ]
    features = fake.features(
        {"impression": np.zeros((6, 2))},
        pixels=np.stack(images).reshape(6, -1),
        regions={"impression": regions},
        boxed=range(6),
        labels=fake.labels(Edema=[0] * 6),
    )
    texts = lambda text: np.array([-1.0 if text.startswith(("No", "no", "There is no")) else 1.0, 0.0])  # noqa: E731
    return fake.context({"test": features}, texts=texts, records=records, resamples=60, prompts="plain", **settings)


def test_a_planted_bright_square_is_pointed_at():
    found = fake.by_name(grounding.run(world()))
    for name in ("pointing", "pointing_phrase"):
        assert found[f"grounding/{name}/all"].value == 1.0
        assert found[f"grounding/{name}/Lung Lesion"].value == 1.0
    assert found["grounding/pointing/all"].chance == pytest.approx(1 / 36)
    assert found["grounding/cnr/all"].value > 1
    assert found["grounding/miou/all"].value > 0.2


def test_a_map_of_the_wrong_sign_points_elsewhere():
    found = fake.by_name(grounding.run(world(sign=-1.0)))
    assert found["grounding/pointing/all"].value == 0.0
    assert found["grounding/cnr/all"].value < -1
    assert found["grounding/cnr_absolute/all"].value > 1  # what hides the sign
    assert found["grounding/cnr_absolute/all"].variant == "as_published"


def test_brightness_is_the_raw_pixel_baseline():
    context = dataclasses.replace(world(sign=-1.0), baselines=True)
    assert fake.by_name(grounding.run(context))["grounding/pointing/all"].raw_pixels == 1.0


def test_boxes_outside_of_the_view_are_skipped_and_counted():
    context = dataclasses.replace(world(), view_mask=lambda mask: mask[8:, 8:])
    result = grounding.run(context)
    assert fake.by_name(result)["grounding/pointing/all"].count == 5
    assert result.skipped == {"outside of the evaluation view": "1 boxes or sentences"}


def test_findings_without_prompts_are_skipped_and_counted():
    result = grounding.run(world(finding="Bezoar"))
    assert result.scores == []


@pytest.mark.parametrize(("change", "why"), [({"regions": {}}, "no image regions"), ({"boxed_M": []}, "no image has")])
def test_nothing_to_ground(change, why):
    context = world()
    features = context.features("test")._replace(
        **{k: np.asarray(v) if k == "boxed_M" else v for k, v in change.items()}
    )
    result = grounding.run(dataclasses.replace(context, features={"test": features}.__getitem__))
    assert result.scores == []
    assert why in result.skipped["grounding"]


def test_contrast_to_noise_of_two_levels_and_of_gaussians():
    mask = np.zeros((40, 40), bool)
    mask[:20] = True
    rng = np.random.default_rng(0)
    heat = np.where(mask, rng.normal(3, 2, mask.shape), rng.normal(1, 1, mask.shape)).astype(np.float32)
    expected = (heat[mask].mean() - heat[~mask].mean()) / np.sqrt(heat[mask].var() + heat[~mask].var())
    assert grounding.measure(mask, heat)["cnr"] == pytest.approx(expected, rel=1e-5)
    assert grounding.measure(mask, heat)["cnr"] == pytest.approx(2 / 5**0.5, abs=0.1)
    assert grounding.measure(mask, -heat)["cnr_absolute"] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(grounding.measure(np.ones((4, 4), bool), heat[:4, :4])["cnr"])


def test_miou_against_its_definition():
    y, x = np.mgrid[:40, :40]
    heat = np.exp(-((y - 20) ** 2 + (x - 15) ** 2) / 100).astype(np.float32)
    mask = (abs(y - 20) < 7) & (abs(x - 15) < 7)
    scaled = 2 * (heat - heat.min()) / (heat.max() - heat.min()) - 1
    expected = np.mean([((scaled > t) & mask).sum() / ((scaled > t) | mask).sum() for t in (0.1, 0.2, 0.3, 0.4, 0.5)])
    assert grounding._miou(mask, heat) == pytest.approx(expected)
    assert np.isnan(grounding._miou(mask, np.ones((40, 40), np.float32)))
    assert np.isnan(grounding._miou(np.zeros((40, 40), bool), heat))


def test_tied_maxima_count_by_their_share():
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    assert grounding.measure(mask, np.ones((4, 4), np.float32))["pointing"] == 0.25
    assert np.isnan(grounding.measure(mask, np.full((4, 4), np.nan))["pointing"])


def test_a_map_keeps_its_place_when_enlarged():
    heat = np.zeros((6, 6), np.float32)
    heat[1, 4] = 1
    large = upsample(heat, 96)
    row, column = np.unravel_index(large.argmax(), large.shape)
    assert (abs(row - 23.5) <= 1, abs(column - 71.5) <= 1) == (True, True)
    assert upsample(heat, (30, 60)).shape == (30, 60)
    assert upsample(heat, 96, blur=1.5).max() < 0.2


def test_similarity_maps_are_cosines():
    rng = np.random.default_rng(1)
    region, text, against = rng.normal(size=(3, 2, 5)), rng.normal(size=5), rng.normal(size=5)
    norm = np.linalg.norm
    expected = region @ text / norm(region, axis=-1) / norm(text)
    np.testing.assert_allclose(similarity_map(region, text), expected, rtol=1e-5)
    expected = expected - region @ against / norm(region, axis=-1) / norm(against)
    np.testing.assert_allclose(similarity_map(region, text, against), expected, rtol=1e-4, atol=1e-6)


def test_overlay_leaves_cold_places_grey_and_draws_boxes():
    view = np.full((20, 20), 100, np.uint8)
    heat = np.zeros((20, 20), np.float32)
    heat[:10] = 1
    picture = overlay(view, heat, boxes=[(0.5, 0.5, 0.9, 0.9)], scale=2)
    assert picture.shape == (40, 40, 3)
    assert picture[30, 5].tolist() == [100, 100, 100]
    assert len(set(picture[5, 5].tolist())) > 1
    assert picture[20, 25].tolist() == [255, 255, 255]
