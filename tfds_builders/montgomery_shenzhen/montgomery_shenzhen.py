"""Montgomery and Shenzhen: tuberculosis labels, lung masks and short readings of two sites.

    python -m medvlp_jax.prepare montgomery_shenzhen --root /data/nlm-tb

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data import demographics, film_records, images, staging
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from tfds_builders import common

WHAT = "a folder with MontgomerySet/ and ChinaSet_AllFiles/, or any copy that keeps the file names"
NAME = re.compile(r"(MCUCXR|CHNCXR)_(\d{4})_([01])(_mask)?\.(png|jpe?g|txt)", re.IGNORECASE)
SITES = {"MCUCXR": "montgomery", "CHNCXR": "shenzhen"}
FINDING = "tuberculosis"
PERSON = re.compile(r"patient's (sex|age)|^(fe)?male\b|\b\d+\s*(yrs?|years?)\b", re.IGNORECASE)
"""A line about the patient and not about the image."""


@dataclasses.dataclass(eq=False)
class TbConfig(common.LocalConfig):
    """Settings of the two sets."""

    fractions: str = "0.7,0.1,0.2"
    site: str = "both"
    """"montgomery", "shenzhen", or "both". The sites can be told apart by pixels: report scores for each."""


CONFIG = TbConfig(name="default")


def plan(config: TbConfig) -> Plan:
    """One work item per image; masks and readings are found by name. Raises: ValueError when there is no image."""
    root = common.root_of(config, WHAT)
    if config.site not in (*SITES.values(), "both"):
        raise ValueError(f"site={config.site!r}; choices: {', '.join(SITES.values())}, both.")
    found = find_files(root)
    if not found:
        raise ValueError(
            f"No image named like MCUCXR_0001_0.png or CHNCXR_0001_0.png under {root}. It should be {WHAT}."
        )
    items, rejections = [], []
    for number, (key, places) in enumerate(sorted(found.items()), start=1):
        site, sick = SITES[key.split("_")[0]], key.endswith("_1")
        if config.site not in (site, "both"):
            rejections.append(Rejection("not_selected", row=number, item=key))
            continue
        reading, person = read_reading(root / places["reading"]) if "reading" in places else ("", {})
        masks = {part: str(root / places[part]) for part in ("left", "right", "both") if part in places}
        items.append(
            {
                "row": number,
                "image": places.get("image", key),
                "path": str(root / places.get("image", key)),
                "image_id": key,
                "study_id": key,
                "patient_id": key,
                "split": "",
                "view": "FRONTAL",
                **person,
                "labels": {"No Finding": ABSENT if sick else PRESENT},
                "own_labels": {FINDING: PRESENT if sick else ABSENT},
                "findings": reading,
                "report": reading,
                "masks": masks,
                "facts": [f"site {site}", f"lung masks {'+'.join(masks) or 'none'}", f"reading {bool(reading)}"],
            }
        )
    return common.finish_plan(items, rejections, config)


def find_files(root: Path) -> dict[str, dict[str, str]]:
    """MCUCXR_0001_0 -> {"image", "reading", "left", "right", "both": paths below the root} of what there is.

    A file is a mask when its folder is called so (leftMask, rightMask, mask, masks) or its name ends in _mask.
    """
    found: dict[str, dict[str, str]] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        part = os.path.relpath(folder, root).lower()
        for name in sorted(names):
            match = NAME.fullmatch(name)
            if match is None:
                continue
            key = "_".join((match[1].upper(), match[2], match[3]))
            kind = "image"
            if match[5].lower() == "txt":
                kind = "reading"
            elif match[4] or "mask" in part:
                kind = "left" if "leftmask" in part else "right" if "rightmask" in part else "both"
            path = os.path.relpath(os.path.join(folder, name), root)
            found.setdefault(key, {}).setdefault(kind, path)
    return found


def read_reading(path: Path) -> tuple[str, dict[str, Any]]:
    """(the reading without the lines that give sex and age, age and sex)."""
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines()]
    about = [line for line in lines if PERSON.search(line)]
    words = " ".join(about)
    sex = re.search(r"\b(male|female|m|f)\b", words, re.IGNORECASE)
    age = re.search(r"\d+\s*(?:yr|year|y|month|m)\w*", words, re.IGNORECASE)
    person = demographics.person(age and age[0], sex and sex[0])
    return " ".join(line for line in lines if line and line not in about), person


def make_examples(item: dict[str, Any], config: TbConfig) -> list[staging.Example]:
    """The record of one image with its lungs. Raises: Rejection, "bad_mask" for a mask that cannot be read."""
    try:
        planes = {part: images.read_image(path) for part, path in item["masks"].items()}
    except images.ImageError as error:
        raise Rejection("bad_mask", row=item["row"], item=item["image"], detail=error.reason) from None
    left, right = planes.get("left"), planes.get("right")
    if left is None and right is None and "both" in planes:
        left, right = sides(planes["both"])
    return film_records.make_record(item, config, lungs=(left, right))


def sides(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mask of both lungs -> (left, right lung of the patient): a piece whose centre is right of the middle of the
    picture belongs to the left lung."""
    count, pieces, _, centres = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
    middle = (centres[1:, 0].min() + centres[1:, 0].max()) / 2 if count > 1 else mask.shape[1] / 2
    middle = middle if count > 2 else mask.shape[1] / 2
    on_the_right = np.concatenate([[False], centres[1:, 0] > middle])
    left = on_the_right[pieces]
    return left, (pieces > 0) & ~left


describe = common.describe


class MontgomeryShenzhen(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare montgomery_shenzhen`."""

    ABOUT = "Montgomery and Shenzhen images with lung masks, tuberculosis labels and readings."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
