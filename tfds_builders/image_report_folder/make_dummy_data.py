"""Draws the files of `dummy_data/`: random ellipses, invented reports, and one of every flaw that a real folder has.

python -m tfds_builders.image_report_folder.make_dummy_data
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np

from medvlp_jax.data import images

FOLDER = Path(__file__).parent / "dummy_data"
COLUMNS = (
    *("file", "pid", "sid", "iid", "fold", "view", "report_text", "FINDINGS", "IMPRESSION"),
    *("Pneumonia", "Effusion column", "Support Devices"),
)
FULL = "\n FINDINGS:\n Lungs are clear, heart is normal.\n No effusion.\n \n IMPRESSION:\n 1. Normal chest.\n"
COMBINED = "\n FINDINGS AND IMPRESSION:\n Small left effusion. ___ was informed.\n"
LAST = "\n HISTORY: fever\n \n Right basal opacity.\n"
ADDENDUM = f"\n FINDINGS: Mild edema.\n IMPRESSION: First reading.\n {'_' * 40}\n IMPRESSION: Late remark.\n"
BARE = "hazy opacity in the left lower lung"

# file, patient, study, image id, fold, view, report, findings, impression, three labels
ROWS: list[tuple[str, ...]] = [
    ("img/a.png", "p1", "s1", "1", "train", "PA", FULL, "", "", "0", "0.0", "1"),
    ("img/b.png", "p1", "s1", "2", "train", "LL", FULL, "", "", "0", "0.0", "1"),  # second view of the study
    ("img/deep16.png", "p1", "s2", "3", "train", "PA", BARE, "", "", "1.0", "", ""),  # no header; 16 bit
    ("img/mono1.dcm", "p2", "s3", "4", "train", "AP", COMBINED, "", "", "", "1", ""),  # MONOCHROME1, 12 bit
    ("img/d.jpg", "p2", "s4", "5", "train", "AP SUPINE", LAST, "", "", "-1", "", "0"),  # last paragraph only
    ("img/e.jpg", "p2", "s4", "6", "train", "??", FULL, "", "", " -1", "", ""),  # blank before the value
    ("img/f.png", "p3", "s5", "7", "validate", "PA", ADDENDUM, "", "", "", "", ""),
    ("img/g.png", "p3", "s6", "8", "validate", "PA", "", "Heart, lungs: normal.", "nan", "0", "0", "0"),
    ("img/truncated.jpg", "p3", "s7", "9", "validate", "PA", FULL, "", "", "", "", ""),
    ("img/missing.png", "p3", "s8", "10", "validate", "PA", FULL, "", "", "", "", ""),
    ("img/colour.png", "p4", "s9", "11", "test", "PA", FULL, "", "", "1", "1", "1"),
    ("img/h.png", "p4", "s9", "12", "test", "PA", "", "", " ", "", "", ""),  # empty report
    ("img/i.png", "p4", "s10", "13", "test", "PA", "NaN", "", "", "", "", ""),
    ("img/j.png", "p4", "s11", "11", "test", "PA", FULL, "", "", "", "", ""),  # an image id for the second time
    ("img/k.png", "p4", "s12", "15", "test", "PA", FULL, "", "", "maybe", "", ""),
    ("img/blank.png", "p4", "s12", "16", "test", "PA", FULL, "", "", "", "", ""),
    ("img/a.png", "p1", "s14", "17", "holdout", "PA", FULL, "", "", "", "", ""),  # a split of that name does not exist
    ("img/empty.png", "p2", "s15", "18", "train", "PA", FULL, "", "", "", "", ""),
]


def ellipses(seed: int, height: int = 96, width: int = 80) -> np.ndarray:
    """Grey ellipses on a gradient, uint8 (height, width): a chest in name only."""
    rng = np.random.default_rng(seed)
    canvas = np.linspace(30, 90, height)[:, None] * np.ones((1, width))
    for _ in range(6):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(5, width // 3)), int(rng.integers(5, height // 3)))
        cv2.ellipse(canvas, centre, axes, float(rng.integers(180)), 0, 360, float(rng.integers(60, 230)), -1)
    return cv2.GaussianBlur(canvas, (5, 5), 0).astype(np.uint8)


def dicom(pixels: np.ndarray, *, inverted: bool = False, bits: int = 12, **tags: str) -> bytes:
    """An uncompressed DICOM file of grey pixels (H, W) or frames (F, H, W); `inverted` stores it as
    MONOCHROME1. Args: tags: more header values by keyword, e.g. ViewPosition="PA"."""
    import io

    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientID, header.Modality = "DUMMY", "DX"
    for name, value in tags.items():
        setattr(header, name, value)
    header.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    header.SamplesPerPixel, header.PixelRepresentation = 1, 0
    header.Rows, header.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        header.NumberOfFrames = pixels.shape[0]
    dtype = np.uint8 if bits == 8 else np.uint16
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * dtype().itemsize, bits, bits - 1
    header.PixelData = ((2**bits - 1) - pixels if inverted else pixels).astype(dtype).tobytes()
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(folder: Path) -> None:
    """Writes `manifest.csv` and `img/` under `folder`."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    files = {f"{letter}.png": images.encode_png(ellipses(ord(letter))) for letter in "abfghijk"}
    files["deep16.png"] = images.encode_png(ellipses(1).astype(np.uint16) * 200 + 4000)
    files["mono1.dcm"] = dicom(ellipses(2).astype(np.uint16) * 16, inverted=True)
    files["d.jpg"] = images.encode_jpeg(ellipses(3, 80, 120))
    files["e.jpg"] = images.encode_jpeg(ellipses(4))
    files["truncated.jpg"] = images.encode_jpeg(ellipses(5))[:-600]
    files["colour.png"] = cv2.imencode(".png", cv2.applyColorMap(ellipses(6), cv2.COLORMAP_BONE))[1].tobytes()
    files["blank.png"] = images.encode_png(np.full((96, 80), 7, np.uint8))
    files["empty.png"] = b""
    for name, data in files.items():
        (folder / "img" / name).write_bytes(data)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(ROWS)
        file.write("img/b.png,p1,s16,19,train\n")  # a row that stops early


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    write(parser.parse_args().folder)
