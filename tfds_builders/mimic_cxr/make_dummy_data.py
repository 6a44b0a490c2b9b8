"""Draws a tiny MIMIC-CXR-JPG folder in the true layout: random ellipses, invented reports, one of every flaw.

python -m tfds_builders.mimic_cxr.make_dummy_data --folder /tmp/mimic

Beside it, in <folder>/derived, the files that others make of the reports, in their layouts: a table of sections, one
with a row per image, labels of another labeler, hand-made lists of sections. All content is invented.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medvlp_jax.data import images
from medvlp_jax.data.labels import CHEXPERT_LABELS
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import write_csv, write_files

HEAD = " " * 33 + "FINAL REPORT\n"
FULL = (
    f"{HEAD} EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough\n \n FINDINGS: \n \n"
    " The lungs are clear.  The heart is normal.\n No pleural effusion is seen.\n \n IMPRESSION: \n \n"
    " No acute process.\n"
)
IMPRESSION = f"{HEAD} HISTORY:  fever.\n \n IMPRESSION:  Mild pulmonary edema.\n"
LAST = f"{HEAD} HISTORY:  fever.\n \n Right basal opacity.\n"
SHORT = f"{HEAD} IMPRESSION:  Normal.\n"
METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)
# subject, study, view, split, report, labels. The number of the row makes the dicom id.
ROWS: list[tuple[str, str, str, str, str, dict[str, str]]] = [
    ("10000032", "50414267", "PA", "train", FULL, {"No Finding": "1.0", "Pleural Effusion": "0.0"}),
    ("10000032", "50414267", "LATERAL", "train", FULL, {"No Finding": "1.0", "Pleural Effusion": "0.0"}),
    ("10000032", "53189527", "AP", "train", IMPRESSION, {"Edema": "1.0", "Pneumonia": "-1.0"}),
    ("10000764", "57375967", "AP", "train", LAST, {}),
    ("10000898", "50771383", "PA", "train", "", {}),
    ("10000935", "50578979", "", "train", FULL, {}),
    ("10000935", "51178377", "AP", "train", SHORT, {}),
    ("10000935", "51738740", "PA", "train", FULL, {"Lung Opacity": "1.0"}),  # no image file
    ("10000980", "50985099", "PA", "train", FULL, {"Support Devices": "1.0"}),  # no report file
    ("10001038", "52037439", "PA", "train", FULL, {"Lung Lesion": "-1.0"}),  # truncated
    ("11000011", "51000011", "PA", "validate", FULL, {"No Finding": "1.0"}),
    ("11000011", "51000012", "AP", "validate", IMPRESSION, {"Edema": "1.0"}),
    ("12000011", "52000011", "PA", "test", FULL, {"No Finding": "1.0"}),
    ("12000022", "52000022", "AP", "test", IMPRESSION, {"Edema": "1.0", "Lung Opacity": "1.0"}),
]
NO_IMAGE, NO_REPORT, TRUNCATED = "51738740", "50985099", "52037439"


def dicom_id(number: int) -> str:
    """An id in the form of MIMIC-CXR: forty hexadecimal digits in five groups."""
    digits = "0123456789abcdef"
    drawn = "".join(digits[d] for d in np.random.default_rng(number).integers(0, 16, 40))
    return "-".join(drawn[start : start + 8] for start in range(0, 40, 8))


def write(folder: Path, kind: str = "jpg", copies: int = 1) -> None:
    """Writes tables, images (`kind` jpg or dcm) and reports. `copies`: of every patient, under other ids."""
    rows = [
        (str(int(subject) + 100 * copy), str(int(study) + 100 * copy), *rest)
        for copy in range(copies)
        for subject, study, *rest in ROWS
    ]
    files: dict[str, bytes | str] = {}
    metadata, splits, studies = [], [], {}
    for number, (subject, study, view, split, report, labels) in enumerate(rows):
        name, tree = dicom_id(number), f"files/p{subject[:2]}/p{subject}/s{study}"
        metadata.append([name, subject, study, "CHEST (PA AND LAT)", view, 96, 80, "21800506", "213014.5", "", "", ""])
        splits.append([name, study, subject, split])
        studies[study] = [subject, study, *(labels.get(label, "") for label in sorted(CHEXPERT_LABELS))]
        picture = ellipses(number)
        data = images.encode_jpeg(picture)
        if kind == "dcm":
            data = dicom(picture.astype(np.uint16) * 16, inverted=number % 2 == 0, ViewPosition=view)
        if study != NO_IMAGE:
            files[f"{tree}/{name}.{kind}"] = data[:-600] if study == TRUNCATED else data
        if study != NO_REPORT:
            files[f"{tree}.txt"] = report
    write_files(folder, files)
    write_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, metadata)
    write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    header = ("subject_id", "study_id", *sorted(CHEXPERT_LABELS))
    for labeler in ("chexpert", "negbio"):
        write_csv(folder / f"mimic-cxr-2.0.0-{labeler}.csv.gz", header, studies.values())


SECTION_PARSER = """import re

def custom_mimic_cxr_rules():
    custom_section_names = {
        's57375967': 'history',  # files/p10/p10000764/s57375967.txt
        's59999999': 'indication',
    }
    custom_indices = {
        's50414267': [129, 171],
        's50771383': [0, 0],
    }
    return custom_section_names, custom_indices
"""


def write_derived(folder: Path) -> None:
    """What users have beside the reports: see the docstring of this module."""
    sectioned = [
        ("s50414267", "No acute process.", "The lungs are clear.\nThe heart is normal, as before.", "", ""),
        ("s53189527", "Mild pulmonary edema.", "", "", "none"),
        ("s57375967", "", "", "Right basal opacity.", ""),
        ("s59999999", "No such study.", "", "", ""),
    ]
    header = ("study", "impression", "findings", "last_paragraph", "comparison")
    write_csv(folder / "mimic_cxr_sectioned.csv", header, sectioned)
    header = ("Path", "dicom_id", "subject_id", "ViewPosition", "impression", "findings", "split")
    per_image = [
        ("files/x.jpg", dicom_id(0), "10000032", "PA", "No acute process.", "dumb", "train"),
        ("files/y.jpg", dicom_id(2), "10000032", "AP", " ", "Mild pulmonary edema is seen.", "train"),
    ]
    write_csv(folder / "master.csv", header, per_image)
    labels = [
        ("s50414267", "1.0", "", "FINDINGS"),
        ("53189527", "", "-1.0", "x"),
        ("53189527", "1", "1", "x"),
        ("s59999999", "0.0", "", "x"),
    ]
    write_csv(folder / "labeled_reports.csv", ("study_id", "No Finding", "Edema", "Reports"), labels)
    patients = [
        ("10000032", "F", "52", "2180", "2014 - 2016", ""),
        ("11000011", "M", "91", "2150", "2014 - 2016", ""),
        ("19999999", "M", "40", "2100", "2008 - 2010", ""),
    ]
    header = ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod")
    write_csv(folder / "patients.csv.gz", header, patients)
    (folder / "section_parser.py").write_text(SECTION_PARSER)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=1)
    arguments = parser.parse_args()
    write(arguments.folder, copies=arguments.copies)
    write_derived(arguments.folder / "derived")
