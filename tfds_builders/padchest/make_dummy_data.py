"""Draws a tiny PadChest folder in the true layout.

python -m tfds_builders.padchest.make_dummy_data --folder /tmp/padchest
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medvlp_jax.data import images
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import write_csv, write_files

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM"),
    *("PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
    *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
    *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
)
# image, patient, projection, report, method, labels
ROWS = [
    ("1_a.png", "11", "PA", " sin hallazg patolog .", "Physician", "['normal']"),
    ("1_b.png", "11", "L", " sin hallazg patolog .", "Physician", "['normal']"),
    (
        "2_a.png",
        "22",
        "AP_horizontal",
        " tub endotraqueal .\n derram .",
        "RNN_model",
        "[' pleural effusion', 'NSG tube ']",
    ),
    ("3_a.png", "33", "PA", " nodul .", "Physician", "['nodule', 'consolidation', 'exclude']"),
    ("4_a.png", "44", "EXCLUDE", "", "Physician", "['exclude']"),
    ("5_a.png", "55", "PA", " fractur .", "Physician", "nan"),
    ("6_a.png", "66", "PA", " atelectasi .", "Physician", "['laminar atelectasis', 'unchanged']"),  # no file
    ("7_a.png", "77", "COSTAL", " cost .", "Physician", "['rib fracture', 'consolidation']"),
]
MISSING = "6_a.png"


def write(folder: Path) -> None:
    """Writes the table and 16-bit images in numbered folders."""
    rows, files = [], {}
    for number, (name, patient, projection, report, method, labels) in enumerate(ROWS):
        cells = dict.fromkeys(HEADER, "None") | {"": str(number), "ImageID": name, "ImageDir": str(number % 2)}
        cells |= {
            "StudyDate_DICOM": "20110412",
            "PatientBirth": f"{1920 + 5 * number}.0",
            "PatientSex_DICOM": "MF"[number % 2],
        }
        cells |= {"StudyID": name.split("_")[0], "PatientID": patient, "Projection": projection}
        cells |= {"ReportID": patient, "Report": report, "MethodLabel": method, "Labels": labels}
        rows.append([cells[column] for column in HEADER])
        if name != MISSING:
            files[f"{number % 2}/{name}"] = images.encode_png(ellipses(number).astype(np.uint16) * 15)
    write_csv(folder / TABLE, HEADER, rows)
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    write(parser.parse_args().folder)
