"""Which split a patient belongs to: drawn by a hash of its id, and never two."""

from __future__ import annotations

import hashlib
from typing import Any

from medvlp_jax.data.staging import Rejection

SPLIT_NAMES: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Spellings of a split (lower case) -> its name."""
CONFLICTS = ("error", "drop", "first")
"""What to do with a patient in two splits."""


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


def one_split_per_patient(items: list[dict[str, Any]], policy: str) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Items without those that would put a patient into a second split, and these as rejections.

    Args: policy: "error", "drop" all items of such a patient, or keep those of the "first" split it occurs in.
    Raises: ValueError with the policy "error" and such a patient.
    """
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(item["patient_id"], item["split"])
    astray = [item for item in items if item["split"] != first[item["patient_id"]]]
    if not astray:
        return items, []
    if policy == "error":
        rows = ", ".join(str(item["row"]) for item in astray[:5])
        raise ValueError(
            f"{len({item['patient_id'] for item in astray})} patients are in more than one split (rows {rows}"
            f"{', ...' if len(astray) > 5 else ''}): scores would be too good. Correct the split column, or add "
            "--split_conflict first (keep a patient's rows of its first split) or --split_conflict drop."
        )
    patients = {item["patient_id"] for item in astray}
    out = [item for item in items if item["patient_id"] in patients] if policy == "drop" else astray
    gone = {id(item) for item in out}
    rejections = [Rejection("patient_in_two_splits", row=item["row"], item=item["image"]) for item in out]
    return [item for item in items if id(item) not in gone], rejections
