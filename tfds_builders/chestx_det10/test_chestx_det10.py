"""ChestX-Det on drawn files, with and without polygons, and on the real test list where it is at hand."""

import collections
import json

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels
from medvlp_jax.data.records import hashed_id
from tfds_builders.chestx_det10 import chestx_det10
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import local_data, make, write_files

TRAIN = [
    {"file_name": "36199.png", "syms": [], "boxes": []},
    {
        "file_name": "36302.png",
        "syms": ["Effusion", "Effusion", "Diffuse Nodule"],
        "boxes": [[512, 256, 768, 512], [0, 0, 256, 256], [10, 10, 2000, 90]],
        "polygons": [
            [[512, 256], [768, 256], [768, 512], [512, 512]],
            [[0, 0], [255, 0], [0, 255]],
            [[9, 9], [90, 9], [9, 90]],
        ],
    },
    {"file_name": "36331.png", "syms": ["Nodule"], "boxes": []},
    {"file_name": "36346.png", "syms": [], "boxes": []},  # no file
]
TEST = [{"file_name": "36199.png", "syms": ["Fibrosis"], "boxes": [[1, 2, 300, 400]]}]


def test_every_entry(tmp_path):
    files = {f"train_data/{name}.png": images.encode_png(ellipses(1, 128, 128)) for name in (36199, 36302, 36331)}
    files["test_data/36199.png"] = images.encode_png(ellipses(2, 128, 128))
    write_files(tmp_path, files | {"train.json": json.dumps(TRAIN), "test.json": json.dumps(TEST)})
    made = make(chestx_det10, root=str(tmp_path), size=0, validation_share=0.0)
    assert (made.counts, made.reasons) == ({"train": 2, "test": 1}, {"bad_annotation": 1, "missing_file": 1})
    record = made.examples["train/36302.png"]
    np.testing.assert_allclose(record["boxes"][0]["box"], [0.25, 0.5, 0.5, 0.75])
    assert record["boxes"][2]["box"].max() == 1
    assert [box["finding"] for box in record["boxes"]] == ["Pleural Effusion", "Pleural Effusion", "Lung Lesion"]
    assert [mask["finding"] for mask in record["masks"]] == ["Pleural Effusion", "Lung Lesion"]
    effusion = cv2.imdecode(np.frombuffer(record["masks"][0]["mask"], np.uint8), -1) > 0
    assert effusion[33:63, 65:95].all()
    assert effusion[2, 2]
    assert not effusion[30, 30]
    assert "No Finding" not in labels.label_states(made.examples["train/36199.png"]["labels"])  # ten findings, not all
    assert labels.label_states(record["labels"])["Lung Lesion"] == 1
    assert made.own("train/36199.png") == dict.fromkeys(("Diffuse Nodule", "Effusion", "Fibrosis", "Nodule"), 0)
    assert "test/36199.png" in made.splits["test"]


def test_nih_names_tell_patients(tmp_path):
    """The first lists name the NIH files; training images of a test patient go."""
    lists = {
        "train": [{"file_name": f"{name}.png", "syms": [], "boxes": []} for name in ("00000004_000", "00000005_006")],
        "test": [{"file_name": "00000005_007.png", "syms": [], "boxes": []}],
    }
    files = {
        f"images/{entry['file_name']}": images.encode_png(ellipses(3)) for part in lists.values() for entry in part
    }
    write_files(tmp_path, files | {f"{part}.json": json.dumps(entries) for part, entries in lists.items()})
    made = make(chestx_det10, root=str(tmp_path), size=32, validation_share=0.0)
    assert (made.counts, made.reasons) == ({"train": 1, "test": 1}, {"patient_in_two_splits": 1})
    assert made.examples["00000004_000"]["patient_id"] == hashed_id("nih-00000004")


def test_real_test_list():
    """Counts of the list that published evaluations use."""
    entries = chestx_det10.read_list(local_data("text_resources") / "chestxdet" / "chestx_det10_test.json")
    assert len(entries) == 542
    positive = collections.Counter(name for entry in entries for name in set(entry["syms"]))
    assert positive == {
        **{"Consolidation": 289, "Effusion": 252, "Fibrosis": 82, "Nodule": 77, "Fracture": 76},
        **{"Atelectasis": 48, "Emphysema": 39, "Calcification": 38, "Pneumothorax": 35, "Mass": 30},
    }
    assert all(len(entry["syms"]) == len(entry["boxes"]) for entry in entries)
    assert set(chestx_det10.BOX_NAMES) & set(positive) == {
        "Consolidation",
        "Effusion",
        "Nodule",
        "Fracture",
        "Atelectasis",
        "Pneumothorax",
        "Mass",
    }
