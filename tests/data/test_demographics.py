"""Age and sex from cells and DICOM headers."""

import collections
import math

import numpy as np
import pytest

from medvlp_jax.data import demographics
from medvlp_jax.data.tables import Table
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import public_table


@pytest.mark.parametrize(
    ("value", "age"),
    [
        *((58, 58), ("58", 58), ("58.0", 58), (58.9, 58), ("058Y", 58), ("35yrs", 35), ("35 years", 35), ("0", 0)),
        *(("018M", 1), ("011M", 0), ("030W", 0), ("400D", 1), ("89", 89), ("90", 90), ("091Y", 90), ("120", 90)),
        *(("148", -1), ("-3", -1), ("", -1), (None, -1), (math.nan, -1), ("19010203", -1), ("old", -1), ("1e3", -1)),
    ],
)
def test_ages(value, age):
    assert demographics.parse_age(value) == age


@pytest.mark.parametrize(("value", "sex"), [("Female", "F"), (" m ", "M"), ("O", "O"), ("Unknown", ""), (None, "")])
def test_sexes(value, sex):
    assert demographics.parse_sex(value) == sex


def test_what_the_table_lacks_comes_from_the_header():
    data = dicom(ellipses(1).astype(np.uint16), PatientAge="093Y", PatientSex="F", PatientBirthDate="19010203")
    assert demographics.of_header(data) == {"age": 90, "sex": "F"}
    assert demographics.of_item({}, data, "dicom", True) == {"age": 90, "sex": "F"}
    assert demographics.of_item({"age": 40, "sex": ""}, data, "dicom", True) == {"age": 40, "sex": "F"}
    assert demographics.of_item({"age": 40, "sex": "M"}, data, "dicom", False) == {"age": -1, "sex": ""}
    assert demographics.of_item({}, b"\x89PNG", "png", True) == {"age": -1, "sex": ""}
    assert demographics.of_header(dicom(ellipses(1).astype(np.uint16))) == {"age": -1, "sex": ""}


def test_a_damaged_tag_of_the_header_is_no_value():
    data = dicom(ellipses(1).astype(np.uint16), PatientAge="040Y", PatientSex="F")
    tag = b"\x10\x00\x40\x00"  # PatientSex, little endian
    assert tag + b"CS" in data
    assert demographics.of_header(data.replace(tag + b"CS", tag + b"CI")) == {"age": 40, "sex": ""}  # no such type
    assert demographics.of_header(data[:200]) == {"age": -1, "sex": ""}


@pytest.mark.parametrize(
    ("table", "age", "sex", "sexes", "ninety", "unknown"),
    [
        ("Data_Entry_2017_v2020.csv.gz", "Patient Age", "Patient Gender", {"F": 48_780, "M": 63_340}, 64, 0),
        ("chexpert_train.csv.gz", "Age", "Sex", {"F": 90_777, "M": 132_636, "": 1}, 7_579, 0),
        (
            *("kaggle_stage_2_train_images_dicom_headers.csv.gz", "PatientAge", "PatientSex"),
            *({"F": 11_518, "M": 15_166}, 18, 5),
        ),
    ],
)
def test_real_tables(table, age, sex, sexes, ninety, unknown):
    """Every age and sex of the published tables is understood; five of the RSNA headers are no age (148 to 155)."""
    people = [demographics.person(row[age], row[sex]) for _, row in Table(public_table(table), (age, sex))]
    assert collections.Counter(person["sex"] for person in people) == sexes
    ages = collections.Counter(person["age"] for person in people)
    assert (ages[90], ages[-1]) == (ninety, unknown)
