"""What two splits share: patients, studies, images, pixels, look-alike images, texts.

Ids are compared in one form for sets that share patients (`IdRules`): MIMIC-CXR and its derived sets by subject, study
and DICOM id with or without their `p` and `s`, ChestX-ray14 and the challenges made from it by the NIH file name,
others within their own data set. Nothing here returns a raw id; rows are places in a split.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.images import crop_border
from medvlp_jax.data.preprocess import decode_grey
from medvlp_jax.data.records import hashed_id

HASH_SIDE = 16
"""A perceptual hash has HASH_SIDE² = 256 bits."""
NEAR = 40
"""Bits that may differ between look-alike images: see docs/data.md, "Audit", for what that finds."""
LONG_TEXT = 20
"""Words from which on an equal text in training and evaluation is more than a common phrase."""

_EXTENSION = re.compile(r"\.(?:png|jpe?g|dcm|dicom)$", re.IGNORECASE)
_NIH_IMAGE, _NIH_PATIENT = re.compile(r"(\d{8})_\d{3}"), re.compile(r"nih-(\d{1,8})")
_MIMIC_IMAGE = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")
_MIMIC_PATIENT, _MIMIC_STUDY = re.compile(r"p?(1\d{7})"), re.compile(r"s?(5\d{7})")
_UNIQUE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[012](?:\.\d+){5,}")
_OF_MIMIC = {"mimic_cxr", "ms_cxr", "ms_cxr_t", "chest_imagenome"}


@dataclasses.dataclass(frozen=True)
class IdRules:
    """How raw ids become keys that are equal exactly when patient, study or image are.

    namespace: of ids that mean something in their data set only. aliases: image id -> image id of another set (without
    extension) that is the same image, e.g. RSNA's UUID -> "00000001_000" of ChestX-ray14.
    """

    namespace: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def keys(self, patient: str, study: str, image: str) -> tuple[str, str, str]:
        """(patient, study, image) keys."""
        whole = _EXTENSION.sub("", image.strip())
        stem = PurePosixPath(whole).name
        stem = self.aliases.get(stem, stem)
        own = [f"{self.namespace}:{value}" for value in (patient, study, whole)]
        keys = [
            value if _UNIQUE.fullmatch(value) else key for value, key in zip((patient, study, stem), own, strict=True)
        ]
        if match := _NIH_IMAGE.fullmatch(stem):
            return f"nih:{int(match.group(1))}", f"nih:{stem}", f"nih:{stem}"
        if match := _NIH_PATIENT.fullmatch(patient):
            return f"nih:{int(match.group(1))}", keys[1], keys[2]
        subject, number = _MIMIC_PATIENT.fullmatch(patient), _MIMIC_STUDY.fullmatch(study)
        if subject and (_MIMIC_IMAGE.fullmatch(stem) or self.namespace in _OF_MIMIC):
            return f"mimic:{subject.group(1)}", f"mimic:{number.group(1)}" if number else own[1], f"mimic:{stem}"
        return keys[0], keys[1], keys[2]


def read_aliases(path: str | os.PathLike[str]) -> dict[str, str]:
    """Image id -> image id of another set, from a CSV file with the columns `image_id` and `same_as`.

    Raises: FileNotFoundError; ValueError naming the columns that are missing.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"image_id", "same_as"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{os.fspath(path)} lacks the columns {', '.join(sorted(missing))}.")
        return {
            _EXTENSION.sub("", row["image_id"].strip()): _EXTENSION.sub("", row["same_as"].strip()) for row in reader
        }


def raw_ids(folder: Path) -> dict[int, tuple[str, str, str]]:
    """Hashed image id -> raw (patient, study, image), from `ids.csv`; {} without the file."""
    path = folder / "ids.csv"
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            int(row["image_id_hash"]): (row["patient_id"], row["study_id"], row["image_id"])
            for row in csv.DictReader(file)
        }


@dataclasses.dataclass
class Rows:
    """What is compared of a split, one entry a record that could be read.

    row: place in the split. patient, study, image: hashed keys of `IdRules`. raw_patient: hash of the raw id. text:
    hash of the study's text, 0 without. words: length of that. pixels: hash of the decoded image, 0 when it was not or
    cannot be decoded. look: perceptual hash, four uint64. unreadable, undecodable: places of records that cannot be
    read, and of those whose image cannot be decoded.
    """

    row: NDArray[np.int64]
    patient: NDArray[np.int64]
    study: NDArray[np.int64]
    image: NDArray[np.int64]
    raw_patient: NDArray[np.int64]
    text: NDArray[np.int64]
    words: NDArray[np.int64]
    pixels: NDArray[np.int64]
    look: NDArray[np.uint64]
    unreadable: list[int]
    undecodable: list[int]


def read_rows(
    records: Iterable[Mapping[str, Any] | None],
    raw: Mapping[int, tuple[str, str, str]],
    rules: IdRules,
    *,
    images: bool = True,
) -> Rows:
    """`Rows` of the records of a split; None stands for one that could not be read.

    Args: raw: from `raw_ids`; for images that are not in it the hashed ids count within the data set. images: decode
      and hash pixels.
    """
    columns: dict[str, list[int]] = {
        name: [] for name in ("row", "patient", "study", "image", "raw_patient", "text", "words", "pixels")
    }
    looks: list[NDArray[np.uint64]] = []
    unreadable, undecodable = [], []
    for number, record in enumerate(records):
        if record is None:
            unreadable.append(number)
            continue
        hashed = tuple(int(record[name]) for name in ("patient_id", "study_id", "image_id"))
        own = raw.get(hashed[2])
        keys = rules.keys(*own) if own else tuple(f"{rules.namespace}#{value}" for value in hashed)
        text = study_text(record)
        columns["row"].append(number)
        for name, key in zip(("patient", "study", "image"), keys, strict=True):
            columns[name].append(hashed_id(key))
        columns["raw_patient"].append(hashed[0])
        columns["text"].append(hashed_id(text) if text else 0)
        columns["words"].append(len(text.split()))
        pixels, look = 0, np.zeros(HASH_SIDE**2 // 64, np.uint64)
        if images:
            try:
                grey = decode_grey(record["image"])
                pixels, look = _digest(grey), perceptual_hash(grey)
            except ValueError:
                undecodable.append(number)
        columns["pixels"].append(pixels)
        looks.append(look)
    arrays = {name: np.asarray(values, np.int64) for name, values in columns.items()}
    look = np.stack(looks) if looks else np.zeros((0, HASH_SIDE**2 // 64), np.uint64)
    return Rows(**arrays, look=look, unreadable=unreadable, undecodable=undecodable)


def _digest(grey: NDArray[np.uint8]) -> int:
    digest = hashlib.blake2b(grey.tobytes(), digest_size=8, key=repr(grey.shape).encode()).digest()
    return int.from_bytes(digest, "big", signed=True)


def study_text(record: Mapping[str, Any]) -> str:
    """Findings and impression, or else the report, in one form: lower case, single blanks."""
    sections = f"{record['findings']} {record['impression']}"
    return " ".join((sections if sections.strip() else str(record["report"])).lower().split())


def perceptual_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """256 bits as four uint64 that change little with size, compression, brightness and contrast.

    The DCT hash of `imagehash` over the image without its dark border, histogram equalised.
    """
    import imagehash
    from PIL import Image

    inner = crop_border(grey)
    even = cv2.equalizeHist(np.ascontiguousarray(inner if min(inner.shape) >= 8 else grey))
    bits = imagehash.phash(Image.fromarray(even), hash_size=HASH_SIDE).hash.ravel()
    return np.packbits(bits).view(np.uint64)


class Shared(NamedTuple):
    """What a split shares with another: number of records of the first, and their rows with rows of the second."""

    count: int
    pairs: list[tuple[int, int]]


def shared(a: Rows, b: Rows, field: str, *, most: int = 100) -> tuple[int, Shared]:
    """Number of distinct values of a field that both have, and the records of `a` with them; 0 is no value."""
    left, right = getattr(a, field), getattr(b, field)
    values = np.intersect1d(left, right)
    values = values[values != 0]
    inside = np.flatnonzero(np.isin(left, values))
    first = {int(value): int(b.row[i]) for i, value in reversed(list(enumerate(right)))} if len(values) else {}
    return len(values), Shared(len(inside), [(int(a.row[i]), first[int(left[i])]) for i in inside[:most]])


def look_alikes(a: Rows, b: Rows, *, near: int = NEAR, most: int = 100) -> Shared:
    """Records of `a` with an image that differs from one of `b` in at most `near` bits but is another image id."""
    ours, theirs = np.flatnonzero(a.pixels != 0), np.flatnonzero(b.pixels != 0)
    words_4xM = np.ascontiguousarray(b.look[theirs].T)
    count, pairs = 0, []
    for i in ours:
        # Half of the bits first: they rule out nearly all.
        distance_M = np.bitwise_count(words_4xM[0] ^ a.look[i, 0]) + np.bitwise_count(words_4xM[1] ^ a.look[i, 1])
        close = np.flatnonzero(distance_M <= near)
        distance = np.bitwise_count(words_4xM[:, close] ^ a.look[i][:, None]).sum(axis=0, dtype=np.int64)
        distance[b.image[theirs[close]] == a.image[i]] = near + 1
        if len(distance) and distance.min() <= near:
            count += 1
            if len(pairs) < most:
                pairs.append((int(a.row[i]), int(b.row[theirs[close[np.argmin(distance)]]])))
    return Shared(count, pairs)


def repeated(rows: Rows, field: str) -> int:
    """Records of a split whose value of a field another record of it has too."""
    values = getattr(rows, field)
    counts = np.unique(values[values != 0], return_counts=True)[1]
    return int(counts[counts > 1].sum())
