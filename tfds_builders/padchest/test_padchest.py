"""PadChest on drawn files and, where it is at hand, on the real table."""

import collections

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels
from medvlp_jax.data.staging import Rejection
from medvlp_jax.data.tables import Table
from tfds_builders.padchest import make_dummy_data, padchest
from tfds_builders.testing import make, public_table


def test_every_row(tmp_path):
    make_dummy_data.write(tmp_path)
    made = make(padchest, root=str(tmp_path), size=32, fractions="1,0,0")
    assert made.counts == {"train": 4}
    assert made.reasons == {"excluded_by_annotators": 2, "missing_file": 1, "nan_label": 1}
    tube = made.examples["2_a"]
    assert made.own("2_a") == {"pleural effusion": 1, "NSG tube": 1}  # blanks stripped
    assert labels.label_states(tube["labels"]) == {"Pleural Effusion": 1, "Support Devices": 1}
    assert (tube["view"], tube["findings"]) == ("AP", "tub endotraqueal . derram .")
    assert made.examples["1_a"]["patient_id"] == made.examples["1_b"]["patient_id"]
    assert [made.examples[name]["view"] for name in ("1_a", "1_b", "7_a")] == ["PA", "LATERAL", ""]
    both = labels.label_states(made.examples["7_a"]["labels"])
    assert both == {"Fracture": 1, "Lung Opacity": 1, "Consolidation": 1}
    people = [(made.examples[name]["age"], made.examples[name]["sex"]) for name in ("1_a", "1_b", "7_a")]
    assert people == [(90, "M"), (86, "F"), (56, "F")]
    assert padchest.age_of("None", "20110412") == padchest.age_of("1950", "") == -1
    pixels = cv2.imdecode(np.frombuffer(tube["image"], np.uint8), -1)
    assert (pixels.dtype, int(pixels.max())) == (np.uint8, 255)  # a 12-bit picture spread from its own range
    made = make(padchest, root=str(tmp_path), size=32, labels_by="physician", only_frontal=True, keep_excluded=True)
    assert made.reasons == {"missing_file": 1, "nan_label": 1, "not_frontal": 1, "not_selected": 1, "view_unknown": 2}


def test_real_table():
    """Counts of the published table, whose cells hold line breaks."""
    table = Table(public_table(f"{make_dummy_data.TABLE}.gz"), padchest.COLUMNS)
    assert list(make_dummy_data.HEADER) == table.columns
    counts = collections.Counter()
    names, physician, patients, studies = set(), set(), set(), set()
    for _, row in table:
        patients.add(row["PatientID"])
        studies.add(row["StudyID"])
        counts[row["MethodLabel"]] += 1
        counts[row["Projection"]] += 1
        try:
            own = padchest.own_labels(row["Labels"])
        except Rejection as rejection:
            counts[rejection.reason] += 1
            continue
        names |= set(own)
        physician |= set(own) if row["MethodLabel"] == "Physician" else set()
    assert table.rejections == []
    assert (counts["Physician"], counts["RNN_model"], counts["nan_label"]) == (39_053, 121_808, 103)
    assert (counts["PA"], counts["L"], counts["AP_horizontal"], counts["AP"]) == (91_728, 49_579, 14_346, 4_559)
    assert (len(patients), len(studies)) == (67_625, 109_931)
    assert (len(names), len(physician)) == (193, 193)
    assert {name for row in padchest.LABELS for name in row.own} <= names
