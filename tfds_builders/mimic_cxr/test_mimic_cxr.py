"""MIMIC-CXR on drawn files in its layout: joins, filters, sections, labels."""

import gzip
import shutil
import zipfile

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels, records
from tfds_builders.mimic_cxr import make_dummy_data, mimic_cxr
from tfds_builders.mimic_cxr.make_dummy_data import dicom_id
from tfds_builders.testing import make, write_csv


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimic")
    make_dummy_data.write(folder)
    return folder


def test_every_image_is_a_record_or_has_a_reason(root):
    made = make(mimic_cxr, root=str(root), size=48)
    assert made.counts == {"train": 2, "validation": 2, "test": 2}
    assert made.reasons == {
        "no_findings_or_impression": 1,
        "empty_report": 1,
        "view_unknown": 1,
        "not_frontal": 1,
        "too_few_words": 1,
        "missing_file": 1,
        "missing_report_file": 1,
        "truncated_image": 1,
    }
    assert sum(made.counts.values()) + len(made.rejections) == len(make_dummy_data.ROWS)
    assert made.provenance["split"] == "official"
    assert len(made.provenance["tables"]) == 3


def test_text_labels_and_ids(root):
    made = make(mimic_cxr, root=str(root), size=48)
    first = made.examples[dicom_id(0)]
    assert first["findings"].startswith("The lungs are clear.")
    assert first["impression"] == "No acute process."
    assert first["sentences"][-1] == "No pleural effusion is seen."
    assert labels.label_states(first["labels"]) == {"No Finding": 1, "Pleural Effusion": 0}
    assert (first["view"], first["study_id"]) == ("PA", records.hashed_id("50414267"))
    edema = made.examples[dicom_id(2)]
    assert (edema["has_findings"], edema["impression"]) == (False, "Mild pulmonary edema.")
    assert labels.label_states(edema["labels"]) == {"Edema": 1, "Pneumonia": -1}
    assert edema["patient_id"] == first["patient_id"] == records.hashed_id("10000032")
    facts = edema[records.SOURCE]["facts"]
    assert facts[:2] == ["ViewPosition AP", "text: impression"]


def test_settings_let_more_through(root):
    wide = dict(only_frontal=False, last_paragraph=True, min_words=1, labeler="none", size=32)
    made = make(mimic_cxr, root=str(root), **wide)
    assert made.counts["train"] == 6
    assert {"not_frontal", "too_few_words", "no_findings_or_impression"} & set(made.reasons) == set()
    assert made.examples[dicom_id(1)]["view"] == "LATERAL"
    assert made.examples[dicom_id(3)]["findings"] == "Right basal opacity."
    assert made.examples[dicom_id(2)]["labels"].tolist() == [-2] * 14
    few = make(mimic_cxr, root=str(root), limit=1, splits="train,test", size=32)
    assert few.counts == {"train": 1, "test": 1}
    assert few.provenance["in_other_splits"] == 2


def test_reports_from_a_zip_and_from_the_sectioned_table(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "reports.zip", "w") as archive:
        for path in root.rglob("s*.txt"):
            archive.write(path, path.relative_to(root))
    zipped = make(mimic_cxr, root=str(root), reports=str(tmp_path / "reports.zip"), size=32)
    assert zipped.reasons == make(mimic_cxr, root=str(root), size=32).reasons
    rows = [
        ("s50414267", "No acute process.", "The lungs are clear.\nThe heart is normal, as before.", "", ""),
        ("53189527", "Mild pulmonary edema.", "", "", "none"),
    ]
    header = ("study", "impression", "findings", "last_paragraph", "comparison")
    write_csv(tmp_path / "mimic_cxr_sectioned.csv", header, rows)
    made = make(mimic_cxr, root=str(root), reports=str(tmp_path / "mimic_cxr_sectioned.csv"), splits="train", size=32)
    assert made.examples[dicom_id(0)]["findings"] == "The lungs are clear.\nThe heart is normal, as before."
    assert made.examples[dicom_id(2)]["impression"] == "Mild pulmonary edema."
    assert made.reasons["missing_report_file"] == 5


def test_dicom_files_without_metadata(tmp_path):
    """The DICOM project alone: a record list, views from the headers, splits drawn, no labels."""
    make_dummy_data.write(tmp_path, "dcm")
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", "rt") as file:
        rows = [line.split(",")[:3] for line in file.read().splitlines()[1:]]
    write_csv(tmp_path / "cxr-record-list.csv.gz", ("dicom_id", "subject_id", "study_id"), rows)
    for path in tmp_path.glob("mimic-cxr-2*"):
        path.unlink()
    settings = dict(root=str(tmp_path), size=32, min_words=1, official_split=False, labeler="none")
    made = make(mimic_cxr, **settings)
    assert (made.reasons["not_frontal"], made.reasons["view_unknown"]) == (1, 1)
    assert made.examples[dicom_id(0)]["view"] == "PA"
    assert made.provenance["split"].startswith("drawn by patient")
    for missing, advice in (("official_split", "--official_split false"), ("labeler", "--labeler none")):
        with pytest.raises(ValueError, match=advice):
            make(mimic_cxr, **{name: value for name, value in settings.items() if name != missing})


def test_excluded_patients_and_expert_labels(root, tmp_path):
    write_csv(tmp_path / "ms.csv", ("dicom_id", "category_name"), [(dicom_id(2), "Edema"), (dicom_id(13), "Edema")])
    made = make(mimic_cxr, root=str(root), exclude=str(tmp_path / "ms.csv"), size=32)
    assert made.why(dicom_id(0)) == "excluded_patient"  # another image of the same patient
    assert dicom_id(13) in made.splits["test"]
    shutil.copytree(root, tmp_path / "jpg")
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in labels.CHEXPERT_LABELS]
    expert = [("52000022", *("-1.0" if name == "Airspace Opacity" else "0.0" for name in names))]
    write_csv(tmp_path / "jpg/mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *names), expert)
    made = make(mimic_cxr, root=str(tmp_path / "jpg"), expert_test=True, splits="test", size=32)
    assert (made.counts, made.reasons["no_expert_label"]) == ({"test": 1}, 1)
    assert labels.label_states(made.examples[dicom_id(13)]["labels"])["Lung Opacity"] == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": ""}, "No folder. Give the downloaded one with --root: the MIMIC-CXR-JPG folder of PhysioNet"),
        ({"root": "/absent"}, "is no folder"),
        ({"images": "tif"}, "choices: auto, jpg, dcm, png"),
        ({"reports": "/absent.zip"}, "--reports '/absent.zip' does not exist"),
        ({"tables": "/tmp"}, "No metadata table under /tmp"),
        ({"splits": "trian"}, "--splits names 'trian'"),
    ],
)
def test_mistakes_are_explained(root, settings, message):
    with pytest.raises(ValueError, match=message):
        make(mimic_cxr, **{"root": str(root), **settings})
