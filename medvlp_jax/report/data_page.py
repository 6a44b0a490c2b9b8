"""One HTML file about a prepared data set: counts, labels, text lengths, views; samples of public records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data.demographics import OLDEST, UNKNOWN_AGE
from medvlp_jax.data.labels import CHEXPERT_LABELS, label_states
from medvlp_jax.data.preprocess import decode_grey
from medvlp_jax.report import page
from medvlp_jax.report.gallery import SIDE, jpeg

SAMPLES = 8
UNKNOWN = "not known"
WORDS = {"F": "female", "M": "male", "O": "other"}
NOT_PUBLIC = (
    "The records are not marked public: no image, text or place of a single record is in this file. Numbers about all "
    "of them are shown."
)
SHORT = {"Enlarged Cardiomediastinum": "Enl. Cardiomed.", "Pleural Effusion": "Effusion", "Support Devices": "Devices"}


def samples(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Picture, texts and labels of each record that is marked public; others leave no trace."""
    made = []
    for record in records:
        if not record["public"]:
            continue
        grey = decode_grey(record["image"])
        scale = SIDE / max(grey.shape)
        size = tuple(max(1, round(side * scale)) for side in grey.shape[::-1])
        small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        texts = {name: record[name] for name in ("findings", "impression") if str(record[name]).strip()}
        if not texts and str(record["report"]).strip():
            texts = {"report": record["report"]}
        made.append(
            {
                "picture": jpeg(np.ascontiguousarray(small)),
                "view": record["view"],
                "sex": WORDS.get(record.get("sex", ""), ""),
                "age": _age(record.get("age", UNKNOWN_AGE)),
                "texts": texts,
                "labels": label_states(record["labels"]),
            }
        )
    return made


def _age(years: int) -> str:
    if years == UNKNOWN_AGE:
        return ""
    return f"{years} years" + (" or more" if years == OLDEST else "")


def _shares(splits: Mapping[str, Mapping[str, Any]], of: Callable[[Any], Mapping[str, int]]) -> dict[str, Any]:
    """Name -> (number, percent of the records) in every split, what is not known last; {} when nothing is known."""
    names = dict.fromkeys(name for found in splits.values() for name in of(found))
    order = sorted(names, key=lambda name: name == UNKNOWN)
    rows = {
        name: [
            (of(found).get(name, 0), 100 * of(found).get(name, 0) / max(found["records"], 1))
            for found in splits.values()
        ]
        for name in order
    }
    return rows if set(names) - {UNKNOWN} else {}


def write_data_page(
    path: str | Path,
    name: str,
    splits: Mapping[str, Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    vocabulary: str,
) -> Path:
    """Writes the page.

    Args: splits: {split: what `statistics.describe` returns}. shown: from `samples`. vocabulary: whose tokens were
      counted.
    Raises: ValueError when the file cannot be written.
    """
    path = Path(path)
    counts = {
        "View": _shares(splits, lambda found: found["views"]),
        "Sex": _shares(splits, lambda found: {WORDS.get(sex, sex): n for sex, n in found["sexes"].items()}),
        "Age": dict(sorted(_shares(splits, lambda found: found["ages"]["decades"]).items())),
    }
    sizes = dict.fromkeys(size for found in splits.values() for size in found["image_sizes"])
    named = [label for label in CHEXPERT_LABELS if any(_said(split, label) for split in splits.values())]
    text = page.render(
        "data_set.html",
        name=name,
        splits=splits,
        labels=named,
        short=SHORT,
        together=_together(splits, named),
        sections=[
            s for s in ("findings", "impression", "report") if any(v["sections"][s]["present"] for v in splits.values())
        ],
        units=["characters", "words", "tokens"],
        shares={title: rows for title, rows in counts.items() if rows},
        unknown=[title for title, rows in counts.items() if not rows],
        sizes={size: [found["image_sizes"].get(size, 0) for found in splits.values()] for size in sizes},
        samples=shown,
        not_public="" if shown else NOT_PUBLIC,
        vocabulary=vocabulary,
        bars=bars,
    )
    page.write(path, text)
    return path


def _said(split: Mapping[str, Any], label: str) -> int:
    states = split["labels"][label]
    return states["present"] + states["absent"] + states["uncertain"]


def _together(splits: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> list[list[tuple[int, float]]]:
    """Per pair of labels over all splits: records with both, and that as a share of those with the row's label."""
    places = [CHEXPERT_LABELS.index(label) for label in labels]
    both_FxF = np.sum([np.asarray(split["together"]) for split in splits.values()], axis=0)[np.ix_(places, places)]
    own_F = np.maximum(np.diag(both_FxF), 1)
    return [[(int(number), float(number / own)) for number in row] for row, own in zip(both_FxF, own_F, strict=True)]


def bars(histogram: Mapping[str, Sequence[float]], unit: str) -> str:
    """Inline SVG of a histogram, colours from the page, with the numbers in words for those who cannot see it."""
    counts, edges = histogram["counts"], histogram["edges"]
    if not counts:
        return ""
    width, height, top = 320, 90, max(counts)
    step = width / len(counts)
    rects = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{height - height * n / top:.1f}" width="{max(step - 1, 0.5):.1f}" '
        f'height="{height * n / top:.1f}"/>'
        for i, n in enumerate(counts)
    )
    label = f"{sum(counts)} values from 0 to {edges[-1]:g} {unit}; most, {top}, from {edges[int(np.argmax(counts))]:g}"
    return (
        f'<svg class="bars" role="img" aria-label="{label}" viewBox="0 0 {width} {height + 16}">{rects}'
        f'<text x="0" y="{height + 13}">0</text><text x="{width}" y="{height + 13}" text-anchor="end">'
        f"{edges[-1]:g} {unit}</text></svg>"
    )
