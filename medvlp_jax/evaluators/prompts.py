"""What to ask the text tower about each of the fourteen observations: texts that affirm it and texts that deny it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.labels import CHEXPERT_LABELS, position


class Pair(NamedTuple):
    """Texts that affirm an observation, and texts that deny it."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


PLAIN = "plain"
ENSEMBLE = "ensemble"

# What the observation is called in reports; the first one is the plain word. "No Finding" is asked for by texts of its
# own: asking for "no No Finding" would invert it.
_TERMS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("mediastinal widening", "widened mediastinum"),
    "Cardiomegaly": ("cardiomegaly", "enlarged heart", "enlarged cardiac silhouette"),
    "Lung Opacity": ("lung opacity", "airspace opacity", "opacity in the lung"),
    "Lung Lesion": ("lung nodule", "pulmonary nodule", "lung mass"),
    "Edema": ("pulmonary edema", "interstitial edema"),
    "Consolidation": ("consolidation", "lower lobe consolidation", "upper lobe consolidation"),
    "Pneumonia": ("pneumonia", "consolidation consistent with pneumonia"),
    "Atelectasis": ("atelectasis", "basilar atelectasis", "linear atelectasis"),
    "Pneumothorax": ("pneumothorax", "apical pneumothorax"),
    "Pleural Effusion": ("pleural effusion", "pleural fluid collection"),
    "Pleural Other": ("pleural thickening", "apical pleural thickening"),
    "Fracture": ("rib fracture", "displaced rib fracture"),
    "Support Devices": (
        "pacemaker",
        "central venous catheter",
        "endotracheal tube",
        "enteric tube",
        "chest tube",
        "sternotomy wires",
        "support device",
    ),
}
# Crossed with severity and side, as radiologists' lists are in GLoRIA (Huang et al. 2021): single words lie far from
# whole reports in the space of a text tower, sentences of a report do not.
_POSITIVE = ("{}.", "There is {}.")
_SEVERITIES = ("", "small", "moderate", "large", "mild", "severe")
_SIDES = ("", "left", "right")
_NEGATIVE = ("No {}.", "There is no {}.", "No evidence of {}.", "Negative for {}.")
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "Normal chest radiograph.",
    "The lungs are clear.",
    "The heart size is normal. The lungs are clear.",
    "No pleural effusion or pneumothorax.",
    "No focal consolidation, pleural effusion or pneumothorax.",
    "No acute cardiopulmonary process.",
    "No edema or pleural effusion.",
    "There is no focal consolidation or pneumothorax.",
)
_ABNORMAL = ("Abnormal chest radiograph.", "There is an acute cardiopulmonary abnormality.")


def builtin(kind: str = ENSEMBLE) -> dict[str, Pair]:
    """Prompt pairs of all observations.

    Args: kind: `plain`: one pair each, "{}" and "no {}" (Tiu et al. 2022, CheXzero); `ensemble`: several templates.
    Raises: ValueError for another kind.
    """
    if kind == PLAIN:
        return {name: Pair((_plain(name),), (f"no {_plain(name)}",)) for name in _TERMS} | {
            "No Finding": Pair(("no abnormality",), ("abnormality",))
        }
    if kind != ENSEMBLE:
        raise ValueError(f"Unknown prompts {kind!r}. Choose {PLAIN}, {ENSEMBLE}, or the path of a JSON file.")
    pairs = {}
    for name, terms in _TERMS.items():
        phrases = [
            " ".join(f"{severity} {side} {term}".split())
            for term in terms
            for severity in _SEVERITIES
            for side in _SIDES
        ]
        pairs[name] = Pair(
            tuple(_sentence(template, phrase) for phrase in phrases for template in _POSITIVE),
            tuple(_sentence(template, _plain(name)) for template in _NEGATIVE) + _NORMAL,
        )
    return pairs | {"No Finding": Pair(_NORMAL, _ABNORMAL)}


def load(prompts: str | Path) -> dict[str, Pair]:
    """Prompts by name (`plain`, `ensemble`) or from a JSON file {"Edema": {"positive": [...], "negative": [...]}}.

    Raises: FileNotFoundError; ValueError for an unknown finding (with the known ones) or for missing texts.
    """
    if str(prompts) in (PLAIN, ENSEMBLE):
        return builtin(str(prompts))
    path = Path(prompts)
    if not path.exists():
        raise FileNotFoundError(f"No prompt file {path}. Choose {PLAIN}, {ENSEMBLE}, or a JSON file that exists.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(stored, Mapping) or not stored:
        raise ValueError(f'{path} must hold an object: {{"Edema": {{"positive": ["..."], "negative": ["..."]}}}}.')
    pairs = {}
    for name, sides in stored.items():
        try:
            label = CHEXPERT_LABELS[position(name)]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        given_texts = {}
        for side in Pair._fields:
            given = sides.get(side) if isinstance(sides, Mapping) else None
            if not isinstance(given, list) or not given or not all(isinstance(t, str) and t.strip() for t in given):
                raise ValueError(f"{path}: {name!r} needs a list of texts under {side!r}.")
            given_texts[side] = tuple(given)
        pairs[label] = Pair(**given_texts)
    return pairs


def drawn(pairs: Mapping[str, Pair], count: int, seed: int) -> dict[str, tuple[str, ...]]:
    """`count` different affirming texts per name, all where there are fewer; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    return {name: tuple(str(text) for text in rng.permutation(pair.positive)[:count]) for name, pair in pairs.items()}


def texts(pairs: Mapping[str, Pair]) -> list[str]:
    """All texts of some pairs, in the order that `split` takes their vectors in."""
    return [text for pair in pairs.values() for side in pair for text in side]


def split(pairs: Mapping[str, Pair], vector_TxD: NDArray) -> dict[str, tuple[NDArray, NDArray]]:
    """Vectors of `texts(pairs)` (more may follow) -> those of the affirming and of the denying texts, per name."""
    sides, start = {}, 0
    for name, pair in pairs.items():
        middle, end = start + len(pair.positive), start + len(pair.positive) + len(pair.negative)
        sides[name] = (vector_TxD[start:middle], vector_TxD[middle:end])
        start = end
    return sides


def _plain(name: str) -> str:
    return "support device" if name == "Support Devices" else _TERMS[name][0]


def _sentence(template: str, word: str) -> str:
    text = template.format(word)
    return text[0].upper() + text[1:]
