"""Letters near the border are painted over; lungs and everything else of the picture stay as they are."""

import io

import cv2
import numpy as np
import pydicom
import pytest

from benchmarks.burned_in import marker_gone, with_text
from medvlp_jax.data import burned_in, film_records, images
from medvlp_jax.data.records import SOURCE
from tfds_builders.cxr_phantom.picture import render
from tfds_builders.cxr_phantom.study import patient_body, sample_study
from tfds_builders.image_report_folder.make_dummy_data import dicom
from tfds_builders.testing import settings


def phantom(patient, size=256):
    study = sample_study(0, patient, 0)
    pose = study.pose(0, 0)
    return render(patient_body(0, patient), pose, study.findings, size), pose


@pytest.mark.parametrize("size", [256, 512])
def test_markers_go_and_lungs_stay(size):
    """At least six in ten letters of phantoms, and no pixel of a lung. docs/data.md has the shares of 500."""
    gone = 0
    for patient in range(20):
        picture, pose = phantom(patient, size)
        out, regions = burned_in.blank(picture.film)
        lungs = picture.lungs > 0
        np.testing.assert_array_equal(out[lungs], picture.film[lungs])
        gone += marker_gone(picture.film, out, pose)
        outside = np.ones(out.shape, bool)
        for region in regions:
            outside[region.top : region.bottom, region.left : region.right] = False
        np.testing.assert_array_equal(out[outside], picture.film[outside])
    assert gone >= 12


def test_lines_of_text():
    """White text at the corners of phantoms: most of its pixels."""
    text, gone = 0, 0
    for patient in range(12):
        film, where = with_text(phantom(patient, 512)[0].film, np.random.default_rng(patient))
        out, _ = burned_in.blank(film)
        text, gone = text + where.sum(), gone + (where & (out != film)).sum()
    assert gone / text > 0.5


@pytest.mark.parametrize("inside", [True, False])
def test_place_and_depth(inside):
    """A letter in a corner, and the same letter in the middle of the picture; 8 and 16 bits, large and small."""
    for dtype, side in ((np.uint8, 400), (np.uint16, 400), (np.uint8, 2600)):
        top = np.iinfo(dtype).max
        picture = np.full((side, side), 60, np.uint8)
        place = (side // 2, side // 2) if inside else (int(0.05 * side), int(0.1 * side))
        scale = side / 800
        cv2.putText(picture, "R", place, cv2.FONT_HERSHEY_SIMPLEX, scale, 250, max(1, int(3 * scale)), cv2.LINE_AA)
        film = picture.astype(dtype) * dtype(top // 255)
        before = film.copy()
        out, regions = burned_in.blank(film)
        np.testing.assert_array_equal(film, before)
        if inside:
            assert (regions, out is film) == ([], True)
        else:
            assert len(regions) == 1
            assert out.max() == 60 * (top // 255)


@pytest.mark.parametrize("shape", [(1, 500), (3, 3), (3000, 9), (64, 64)], ids=str)
def test_shapes_that_no_film_has(shape):
    film = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    out, _ = burned_in.blank(film)
    assert out.shape == shape


def test_what_is_no_letter():
    """A disc (electrode), a wire, a soft bright band, a box cut off by the border."""
    film = np.full((400, 400), 60, np.uint8)
    cv2.circle(film, (40, 40), 9, 250, -1, cv2.LINE_AA)
    cv2.line(film, (20, 380), (200, 390), 250, 2, cv2.LINE_AA)
    film[:20, 380:] = 250
    soft = np.zeros_like(film)
    cv2.ellipse(soft, (360, 370), (12, 5), 30, 0, 360, 180, -1)
    film = cv2.max(film, cv2.GaussianBlur(soft, (0, 0), 6))
    assert burned_in.letters(film) == []


def test_header_facts_are_counted_only_when_asked(tmp_path):
    film = phantom(3)[0].film.astype(np.uint16) * 16
    header = pydicom.dcmread(io.BytesIO(dicom(film, BurnedInAnnotation="YES")))
    header.add_new(0x60000010, "US", 8)
    buffer = io.BytesIO()
    header.save_as(buffer)
    (tmp_path / "a.dcm").write_bytes(buffer.getvalue())
    item = {"row": 1, "image": "a.dcm", "path": str(tmp_path / "a.dcm"), "view": "PA", "split": "train"}
    item |= dict.fromkeys(("image_id", "study_id", "patient_id"), "x")
    ask = {"size": 0, "film_check": False}
    ((_, plain),) = film_records.make_record(item, settings(**ask))
    ((_, clean),) = film_records.make_record(item, settings(**ask, blank_burned_in=True))
    assert plain[SOURCE]["facts"] == []
    facts = ["burnt-in letters blanked", "BurnedInAnnotation YES", "DICOM overlay left out"]
    assert clean[SOURCE]["facts"] == facts
    assert (images.read_image(plain["image"]) != images.read_image(clean["image"])).any()
    assert burned_in.header_facts(dicom(film)) == ["BurnedInAnnotation not said"]
    assert burned_in.header_facts(b"no DICOM file") in ([], ["BurnedInAnnotation not said"])
