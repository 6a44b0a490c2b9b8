"""MS-CXR on drawn files: phrases joined with the images of MIMIC-CXR, and the grounding queries they make."""

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import labels, records
from tfds_builders.mimic_cxr import make_dummy_data
from tfds_builders.mimic_cxr.make_dummy_data import ROWS, dicom_id
from tfds_builders.ms_cxr import ms_cxr
from tfds_builders.testing import make, write_csv

HEADER = (
    *("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height", "split"),
)


def row(number, category, phrase, box, path=None):
    subject, study, *_ = ROWS[number]
    name = dicom_id(number)
    path = path or f"files/p{subject[:2]}/p{subject}/s{study}/{name}.jpg"
    return [name, category, phrase, path, *box, 80, 96, "test"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ms")
    make_dummy_data.write(folder / "mimic")
    rows = [
        row(0, "Pleural Effusion", "small left effusion", (8, 48, 16, 24)),
        row(0, "Pleural Effusion", "small left effusion", (40, 48, 20, 24)),  # two boxes of one phrase
        row(0, "Pneumonia", "right basal\npneumonia.", (0, 0, 40, 48)),
        row(2, "Edema", "pulmonary edema", (0, 0, 200, 96)),  # beyond the edge
        row(3, "Cold", "a cold", (0, 0, 10, 10)),
        row(3, "Edema", "edema", (10, 10, 0, 10)),
        row(3, "Edema", "edema", (1, 1, 2, 2), path="somewhere/else.jpg"),
        row(7, "Edema", "edema", (1, 1, 2, 2)),  # an image that is not there
    ]
    write_csv(folder / "ms/MS_CXR_Local_Alignment_v1.1.0.csv", HEADER, rows)
    return {"root": str(folder / "ms"), "images_root": str(folder / "mimic")}


def test_every_image(roots):
    made = make(ms_cxr, **roots, size=0)
    assert made.counts == {"test": 2}
    assert made.reasons == {"bad_box": 1, "bad_label": 1, "bad_path": 1, "missing_file": 1}
    first = made.examples[dicom_id(0)]
    assert first["sentences"] == ["small left effusion", "right basal pneumonia."]
    assert first["findings"] == "small left effusion. right basal pneumonia."
    assert [(box["finding"], box["sentence"]) for box in first["boxes"]] == [
        ("Pleural Effusion", 0),
        ("Pleural Effusion", 0),
        ("Pneumonia", 1),
    ]
    np.testing.assert_allclose(first["boxes"][0]["box"], [0.5, 0.1, 0.75, 0.3], rtol=1e-6)
    assert made.examples[dicom_id(2)]["boxes"][0]["box"].max() == 1
    assert labels.label_states(first["labels"]) == {"Pneumonia": 1, "Pleural Effusion": 1}
    assert first["patient_id"] == records.hashed_id("10000032")  # the id that mimic_cxr gives
    with pytest.raises(ValueError, match=r"--images_root .* is no folder"):
        make(ms_cxr, root=roots["root"])


def test_prepared(roots, tmp_path):
    command = ["ms_cxr", "--root", roots["root"], "--images_root", roots["images_root"], "--data_dir", str(tmp_path)]
    assert prepare.main([*command, "--size=64", "--workers=1"]) == 0
    source = records.RecordSource(tmp_path, "ms_cxr", "test")
    assert sorted(len(source[i]["boxes"]["finding"]) for i in range(2)) == [1, 3]
