"""COVID Rural: masks of opacity on radiographs of patients with COVID-19.

    python -m medvlp_jax.prepare covid_rural --root /data/opacity_segmentation_covid_chest_X_ray/covid_rural_annot

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import film_records, images, staging
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from tfds_builders import common

WHAT = "the folder covid_rural_annot, with jpgs/ and pngs_masks/"
FINDING = "Lung Opacity"


@dataclasses.dataclass(eq=False)
class RuralConfig(common.LocalConfig):
    """Settings of COVID Rural."""

    fractions: str = "0.6,0.2,0.2"
    """Shares of patients for train, validation and test."""


CONFIG = RuralConfig(name="default")


def plan(config: RuralConfig) -> Plan:
    """One work item per image that has a mask. Raises: ValueError when there is no image."""
    root = common.root_of(config, WHAT)
    paths = sorted((root / "jpgs").glob("*.jpg"))
    if not paths:
        raise ValueError(f"No image jpgs/*.jpg under {root}. It should be {WHAT}.")
    items, rejections = [], []
    for number, path in enumerate(paths, start=1):
        mask = root / "pngs_masks" / f"{path.stem}.png"
        if not mask.is_file():
            rejections.append(Rejection("missing_mask", row=number, item=path.name))
            continue
        items.append(
            {
                "row": number,
                "image": f"jpgs/{path.name}",
                "path": str(path),
                "image_id": path.stem,
                "study_id": path.stem,
                "patient_id": path.stem.split("_")[0],  # COVID-19-AR-<number>_...
                "split": "",
                "view": "FRONTAL",
                "mask": str(mask),
            }
        )
    return common.finish_plan(items, rejections, config)


def make_examples(item: dict[str, Any], config: RuralConfig) -> list[staging.Example]:
    """The record of one image with its mask. Raises: Rejection, "bad_mask" for one that cannot be read."""
    mask = read_mask(Path(item["mask"]), item)
    labels = {FINDING: PRESENT if mask.any() else ABSENT}
    return film_records.make_record({**item, "labels": labels}, config, masks=[(FINDING, mask)])


def read_mask(path: Path, item: dict[str, Any]) -> np.ndarray:
    """A mask; one of a single value is empty. Raises: Rejection."""
    try:
        return images.read_image(path)
    except images.ImageError as error:
        if error.reason == "blank_image":
            return np.zeros((1, 1), np.uint8)
        raise Rejection("bad_mask", row=item["row"], item=item["image"], detail=error.reason) from None


describe = common.describe


class CovidRural(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare covid_rural`."""

    ABOUT = "COVID Rural images with opacity masks."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
