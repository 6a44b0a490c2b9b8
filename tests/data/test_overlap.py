"""Ids in one form, equal and look-alike images, shared texts. All ids and texts are invented."""

import csv

import cv2
import numpy as np
import pytest
from tiny import blotches

from medvlp_jax.data import images, overlap
from medvlp_jax.data.overlap import IdRules
from medvlp_jax.data.records import hashed_id

DICOM = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
UUID = "0004cfab-14fd-4e49-80ba-63a80b6bddd6"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        # (namespace, patient, study, image) of two sets -> which of patient, study, image are the same
        (("nih", "61", "61", "00000061_012.png"), ("rsna", "p", "s", "images/00000061_012.jpg"), (1, 1, 1)),
        (("nih", "61", "61", "00000061_012.png"), ("rsna", "p", "s", "00000061_015"), (1, 0, 0)),
        (("mimic_cxr", "10000032", "50414267", DICOM), ("ms_cxr", "p10000032", "s50414267", f"{DICOM}.jpg"), (1, 1, 1)),
        (("mimic_cxr", "10000032", "50414267", DICOM), ("ours", "p10000032", "s50414268", "x.jpg"), (0, 0, 0)),
        (("rsna", UUID, UUID, f"{UUID}.dcm"), ("other", UUID, UUID, UUID), (1, 1, 1)),
        (("chestxray14", "nih-00000061", "x", "00000061_012"), ("rsna", "nih-00000061", UUID, UUID), (1, 0, 0)),
        (
            ("chexpert", "c/patient1", "s", "c/patient1/study1/view1"),
            ("chexpert", "c/patient2", "t", "c/patient2/study1/view1"),
            (0, 0, 0),
        ),
        (("a", "1", "1", "1.png"), ("b", "1", "1", "1.png"), (0, 0, 0)),
        (("a", "1", "1", "1.png"), ("a", "1", "1", "1.jpg"), (1, 1, 1)),
        (("cxr_phantom", "p16000000", "s68000000", "s68000000-0"), ("mimic_cxr", "16000000", "x", DICOM), (0, 0, 0)),
    ],
)
def test_keys(a, b, same):
    left, right = (IdRules(namespace).keys(*ids) for namespace, *ids in (a, b))
    assert tuple(int(x == y) for x, y in zip(left, right, strict=True)) == same


def test_aliases_join_sets(tmp_path):
    path = tmp_path / "same.csv"
    path.write_text(f"image_id,same_as,note\n{UUID}.dcm,00000061_012.png,x\n")
    aliases = overlap.read_aliases(path)
    rsna = IdRules("rsna", aliases).keys(UUID, UUID, UUID)
    assert rsna == IdRules("nih").keys("61", "61", "00000061_012.png")
    path.write_text("image_id,other\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns same_as"):
        overlap.read_aliases(path)


def bits(a, b):
    return int(np.bitwise_count(overlap.perceptual_hash(a) ^ overlap.perceptual_hash(b)).sum())


def test_look_alikes_survive_what_is_done_to_images():
    original = blotches(0)
    assert bits(original, original) == 0
    changed = {
        "jpeg": cv2.imdecode(cv2.imencode(".jpg", original, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0),
        "smaller": cv2.resize(original, (50, 60), interpolation=cv2.INTER_AREA),
        "squashed": cv2.resize(original, (90, 90), interpolation=cv2.INTER_AREA),
        "darker": (255 * (original / 255.0) ** 1.6).astype(np.uint8),
        "equalised": cv2.equalizeHist(original),
        "padded": cv2.copyMakeBorder(original, 10, 10, 20, 20, cv2.BORDER_CONSTANT, value=0),
    }
    assert {name: bits(original, image) <= overlap.NEAR for name, image in changed.items()} == dict.fromkeys(
        changed, True
    )
    assert min(bits(original, blotches(seed)) for seed in range(1, 30)) > overlap.NEAR


def test_an_empty_image_has_a_hash():
    assert overlap.perceptual_hash(np.zeros((5, 7), np.uint8)).shape == (4,)


def record(number, image=None, text="", patient=None):
    grey = blotches(number) if image is None else image
    return {
        "image": grey if isinstance(grey, bytes) else images.encode_png(grey),
        "findings": text,
        "impression": "",
        "report": "",
        "patient_id": hashed_id(f"p{number if patient is None else patient}"),
        "study_id": hashed_id(f"s{number}"),
        "image_id": hashed_id(f"i{number}"),
    }


def rows(records, namespace="ours", **more):
    return overlap.read_rows(records, {}, IdRules(namespace), **more)


def test_shared_values_and_their_rows():
    a = rows([record(1, text="Left  EFFUSION"), record(2), None, record(3, patient=1)])
    b = rows([record(9), record(1, text="left effusion")])
    assert a.unreadable == [2]
    assert overlap.shared(a, b, "patient") == (1, (2, [(0, 1), (3, 1)]))
    assert overlap.shared(a, b, "study") == (1, (1, [(0, 1)]))
    assert overlap.shared(a, b, "text") == (1, (1, [(0, 1)]))
    assert overlap.shared(a, b, "pixels") == (1, (1, [(0, 1)]))
    assert overlap.shared(a, rows([record(1)], "theirs"), "patient") == (0, (0, []))
    assert overlap.shared(a, rows([record(1)], "theirs"), "raw_patient")[0] == 1


def test_missing_texts_are_not_equal():
    assert overlap.shared(rows([record(1)]), rows([record(2)]), "text") == (0, (0, []))


def test_look_alikes_are_other_images():
    softer = cv2.GaussianBlur(blotches(1), (5, 5), 0)
    a, b = rows([record(1), record(5)]), rows([record(1), record(7, softer), record(8)])
    assert overlap.look_alikes(a, b) == (1, [(0, 1)])
    assert overlap.look_alikes(a, rows([record(1)])) == (0, [])
    assert overlap.look_alikes(a, rows([])) == (0, [])


def test_damaged_images_and_no_images():
    a = rows([record(1, b"no image"), record(2), record(2)])
    assert a.undecodable == [0]
    assert overlap.repeated(a, "pixels") == 2
    without = rows([record(1, b"no image")], images=False)
    assert without.undecodable == []
    assert overlap.look_alikes(without, without) == (0, [])


def test_raw_ids_are_read_from_the_side_table(tmp_path):
    assert overlap.raw_ids(tmp_path) == {}
    with open(tmp_path / "ids.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "patient_id", "study_id", "image_id", "image_id_hash", "more"])
        writer.writerow(["train", "61", "61", "00000061_012.png", hashed_id("00000061_012.png"), "x"])
    raw = overlap.raw_ids(tmp_path)
    a = overlap.read_rows([record(0) | {"image_id": hashed_id("00000061_012.png")}], raw, IdRules("nih"))
    assert a.patient.tolist() == [hashed_id("nih:61")]
