"""Chest ImaGenome (silver): 29 regions, phrases and findings of scene graphs, on MIMIC-CXR images.

    python -m medvlp_jax.prepare chest_imagenome --root /data/chest-imagenome --images_root /data/mimic-cxr-jpg

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import archives, film_records, staging
from medvlp_jax.data.label_translations import SAME, WIDER, Row, same, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional
from tfds_builders import common
from tfds_builders.mimic_cxr.mimic_cxr import EXTENSIONS, image_finder, mimic_images

WHAT = "the Chest ImaGenome folder of PhysioNet (https://physionet.org/content/chest-imagenome/), with silver_dataset/"
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
KINDS = ("anatomicalfinding", "disease", "tubesandlines", "device")
"""Kinds of attributes that become labels; others (texture, severity, nlp, ...) describe them."""
LABELS = (
    *same(
        ("atelectasis", "consolidation", "lung lesion", "lung opacity", "pleural effusion", "pneumonia", "pneumothorax")
    ),
    Row(("enlarged cardiac silhouette",), SAME, "Cardiomegaly", "the labeler reads the cardiac silhouette so"),
    Row(("pulmonary edema/hazy opacity",), WIDER, "Edema", "a hazy opacity need not be edema"),
)


@dataclasses.dataclass(eq=False)
class ImagenomeConfig(common.LocalConfig):
    """Settings of Chest ImaGenome."""

    images_root: str = ""
    """Folder of the MIMIC-CXR-JPG images in their original size: boxes are in its pixels."""
    keep_gold: bool = False
    """Keep the images of images_to_avoid.csv, which belong to the gold set."""


CONFIG = ImagenomeConfig(name="default")


def plan(config: ImagenomeConfig) -> Plan:
    """One work item per row of the split tables; graphs are read later. Raises: ValueError for what is not there."""
    root = common.root_of(config, WHAT)
    images_root = mimic_images(config.images_root)
    silver = root / "silver_dataset" if (root / "silver_dataset").is_dir() else root
    folder = find_optional(silver, ("scene_graph/*_SceneGraph.json",))
    graphs = folder.parent if folder else find_file(silver, ("scene_graph.zip",), "scene graphs")
    if not graphs.is_dir():
        _archive(graphs)  # a damaged one is told before the build
    avoid: set[str] = set()
    path = find_optional(silver, ("splits/images_to_avoid.csv", "images_to_avoid.csv"))
    if path is not None and not config.keep_gold:
        avoid = {row["dicom_id"].strip() for _, row in Table(path, ("dicom_id",))}
    find_image = image_finder(images_root, EXTENSIONS["auto"])
    items, rejections, tables = Packed(), [], []
    for part, split in SPLITS.items():
        path = find_file(silver, (f"splits/{part}.csv",), f"{part} table")
        table = Table(path, ("subject_id", "study_id", "dicom_id"), ("ViewPosition",))
        tables.append(table)
        for number, row in table:
            dicom, subject, study = (row[name].strip() for name in ("dicom_id", "subject_id", "study_id"))
            tree = f"p{subject[:2]}/p{subject}/s{study}"
            if dicom in avoid:
                rejections.append(Rejection("gold_image", row=number, item=f"{tree}/{dicom}"))
                continue
            items.append(
                {
                    "row": number,
                    "image": f"{tree}/{dicom}",
                    "tree": tree,
                    "image_id": dicom,
                    "study_id": study,
                    "patient_id": subject,
                    "split": split,
                    "view": common.view_name(row.get("ViewPosition", "")) or "FRONTAL",
                    "graphs": str(graphs),
                }
            )
    rule = "official silver splits"
    return common.finish_plan(items, rejections, config, tables=tables, split_rule=rule, locate=find_image)


def make_examples(item: dict[str, Any], config: ImagenomeConfig) -> list[staging.Example]:
    """Reads the scene graph and the image. Raises: Rejection."""
    try:
        graph = json.loads(_graph(Path(item["graphs"]), f"{item['image_id']}_SceneGraph.json"))
    except KeyError:
        raise Rejection("missing_scene_graph", row=item["row"], item=item["image"]) from None
    except ValueError:
        raise Rejection("bad_scene_graph", row=item["row"], item=item["image"]) from None
    try:
        own = attribute_labels(graph)
        regions, phrases = region_boxes(graph)
    except (AttributeError, KeyError, TypeError, ValueError):  # JSON of another shape
        raise Rejection("bad_scene_graph", row=item["row"], item=item["image"]) from None

    def inside(image: np.ndarray) -> tuple[()]:
        """No masks; but boxes that leave the image are those of another size."""
        height, width = image.shape
        bottom, right = (max((box["box"][edge] for box in regions), default=0) for edge in (2, 3))
        if bottom > 1.01 * height + 1 or right > 1.01 * width + 1:
            detail = f"image {width} x {height}, boxes to {right:g} x {bottom:g}: give images of the original size"
            raise Rejection("boxes_outside_image", row=item["row"], item=item["image"], detail=detail)
        return ()

    text = {"sentences": phrases, "findings": " ".join(phrases)}
    labels = {"labels": translate(own, LABELS), "own_labels": own, "pixel_boxes": regions}
    return film_records.make_record({**item, **text, **labels}, config, masks=inside)


def attribute_labels(graph: dict[str, Any]) -> dict[str, int]:
    """Finding -> present when a region has it, else absent when one is said not to have it."""
    own: dict[str, int] = {}
    for region in graph.get("attributes", ()):
        for attribute in _flat(region.get("attributes", ())):
            kind, _, rest = attribute.partition("|")
            said, _, name = rest.partition("|")
            if kind in KINDS and said in ("yes", "no"):
                own[name] = max(own.get(name, ABSENT), PRESENT if said == "yes" else ABSENT)
    return dict(sorted(own.items()))


def _flat(value: Any) -> Iterator[str]:
    """Attributes stand in one list per phrase, or in one list."""
    for part in value:
        if isinstance(part, str):
            yield part
        else:
            yield from _flat(part)


def region_boxes(graph: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """(boxes, phrases): a box of each region and of each of its phrases, `sentence` being the place of the phrase.

    Boxes without an area are left out.
    """
    said: dict[str, list[str]] = {}
    phrases: dict[str, int] = {}
    for region in graph.get("attributes", ()):
        for phrase in _flat(region.get("phrases", ())):
            phrase = " ".join(phrase.split())
            if phrase and phrase not in said.setdefault(region["bbox_name"], []):
                said[region["bbox_name"]].append(phrase)
                phrases.setdefault(phrase, len(phrases))
    boxes = []
    for region in graph.get("objects", ()):
        box = [float(region[f"original_{edge}"]) for edge in ("y1", "x1", "y2", "x2")]
        if box[0] < box[2] and box[1] < box[3]:
            name = region["bbox_name"]
            places = [phrases[phrase] for phrase in said.get(name, ())] or [-1]
            boxes += [{"box": box, "finding": name, "sentence": place} for place in places]
    return boxes, list(phrases)


_LOCK = threading.Lock()


def _graph(place: Path, name: str) -> bytes:
    """Raises: KeyError when there is no such graph."""
    if place.is_dir():
        try:
            return (place / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None
    archive, folder = _archive(place)
    with _LOCK:
        return archives.read_member(archive, folder + name)


@functools.lru_cache(maxsize=2)  # opened once by each worker process
def _archive(path: Path) -> tuple[zipfile.ZipFile, str]:
    archive = archives.open_zip(path)
    first = next((name for name in archive.namelist() if name.endswith("_SceneGraph.json")), "")
    return archive, first.rpartition("/")[0] + "/" if "/" in first else ""


describe = common.describe


class ChestImagenome(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare chest_imagenome`."""

    ABOUT = "Chest ImaGenome regions, phrases and findings on MIMIC-CXR images."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
