"""VinDr-CXR on drawn files in both forms and, where it is at hand, on the competition's table."""

import collections

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels
from tfds_builders.testing import make, public_table
from tfds_builders.vindr_cxr import make_dummy_data, vindr_cxr

FIRST, SECOND, THIRD, TEST = ("0" * 31 + digit for digit in "1238")


def test_physionet(tmp_path):
    make_dummy_data.write(tmp_path)
    made = make(vindr_cxr, root=str(tmp_path), size=0, validation_share=0.0)
    assert made.counts == {"train": 3, "test": 1}
    assert made.reasons == {"bad_box": 1, "missing_file": 1}
    states = labels.label_states(made.examples[FIRST]["labels"])
    assert (states["Cardiomegaly"], states["Pneumonia"], states["Lung Lesion"], states["No Finding"]) == (1, 1, 0, 0)
    (box,) = made.examples[FIRST]["boxes"]  # two readers agree on it; one alone saw the nodule
    assert box["finding"] == "Cardiomegaly"
    np.testing.assert_allclose(box["box"], np.array([41, 21, 79, 61]) / (96, 80, 96, 80), rtol=1e-6)
    assert made.own(THIRD)["Other disease"] == 1
    assert "Other diseases" not in made.own(THIRD)
    assert labels.label_states(made.examples[SECOND]["labels"])["No Finding"] == 1
    assert len(made.own(FIRST)) == 28
    (box,) = made.examples[TEST]["boxes"]  # the consensus of the test readers needs no second vote
    assert box["finding"] == "Pleural Effusion"
    one = make(vindr_cxr, root=str(tmp_path), size=32, votes=1, validation_share=0.0)
    assert {box["finding"] for box in one.examples[FIRST]["boxes"]} == {"Cardiomegaly", "Lung Lesion"}
    assert set(make(vindr_cxr, root=str(tmp_path), size=32, validation_share=1.0).counts) == {"validation", "test"}


def test_kaggle(tmp_path):
    make_dummy_data.write(tmp_path, "kaggle")
    made = make(vindr_cxr, root=str(tmp_path), size=32, fractions="1,0,0")
    assert made.counts == {"train": 2}
    assert made.own(FIRST) == {"Cardiomegaly": 1, "Nodule/Mass": 0, "No finding": 0}
    assert len(made.examples[FIRST]["boxes"]) == 1


def test_boxes_of_two_findings_do_not_fuse():
    square = [0.0, 0.0, 10.0, 10.0]
    boxes = [("A", "R1", square), ("B", "R2", square), ("A", "R1", square), ("A", "R2", [0.0, 5.0, 10.0, 15.0])]
    assert vindr_cxr.fuse(boxes, 2, 0.4) == []
    assert vindr_cxr.fuse(boxes, 2, 0.3) == [("A", [0.0, 5 / 3, 10.0, 35 / 3])]
    assert len(vindr_cxr.fuse(boxes, 1, 0.4)) == 3


def test_what_other_findings_leave_open():
    """A consolidation alone is no proof that there is no opacity, another lesion none that there is no lung lesion."""
    own = dict.fromkeys(("Lung Opacity", "Nodule/Mass", "Consolidation", "Other lesion", "Pleural thickening"), 0)
    said = {"Lung Opacity": 0, "Lung Lesion": 0, "Consolidation": 0}
    assert vindr_cxr.translate(own, vindr_cxr.LABELS) == said
    assert vindr_cxr.translate(own | {"Consolidation": 1}, vindr_cxr.LABELS) == {"Lung Lesion": 0, "Consolidation": 1}
    assert "Lung Lesion" not in vindr_cxr.translate(own | {"Other lesion": 1}, vindr_cxr.LABELS)
    assert vindr_cxr.translate(own | {"Nodule/Mass": 1}, vindr_cxr.LABELS) == {"Lung Lesion": 1, "Consolidation": 0}


def test_real_table():
    """Counts of the competition's train.csv."""
    rejections = []
    found, (table,), names = vindr_cxr.read_kaggle(public_table("vinbigdata-train.csv.gz"), rejections)
    assert (rejections, table.rejections) == ([], [])
    assert len(found) == 15_000
    assert len(names) == 15
    assert sum(1 for _ in table) == 67_914
    assert {len(reading.readers) for reading in found.values()} == {3}
    kinds = collections.Counter(name for reading in found.values() for name, *_ in reading.boxes)
    assert (kinds["Aortic enlargement"], kinds["Cardiomegaly"], kinds["Pneumothorax"]) == (7_162, 5_427, 226)
    assert sum(row["class_name"] == "No finding" for _, row in table) == 31_818
    kept = [vindr_cxr.fuse(found[image].boxes, 2, 0.4) for image in sorted(found)[:1500]]
    drawn = sum(len(found[image].boxes) for image in sorted(found)[:1500])
    assert 0 < sum(map(len, kept)) < drawn / 2
