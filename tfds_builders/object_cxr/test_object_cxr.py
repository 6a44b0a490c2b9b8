"""Object-CXR on drawn files: rectangles, ellipses, polygons, the two ways to split."""

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.object_cxr import object_cxr
from tfds_builders.testing import make, write_csv, write_files

TRAIN = [
    ("00001.jpg", "0 8 16 24 48;1 40 40 60 80"),
    ("00002.jpg", ""),
    ("00003.jpg", "2 10 10 30 10 30 50"),
    ("00004.jpg", "3 1 2 3 4"),
    ("00005.jpg", "2 1 2 3 4"),
    ("00006.jpg", ""),
]
HEADER = ("image_name", "annotation")


@pytest.fixture
def root(tmp_path):
    write_csv(tmp_path / "train.csv", HEADER, TRAIN)
    write_csv(tmp_path / "dev.csv", HEADER, [("00001.jpg", "0 1 1 9 9")])
    files = {f"train/{name}": images.encode_jpeg(ellipses(int(name[4]), 96, 80)) for name, _ in TRAIN[:5]}
    write_files(tmp_path, files | {"dev/00001.jpg": images.encode_jpeg(ellipses(9))})
    return tmp_path


def mask_of(example):
    return cv2.imdecode(np.frombuffer(example["masks"][0]["mask"], np.uint8), -1) > 0


def test_every_row(root):
    made = make(object_cxr, root=str(root), size=0, validation_share=0.0)
    assert made.counts == {"train": 3, "test": 1}
    assert made.reasons == {"bad_annotation": 2, "missing_file": 1}
    first = made.examples["train/00001.jpg"]
    boxes = np.array([box["box"] for box in first["boxes"]]) * (96, 80, 96, 80)
    np.testing.assert_allclose(boxes, [[16, 8, 48, 24], [40, 40, 80, 60]], atol=1e-4)
    mask = mask_of(first)
    assert mask[16:49, 8:25].all()
    assert mask[60, 50]
    assert not mask[41, 41]  # the corner of the ellipse's box
    triangle = mask_of(made.examples["train/00003.jpg"])
    assert triangle[20, 29]
    assert not triangle[45, 12]
    assert made.own("train/00002.jpg") == {"Foreign object": 0}
    assert made.examples["train/00002.jpg"]["masks"] == []
    assert "dev/00001.jpg" in made.splits["test"]


def test_with_a_test_table(root):
    write_csv(root / "test.csv", ("image_path", "annotation"), [("x/00001.jpg", "")])
    (root / "test").mkdir()
    (root / "test/00001.jpg").write_bytes((root / "dev/00001.jpg").read_bytes())
    made = make(object_cxr, root=str(root), size=32)
    assert made.counts == {"train": 3, "validation": 1, "test": 1}
