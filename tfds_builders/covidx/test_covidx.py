"""COVIDx on drawn files: lists of a version, patients in two lists, classes."""

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels
from tfds_builders.covidx import covidx
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import make, write_files

TRAIN = """3 a one.png normal rsna
3 b.png pneumonia cohen
4 c.jpg COVID-19 cohen
5 d.png COVID-19 cohen
6 e.png covid cohen
7 gone.png normal rsna
8 f.png
"""
TEST = "5 g.png COVID-19 cohen\n9 h.png normal rsna\n"


@pytest.fixture
def root(tmp_path):
    names = {"train": ("a one.png", "b.png", "c.jpg", "d.png"), "test": ("g.png", "h.png")}
    files = {f"{part}/{name}": images.encode_png(ellipses(len(name))) for part in names for name in names[part]}
    write_files(tmp_path, files | {"labels/train_COVIDx9A.txt": TRAIN, "labels/test_COVIDx9A.txt": TEST})
    return tmp_path


def test_every_line(root):
    made = make(covidx, root=str(root), version_name="9A", size=32, validation_share=0.0)
    assert made.counts == {"train": 3, "test": 2}
    reasons = {"bad_label": 1, "missing_file": 1, "patient_in_two_splits": 1, "wrong_number_of_fields": 1}
    assert made.reasons == reasons  # the training image of a test patient goes
    assert made.own("train/c.jpg") == {"normal": 0, "pneumonia": 0, "COVID-19": 1}
    assert labels.label_states(made.examples["train/a one.png"]["labels"]) == {"No Finding": 1}
    assert labels.label_states(made.examples["train/b.png"]["labels"]) == {"Pneumonia": 1}
    first, second = made.examples["train/a one.png"], made.examples["train/b.png"]
    assert first["patient_id"] != second["patient_id"]  # number 3 of two sources
    assert set(make(covidx, root=str(root), version_name="9A", size=32, validation_share=1.0).counts) == {
        "validation",
        "test",
    }


def test_lines_without_a_source():
    assert covidx.parse_line("47c78742 47c78742.png normal") == (
        "unknown/47c78742",
        "47c78742.png",
        "normal",
        "unknown",
    )
    assert covidx.parse_line("9 normal.png COVID-19 cohen") == ("cohen/9", "normal.png", "COVID-19", "cohen")


def test_lists_of_a_folder(root):
    for part in ("train", "test"):
        (root / f"labels/{part}_COVIDx9A.txt").rename(root / f"{part}.txt")
    with pytest.raises(ValueError, match=r"looked for test_COVIDx9A\.txt, labels/test_COVIDx9A\.txt"):
        make(covidx, root=str(root), version_name="9A")
    (root / "val.txt").write_text("4 c.jpg positive cohen\n")
    (root / "val").mkdir()
    (root / "val/c.jpg").write_bytes((root / "train/c.jpg").read_bytes())
    made = make(covidx, root=str(root), size=32)
    assert made.counts == {"validation": 1, "train": 2, "test": 2}
