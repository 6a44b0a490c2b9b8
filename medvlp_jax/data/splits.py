"""Which split a patient belongs to: drawn by a hash of its id, and never two; and the 5x200 retrieval set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from medvlp_jax.data.labels import CHEXPERT_COMPETITION, PRESENT
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Rejection

SPLIT_NAMES: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Spellings of a split (lower case) -> its name."""
CONFLICTS = ("error", "drop", "first")
"""What to do with a patient in two splits."""
FIVE_BY_200 = "test_5x200"
"""Name of the split of the 5x200 images."""
ZERO_IN_5X200 = (
    *("Enlarged Cardiomediastinum", "Lung Lesion", "Lung Opacity", "Pneumonia", "Pneumothorax"),
    *("Pleural Other", "Fracture", "Support Devices"),
)


def draw(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the key alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def thresholds(fractions: str) -> list[tuple[float, str]]:
    """ "0.8,0.1,0.1" -> [(0.8, "train"), (0.9, "validation"), (inf, "test")]. Raises: ValueError."""
    try:
        shares = [float(part) for part in fractions.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"fractions={fractions!r} must be three shares of train, validation, test that sum to 1.")
    return [(shares[0], "train"), (shares[0] + shares[1], "validation"), (float("inf"), "test")]


def drawn_split(patient_id: str, seed: int, bounds: list[tuple[float, str]]) -> str:
    """The split of a patient; it stays when others come or go. Args: bounds: from `thresholds`."""
    number = draw(seed, patient_id)
    return next(split for threshold, split in bounds if number < threshold)


def splits_of_patients(items: Iterable[dict[str, Any]], policy: str) -> dict[str, str]:
    """Patient -> the one split that its items may be in; "" for none.

    Args: policy: "error", "drop" all items of a patient in two splits, or keep those of the "first" it occurs in.
    Raises: ValueError with the policy "error" and such a patient.
    """
    first: dict[str, str] = {}
    astray: set[str] = set()
    rows: list[int] = []
    for item in items:
        if first.setdefault(item["patient_id"], item["split"]) != item["split"]:
            astray.add(item["patient_id"])
            rows += [item["row"]] if len(rows) < 6 else []
    if astray and policy == "error":
        raise ValueError(
            f"{len(astray)} patients are in more than one split (rows {', '.join(map(str, rows[:5]))}"
            f"{', ...' if len(rows) > 5 else ''}): scores would be too good. Correct the split column, or add "
            "--split_conflict first (keep a patient's rows of its first split) or --split_conflict drop."
        )
    return first | dict.fromkeys(astray, "") if policy == "drop" else first


def take_five_by_200(items: Packed, per_class: int, seed: int) -> tuple[Packed, list[Rejection]]:
    """Gives the images of `five_by_200` their split; all others of their patients leave train. Args: items: emptied."""
    patient_of_row = {item["row"]: item["patient_id"] for item in five_by_200(items, per_class, seed)}
    patients = set(patient_of_row.values())
    kept, rejections = Packed(), []
    for item in items.drain():
        if item["split"] == "train" and item["patient_id"] in patients:
            if item["row"] not in patient_of_row:
                rejections.append(Rejection("patient_of_5x200", row=item["row"], item=item["image"]))
                continue
            item["split"] = FIVE_BY_200
        kept.append(item)
    return kept, rejections


def five_by_200(items: Iterable[dict[str, Any]], per_class: int, seed: int) -> list[dict[str, Any]]:
    """The 5x200 images: frontal training images with exactly one of the five competition findings.

    An image qualifies for a class when that one is present, the other four and `ZERO_IN_5X200` are absent or not
    mentioned; uncertain excludes; No Finding is not looked at. Candidates stand in the order of a hash of (seed,
    patient), then of their path; each class takes its first `per_class`, at most one image of a patient, rarest class
    first. So the choice depends on the seed and the candidates alone.
    """
    pools: dict[str, list[dict[str, Any]]] = {name: [] for name in CHEXPERT_COMPETITION}
    for item in items:
        if item["split"] == "train" and item["view"] not in ("LATERAL", ""):
            name = class_of(item["labels"])
            if name:
                pools[name].append(item)
    taken: set[str] = set()
    chosen = []
    for name in sorted(pools, key=lambda name: (len(pools[name]), name)):
        order = sorted(pools[name], key=lambda item: (draw(seed, item["patient_id"]), item["image"]))
        of_class = 0
        for item in order:
            if of_class == per_class:
                break
            if item["patient_id"] not in taken:
                taken.add(item["patient_id"])
                chosen.append(item)
                of_class += 1
    return chosen


def class_of(labels: dict[str, int]) -> str:
    """The one competition finding that an image shows, or "" when it does not qualify for 5x200."""
    present = [name for name in CHEXPERT_COMPETITION if labels.get(name) == PRESENT]
    others = [name for name in (*CHEXPERT_COMPETITION, *ZERO_IN_5X200) if name not in present]
    clear = all(labels.get(name, 0) == 0 for name in others)
    return present[0] if len(present) == 1 and clear else ""
