"""Chest ImaGenome on drawn scene graphs and the drawn MIMIC-CXR images."""

import json
import zipfile

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels
from tfds_builders.chest_imagenome import chest_imagenome
from tfds_builders.mimic_cxr import make_dummy_data
from tfds_builders.mimic_cxr.make_dummy_data import ROWS, dicom_id
from tfds_builders.testing import make, write_csv, write_files

CLEAR, EFFUSION = "The lungs are clear.", "Small left pleural\n effusion."


def graph(number, scale=1):
    """The parts of a scene graph that matter; the second region has no area."""
    corners = [("left lung", 40, 10, 70, 80), ("carina", 40, 30, 40, 30), ("right lung", 5, 10, 35, 80)]
    objects = [
        {
            "bbox_name": name,
            **{f"original_{edge}": scale * value for edge, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)},
        }
        for name, *box in corners
    ]
    attributes = [
        {
            "bbox_name": "left lung",
            "phrases": [CLEAR, EFFUSION],
            "attributes": [
                ["anatomicalfinding|no|lung opacity", "nlp|no|abnormal"],
                ["anatomicalfinding|yes|pleural effusion", "severity|yes|mild"],
            ],
        },
        {"bbox_name": "right lung", "phrases": [CLEAR], "attributes": ["anatomicalfinding|no|pleural effusion"]},
    ]
    return json.dumps({"image_id": dicom_id(number), "objects": objects, "attributes": attributes})


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenome")
    make_dummy_data.write(folder / "mimic")
    silver = folder / "genome/silver_dataset"
    for part, numbers in (("train", (0, 2, 3, 4)), ("valid", (10, 11)), ("test", (12, 13))):
        rows = []
        for place, number in enumerate(numbers):
            subject, study, *_ = ROWS[number]
            rows.append([place, subject, study, dicom_id(number), f"files/p{subject[:2]}/p{subject}/s{study}/x.dcm"])
        write_csv(silver / f"splits/{part}.csv", ("", "subject_id", "study_id", "dicom_id", "path"), rows)
    write_csv(silver / "splits/images_to_avoid.csv", ("", "dicom_id"), [(0, dicom_id(13))])
    with zipfile.ZipFile(silver / "scene_graph.zip", "w") as archive:
        for number in (0, 2, 3, 10, 12, 13):
            text = "{" if number == 3 else graph(number, 10 if number == 2 else 1)
            archive.writestr(f"scene_graph/{dicom_id(number)}_SceneGraph.json", text)
    return {"root": str(folder / "genome"), "images_root": str(folder / "mimic")}


def test_every_row(roots):
    made = make(chest_imagenome, **roots, size=0)
    assert made.counts == {"train": 1, "validation": 1, "test": 1}
    assert made.reasons == {
        "bad_scene_graph": 1,
        "boxes_outside_image": 1,
        "gold_image": 1,
        "missing_scene_graph": 2,
    }
    record = made.examples[dicom_id(0)]
    assert record["sentences"] == [CLEAR, "Small left pleural effusion."]
    named = [(box["finding"], box["sentence"]) for box in record["boxes"]]
    assert named == [("left lung", 0), ("left lung", 1), ("right lung", 0)]
    np.testing.assert_allclose(record["boxes"][0]["box"], np.array([10, 40, 80, 70]) / (96, 80, 96, 80), rtol=1e-6)
    assert made.own(dicom_id(0)) == {"lung opacity": 0, "pleural effusion": 1}
    assert labels.label_states(record["labels"]) == {"Lung Opacity": 0, "Pleural Effusion": 1}
    assert make(chest_imagenome, **roots, size=0, keep_gold=True).counts["test"] == 2


def test_unpacked_graphs(roots, tmp_path):
    files = {f"scene_graph/{dicom_id(0)}_SceneGraph.json": graph(0)}
    rows = [(0, ROWS[0][0], ROWS[0][1], dicom_id(0))]
    write_files(tmp_path, files)
    for part in ("train", "valid", "test"):
        write_csv(tmp_path / f"splits/{part}.csv", ("", "subject_id", "study_id", "dicom_id"), rows * (part == "train"))
    made = make(chest_imagenome, root=str(tmp_path), images_root=roots["images_root"], size=32)
    assert made.counts == {"train": 1}
