"""Montgomery and Shenzhen on drawn files and, where they are at hand, on real copies."""

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.montgomery_shenzhen import montgomery_shenzhen
from tfds_builders.testing import local_data, make, write_files

LUNGS = np.zeros((96, 96), np.uint8)
LUNGS[20:80, 10:40] = 255  # the patient's right lung
LUNGS[20:80, 56:86] = 255


def lungs_of(example):
    return cv2.imdecode(np.frombuffer(example["lung_mask"], np.uint8), -1)


def test_every_image(tmp_path):
    right, left = LUNGS.copy(), LUNGS.copy()
    right[:, 48:] = left[:, :48] = 0
    picture = images.encode_png(ellipses(1, 96, 96))
    files = {
        "MontgomerySet/CXR_png/MCUCXR_0001_0.png": picture,
        "MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png": images.encode_png(left),
        "MontgomerySet/ManualMask/rightMask/MCUCXR_0001_0.png": images.encode_png(right),
        "MontgomerySet/ClinicalReadings/MCUCXR_0001_0.txt": "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n",
        "ChinaSet_AllFiles/CXR_png/CHNCXR_0327_1.png": picture,
        "ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0327_1.txt": "male 35yrs\r\nright PTB with effusion\n",
        "mask/CHNCXR_0327_1_mask.png": images.encode_png(LUNGS),
        "ChinaSet_AllFiles/CXR_png/CHNCXR_0328_1.png": picture,
        "mask/CHNCXR_0328_1_mask.png": b"no picture at all",
        "mask/CHNCXR_0329_1_mask.png": images.encode_png(LUNGS),  # a mask without its image
        "CXR_png/Thumbs.db": b"",
    }
    write_files(tmp_path, files)
    made = make(montgomery_shenzhen, root=str(tmp_path), size=0, fractions="1,0,0")
    assert (made.counts, made.reasons) == ({"train": 2}, {"bad_mask": 1, "missing_file": 1})
    expected = np.where(LUNGS > 0, 2, 0)
    expected[:, 48:] //= 2  # left lung 1, right lung 2
    readings = {"MCUCXR_0001_0": ("normal", 27, "F", 0), "CHNCXR_0327_1": ("right PTB with effusion", 35, "M", 1)}
    for key, (reading, age, sex, sick) in readings.items():
        record = made.examples[key]
        assert (record["age"], record["sex"]) == (age, sex)
        np.testing.assert_array_equal(lungs_of(record), expected)
        assert (record["findings"], made.own(key)) == (reading, {"tuberculosis": sick})
        assert labels.label_states(record["labels"]) == {"No Finding": 1 - sick}
    made = make(montgomery_shenzhen, root=str(tmp_path), size=32, site="montgomery", fractions="1,0,0")
    assert made.reasons == {"not_selected": 3}
    with pytest.raises(ValueError, match="No image named like MCUCXR_0001_0"):
        make(montgomery_shenzhen, root=str(tmp_path / "CXR_png"))


def test_real_copies():
    """800 real images, 704 of them with masks: both lungs found, left and right of each other."""
    root = local_data("lungseg800")
    found = montgomery_shenzhen.find_files(root)
    assert len(found) == sum("image" in places for places in found.values()) == 800
    assert sum("both" in places for places in found.values()) == 704
    assert sum(key.startswith("MCU") for key in found) == 138
    made = make(montgomery_shenzhen, root=str(root), size=64, limit=12, splits="train")
    for record in made.examples.values():
        if record["lung_mask"]:
            plane = lungs_of(record)
            left, right = (np.argwhere(plane == value)[:, 1].mean() for value in (1, 2))
            assert left > right + 10
            assert min((plane == value).mean() for value in (1, 2)) > 0.03
