"""What raises a doubt and what does not: drawn chests, photographs, header values, real radiographs if present."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images
from tiny import chest

from medvlp_jax.data import film_check, images
from tfds_builders.image_report_folder.make_dummy_data import dicom

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
FRONTAL = ("nih1000", "nih1000_64px", "lungseg800", "covid_cxr", "kermany960")


def checks(grey):
    return [doubt.check for doubt in film_check.check_grey(grey)]


def test_a_chest_raises_no_doubt_and_its_opposites_do():
    grey = chest()
    assert checks(grey) == []
    assert checks(255 - grey) == ["inverted"]
    assert film_check.chest_pattern(255 - grey) == pytest.approx(-film_check.chest_pattern(grey), abs=0.02)
    assert checks(np.ascontiguousarray(np.rot90(grey))) != []
    assert checks(np.random.default_rng(0).permutation(grey.ravel()).reshape(grey.shape)) == ["unlike"]


@pytest.mark.parametrize("level", [0, 255])
def test_bars_and_exposure_do_not_matter(level):
    grey = chest()
    padded = np.full((200, 300), level, np.uint8)
    padded[:, 60:240] = grey
    assert checks(padded) == []
    assert checks((255 * (grey / 255.0) ** 2.2).astype(np.uint8)) == []
    assert checks(60 + grey // 4) == []


def test_size_shape_and_exposure():
    grey = chest()
    assert checks(cv2.resize(grey, (50, 60), interpolation=cv2.INTER_AREA)) == ["tiny"]
    assert "aspect" in checks(cv2.resize(grey, (90, 200)))
    assert checks(grey // 12 + 60) == ["empty"]
    assert "clipped" in checks(np.clip(8 * (grey.astype(int) - 100), 0, 255).astype(np.uint8))
    huge = cv2.resize(grey, (2500, 3000))
    assert checks(huge) == []


@pytest.mark.parametrize("photograph", load_sample_images().images, ids=["china", "flower"])
def test_photographs(photograph):
    data = cv2.imencode(".jpg", photograph[..., ::-1])[1].tobytes()
    found = [doubt.check for doubt in film_check.check_file(data, images.read_image(data))]
    assert found[0] == "colour"


@pytest.mark.parametrize("shape", [(1, 500), (2, 2), (3000, 9)], ids=str)
def test_shapes_that_no_film_has(shape):
    data = images.encode_png(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    assert film_check.check_file(data, images.read_image(data))[0].check == "tiny"


def test_a_grey_film_saved_with_three_channels_is_not_coloured():
    data = cv2.imencode(".jpg", np.repeat(chest()[..., None], 3, axis=2))[1].tobytes()
    assert film_check.check_file(data, images.read_image(data)) == []


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, []),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}, []),
        ({"Modality": "CR", "BodyPartExamined": "THORAX_AP", "PhotometricInterpretation": "MONOCHROME1"}, []),
        ({"Modality": "CT"}, ["modality"]),
        ({"BodyPartExamined": "KNEE"}, ["body_part"]),
        ({"Modality": "US", "ViewPosition": "LL"}, ["modality", "lateral"]),
        ({"PhotometricInterpretation": "YBR_FULL"}, ["colour"]),
    ],
    ids=str,
)
def test_header_values(tags, expected):
    assert [doubt.check for doubt in film_check.check_tags(tags)] == expected


def test_dicom_headers_are_read_without_who_it_is():
    data = dicom(chest().astype(np.uint16) * 16, inverted=True)
    assert film_check.read_tags(data) == {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1"}
    assert film_check.check_file(data, images.to_uint8(images.read_image(data))) == []


@pytest.mark.parametrize("name", FRONTAL)
def test_rates_on_real_radiographs(name):
    """Every fourth image; the rates of all of them are in docs/predict.md."""
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} under shared/data beside the repository")
    rows = [json.loads(line) for line in (REAL / name / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("view") != "L"][::4]
    greys = [images.to_uint8(images.read_image(REAL / name / row["image"])) for row in rows]
    doubtful = sum(bool(checks(grey)) for grey in greys)
    inverted = sum("inverted" in checks(255 - grey) for grey in greys)
    assert doubtful <= 0.03 * len(greys)
    assert inverted >= 0.97 * len(greys)
