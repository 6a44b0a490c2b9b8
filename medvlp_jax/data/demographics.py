"""Age and sex of a patient at the time of an image, from tables or DICOM headers: whole years, no date of birth.

Ages from 90 on are one: 90 stands for "90 and more", as de-identification asks for (45 CFR 164.514(b)(2)(i)(C)).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from medvlp_jax.data.dicom import header_values

UNKNOWN_AGE = -1
OLDEST = 90
HIGHEST = 120
"""Years above which a number is no age: the RSNA headers hold 148 to 155."""
SEXES: dict[str, str] = {
    **dict.fromkeys(("F", "FEMALE", "W", "WOMAN"), "F"),
    **dict.fromkeys(("M", "MALE", "MAN"), "M"),
    **dict.fromkeys(("O", "OTHER"), "O"),
}
"""Spellings (upper case) -> F, M or O (other); anything else is unknown, ""."""
_AGE = re.compile(r"(\d{1,3})(?:\.\d+)?\s*(y|m|w|d)?[a-z.]*", re.IGNORECASE)
_UNITS = {"y": 1.0, "m": 12.0, "w": 52.18, "d": 365.25}


def parse_age(value: object) -> int:
    """An age -> whole years, 90 for 90 and more, -1 when it is none: `58`, `58.0`, `058Y`, `18M`, `35yrs`."""
    if isinstance(value, float) and not math.isfinite(value):
        return UNKNOWN_AGE
    match = _AGE.fullmatch(str("" if value is None else value).strip())
    if match is None:
        return UNKNOWN_AGE
    return capped(int(match[1]) / _UNITS[(match[2] or "y").lower()])


def capped(years: float) -> int:
    """Years -> whole years, 90 for 90 and more, -1 for what is no age."""
    return min(int(years), OLDEST) if 0 <= years <= HIGHEST else UNKNOWN_AGE


def parse_sex(value: object) -> str:
    """A word for the sex -> "F", "M", "O", or "" when it is none."""
    return SEXES.get(str("" if value is None else value).strip().upper(), "")


def person(age: object, sex: object) -> dict[str, Any]:
    """The fields `age` and `sex` of a work item from two cells of a table."""
    return {"age": parse_age(age), "sex": parse_sex(sex)}


def of_header(data: bytes) -> dict[str, Any]:
    """`age` and `sex` of a DICOM file, from PatientAge and PatientSex; nothing else of the patient is read."""
    values = header_values(data, ("PatientAge", "PatientSex"))
    return person(values.get("PatientAge"), values.get("PatientSex"))


def of_item(item: Mapping[str, Any], data: bytes, kind: str, keep: bool) -> dict[str, Any]:
    """`age` and `sex` of a record: those of the work item, else of the DICOM header; unknown unless `keep`.

    Args: data, kind: the image file and what `images.sniff` calls it.
    """
    found = {"age": item.get("age", UNKNOWN_AGE), "sex": item.get("sex", "")} if keep else person(None, None)
    if keep and kind == "dicom" and (found["age"] == UNKNOWN_AGE or not found["sex"]):
        header = of_header(data)
        found = {
            "age": header["age"] if found["age"] == UNKNOWN_AGE else found["age"],
            "sex": found["sex"] or header["sex"],
        }
    return found
