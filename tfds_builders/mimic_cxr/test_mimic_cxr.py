"""MIMIC-CXR on drawn files in its layout: joins, filters, sections, labels."""

import gzip
import json
import shutil
import zipfile

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels, records
from tfds_builders.mimic_cxr import derived, make_dummy_data, mimic_cxr
from tfds_builders.mimic_cxr.make_dummy_data import dicom_id
from tfds_builders.testing import make, write_csv


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mimic")
    make_dummy_data.write(folder)
    make_dummy_data.write_derived(folder / "derived")
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
    made = make(
        mimic_cxr, root=str(root), reports=str(root / "derived/mimic_cxr_sectioned.csv"), splits="train", size=32
    )
    assert made.examples[dicom_id(0)]["findings"] == "The lungs are clear.\nThe heart is normal, as before."
    assert made.examples[dicom_id(2)]["impression"] == "Mild pulmonary edema."
    assert made.reasons["missing_report_file"] == 4
    assert made.why(dicom_id(3)) == "no_findings_or_impression"
    (facts,) = made.provenance["sectioned"].values()
    assert {name: facts[name] for name in ("by", "rows", "rows of nothing here", "ids without a row")} == {
        "by": "study",
        "rows": 4,
        "rows of nothing here": 1,
        "ids without a row": 10,
    }


def test_a_table_with_a_row_for_each_image(root, tmp_path):
    """MGCA writes one blank for a missing section, IMITATE the word dumb."""
    made = make(
        mimic_cxr, root=str(root), reports=str(root / "derived/master.csv"), splits="train", min_words=1, size=32
    )
    assert made.counts == {"train": 2}
    first, second = made.examples[dicom_id(0)], made.examples[dicom_id(2)]
    assert (first["has_findings"], first["impression"]) == (False, "No acute process.")
    assert (second["has_impression"], second["findings"]) == (False, "Mild pulmonary edema is seen.")
    (facts,) = made.provenance["sectioned"].values()
    assert (facts["by"], facts['cells "dumb" taken as missing']) == ("dicom_id", 1)
    assert facts["columns not read"] == ["Path", "subject_id", "ViewPosition", "split"]
    (tmp_path / "mimic_cxr_00.csv").write_text("s50414267,No acute process.\n")
    with pytest.raises(ValueError, match=r"has 2 columns. It seems to have no header") as error:
        make(mimic_cxr, root=str(root), reports=str(tmp_path / "mimic_cxr_00.csv"))
    assert "acute" not in str(error.value)


def test_hand_made_section_lists(root, tmp_path):
    """The published script is read, never run; JSON says the same."""
    lists = root / "derived/section_parser.py"
    made = make(mimic_cxr, root=str(root), section_lists=str(lists), min_words=1, size=32)
    listed = made.examples[dicom_id(3)]
    assert (listed["findings"], listed["has_impression"]) == ("fever.", False)
    assert made.why(dicom_id(4)) == "no_text_by_section_list"
    assert made.examples[dicom_id(0)]["findings"] == "The lungs are clear.  The heart is normal."
    assert made.provenance["section_lists"] == {"by name": 2, "by place": 2, "without text": 1, "studies not here": 1}
    facts = [example[records.SOURCE]["facts"] for example in made.splits["train"].values()]
    assert sum("text: hand-made section list, by place" in of_one for of_one in facts) == 1
    names = {"custom_section_names": {"57375967": "comparison"}, "custom_indices": {}}
    (tmp_path / "lists.json").write_text(json.dumps(names))
    other = make(mimic_cxr, root=str(root), section_lists=str(tmp_path / "lists.json"), size=32)
    assert other.why(dicom_id(3)) == "section_list_misfit"
    for text, message in (
        ("{}", "has neither"),
        ("[", "cannot be read"),
        ('{"custom_indices": {"s5": [3]}}', "entry 1 of"),
    ):
        (tmp_path / "lists.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            make(mimic_cxr, root=str(root), section_lists=str(tmp_path / "lists.json"))
    table = str(root / "derived/mimic_cxr_sectioned.csv")
    with pytest.raises(ValueError, match="speaks of report files"):
        make(mimic_cxr, root=str(root), section_lists=str(lists), reports=table)


def test_labels_of_another_labeler(root):
    made = make(mimic_cxr, root=str(root), label_table=str(root / "derived/labeled_reports.csv"), size=32)
    assert labels.label_states(made.examples[dicom_id(0)]["labels"]) == {"No Finding": 1}
    assert labels.label_states(made.examples[dicom_id(2)]["labels"]) == {"Edema": -1}
    assert labels.label_states(made.examples[dicom_id(12)]["labels"]) == {}
    (facts,) = made.provenance["label_files"].values()
    assert facts.pop("labels it lacks") == [n for n in labels.CHEXPERT_LABELS if n not in ("No Finding", "Edema")]
    assert facts == {
        "by": "study_id",
        "rows": 3,
        "columns not read": ["Reports"],
        "repeated rows": 1,
        "rows of nothing here": 1,
        "images without a row": 11,
    }


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


def test_age_and_sex_of_mimic_iv(root):
    patients = str(root / "derived/patients.csv.gz")
    made = make(mimic_cxr, root=str(root), patients=patients, size=32)
    known = [made.examples[dicom_id(number)] for number in (0, 10, 12)]
    assert [(example["age"], example["sex"]) for example in known] == [(52, "F"), (90, "M"), (-1, "")]
    hidden = make(mimic_cxr, root=str(root), patients=patients, age_and_sex=False, splits="train", size=32)
    assert {(example["age"], example["sex"]) for example in hidden.examples.values()} == {(-1, "")}
    young = derived.Person("F", 30, 2150)
    assert [derived.person_at(young, date) for date in ("21530101", "", "21990101")] == [
        {"age": age, "sex": "F"} for age in (33, -1, -1)
    ]
    with pytest.raises(ValueError, match="lacks the column"):
        make(mimic_cxr, root=str(root), patients=str(root / "derived/master.csv"))


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


def test_five_by_200(root, tmp_path):
    """By the labels of a table: one image of one study, and nothing else of its patient in train."""
    states = [("50414267", "1", "0"), ("53189527", "1", "-1"), ("57375967", "", "1"), ("52000022", "1", "")]
    write_csv(tmp_path / "own.csv", ("study_id", "Edema", "Pneumonia"), states)
    settings = dict(root=str(root), size=16, label_table=str(tmp_path / "own.csv"))
    made = make(mimic_cxr, **settings, per_class=200)
    assert list(made.splits["test_5x200"]) == [dicom_id(0)]
    assert made.reasons["patient_of_5x200"] == 2  # the lateral of the study, and another study
    assert made.counts == {"validation": 2, "test": 2, "test_5x200": 1}  # the official test set stays
    assert made.provenance["split"] == "official; test_5x200 drawn with seed 0"
    assert "test_5x200" not in make(mimic_cxr, **settings).counts
    for lacking in ({"labeler": "none", "label_table": ""}, {"official_split": False}):
        with pytest.raises(ValueError, match="--per_class needs the official split, a label table"):
            make(mimic_cxr, **{**settings, **lacking}, per_class=200)


def test_reports_that_are_elsewhere(root, tmp_path):
    with pytest.raises(ValueError, match=r"Reports belong to MIMIC-CXR: give their folder or \.zip with --reports"):
        make(mimic_cxr, root=str(root), reports=str(tmp_path))
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match=r"is no complete \.zip file"):
        make(mimic_cxr, root=str(root), reports=str(tmp_path / "half.zip"))
