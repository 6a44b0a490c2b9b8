"""RSNA Pneumonia on drawn files and, where it is at hand, on the real table."""

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels, records
from medvlp_jax.data.tables import Table
from tfds_builders.rsna_pneumonia import make_dummy_data, rsna_pneumonia
from tfds_builders.rsna_pneumonia.make_dummy_data import IDS
from tfds_builders.testing import make, public_table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rsna")
    make_dummy_data.write(folder)
    return folder


def test_every_image(root):
    made = make(rsna_pneumonia, root=str(root), size=64, fractions="1,0,0")
    assert (made.counts, made.reasons) == ({"train": 5}, {"missing_file": 1})
    two = made.examples[IDS[2]]["boxes"]
    np.testing.assert_allclose(two[0]["box"], [0.125, 0.25, 0.625, 0.375])
    assert {box["finding"] for box in two} == {"Lung Opacity"}
    assert len(two) == 2
    assert labels.label_states(made.examples[IDS[2]]["labels"]) == {"No Finding": 0, "Lung Opacity": 1, "Pneumonia": 1}
    other = labels.label_states(made.examples[IDS[1]]["labels"])
    assert other == {"No Finding": 0, "Pneumonia": 0}  # opacities of other kinds are in this class
    assert rsna_pneumonia.states(0, rsna_pneumonia.NORMAL) == {"No Finding": 1, "Lung Opacity": 0, "Pneumonia": 0}
    assert rsna_pneumonia.states(0, "") == {"Pneumonia": 0}
    assert rsna_pneumonia.states(1, "") == {"Lung Opacity": 1, "Pneumonia": 1}
    assert made.own(IDS[1])["No Lung Opacity / Not Normal"] == 1
    assert [made.examples[IDS[i]]["view"] for i in (0, 1)] == ["PA", "AP"]
    made = make(rsna_pneumonia, root=str(root), size=64, negatives="normal", fractions="1,0,0")
    assert made.why(IDS[1]) == "not_selected"


def test_patients_of_the_nih_set(root):
    mapped = dict(nih_mapping=str(root / "nih/mapping.json"), nih_test_list=str(root / "test_list.txt"))
    made = make(rsna_pneumonia, root=str(root), size=32, **mapped)
    assert set(made.splits["test"]) == {IDS[3], IDS[4]}
    assert made.examples[IDS[0]]["patient_id"] == made.examples[IDS[1]]["patient_id"]
    assert made.examples[IDS[0]]["patient_id"] == records.hashed_id("nih-00000001")
    (root / "nih/mapping.json").rename(root / "nih" / rsna_pneumonia.MAPPING)
    found = make(rsna_pneumonia, root=str(root), size=32, fractions="1,0,0")
    assert found.examples[IDS[0]]["patient_id"] == made.examples[IDS[0]]["patient_id"]
    (root / "nih" / rsna_pneumonia.MAPPING).unlink()
    with pytest.raises(ValueError, match="needs --nih_mapping"):
        make(rsna_pneumonia, root=str(root), nih_test_list="x")
    (root / "wrong.json").write_text('[{"img_id": "a", "rsna": "b"}]')
    with pytest.raises(ValueError, match="entries lack subset_img_id; they have img_id, rsna"):
        make(rsna_pneumonia, root=str(root), nih_mapping=str(root / "wrong.json"))


def test_real_table():
    """Counts of the published stage 2 table."""
    path = public_table("kaggle_stage_2_train_labels.csv.zip")
    table = Table(path, ("patientId", "x", "y", "width", "height", "Target"))
    assert sum(1 for _ in table) == 30_227
    rejections = []
    found = rsna_pneumonia.read_boxes(table, rejections)
    assert rejections == table.rejections == []
    assert len(found) == 26_684
    assert sum(target for _, target, _ in found.values()) == 6_012
    assert sum(len(boxes) for *_, boxes in found.values()) == 9_555
