"""Which split a patient belongs to: drawn by a hash of its id, and never two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

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
