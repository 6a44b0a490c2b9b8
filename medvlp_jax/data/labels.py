"""The fourteen chest X-ray observations and the four states a record stores for each.

Names and order follow the CheXpert label files (arXiv 1901.07031, table 1). Columns of other sources come in other
orders (MIMIC-CXR-JPG sorts them by letter), so everything here works by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

CHEXPERT_LABELS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The label vector of a record, in this order."""

CHEXPERT_COMPETITION: tuple[str, ...] = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five observations of the CheXpert competition and of the 5x200 retrieval sets."""

PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, 0, -1, -2
STATES: dict[str, int] = {
    "present": PRESENT,
    "absent": ABSENT,
    "uncertain": UNCERTAIN,
    "not_mentioned": NOT_MENTIONED,
}

ALIASES: dict[str, str] = {"Airspace Opacity": "Lung Opacity", "Effusion": "Pleural Effusion"}
"""Other spellings that mean one of the fourteen (MIMIC-CXR-JPG 2.1.0 test set; ChestX-ray14)."""

_POSITIONS = {name.lower(): position for position, name in enumerate(CHEXPERT_LABELS)}
_POSITIONS |= {alias.lower(): _POSITIONS[name.lower()] for alias, name in ALIASES.items()}
_BLANK = {"", "nan", "none", "na", "n/a"}


def position(name: str) -> int:
    """Index of an observation in a record's label vector; case, blanks around it and `_` for a blank do not matter.

    Raises: ValueError with the fourteen names when `name` is none of them.
    """
    key = name.strip().replace("_", " ").lower()
    if key not in _POSITIONS:
        raise ValueError(f"Unknown label {name!r}. Known labels: {', '.join(CHEXPERT_LABELS)}.")
    return _POSITIONS[key]


def label_vector(states: Mapping[str, int]) -> np.ndarray:
    """States by name -> int8 (14,) in {1, 0, -1, -2}; observations that are not named are NOT_MENTIONED."""
    labels = np.full(len(CHEXPERT_LABELS), NOT_MENTIONED, np.int8)
    for name, state in states.items():
        if state not in STATES.values():
            raise ValueError(f"Label {name!r} has state {state!r}. Valid states: {STATES}.")
        labels[position(name)] = state
    return labels


def label_states(labels: Sequence[int] | np.ndarray) -> dict[str, int]:
    """A record's label vector -> {name: state} of the observations that are mentioned."""
    if len(labels) != len(CHEXPERT_LABELS):
        raise ValueError(f"A label vector has {len(CHEXPERT_LABELS)} entries, not {len(labels)}.")
    return {
        name: int(state) for name, state in zip(CHEXPERT_LABELS, labels, strict=True) if int(state) != NOT_MENTIONED
    }


def column(labels_Bx14: np.ndarray, name: str) -> np.ndarray:
    """The states of one observation, addressed by name: (..., 14) -> (...)."""
    return np.asarray(labels_Bx14)[..., position(name)]


def parse_state(value: object) -> int:
    """A cell of a label file -> state. `1`, `0`, `-1`, `1.0`, ` -1`, True; blank, NaN and None are NOT_MENTIONED.

    Raises: ValueError naming the value when it is anything else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_MENTIONED
    if isinstance(value, str):
        if value.strip().lower() in _BLANK:
            return NOT_MENTIONED
        if value.strip().lower() in {"true", "false"}:
            return int(value.strip().lower() == "true")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.inf
    if number not in (PRESENT, ABSENT, UNCERTAIN):
        raise ValueError(f"Label value {value!r} is not one of 1, 0, -1 or blank.")
    return int(number)
