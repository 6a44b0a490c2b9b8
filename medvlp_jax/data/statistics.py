"""Numbers about the records of a split: counts, labels, text lengths, views, ages; no text and no pixel is kept."""

from __future__ import annotations

import collections
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data.demographics import OLDEST, UNKNOWN_AGE
from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, NOT_MENTIONED, PRESENT, UNCERTAIN
from medvlp_jax.data.overlap import study_text
from medvlp_jax.data.records import hashed_id

SECTIONS = ("findings", "impression", "report")
STATES = {"present": PRESENT, "absent": ABSENT, "uncertain": UNCERTAIN, "not_mentioned": NOT_MENTIONED}
HISTOGRAM_BARS = 24


def describe(
    records: Iterable[Mapping[str, Any] | None], count_tokens: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Statistics of records, ready for JSON.

    Args: records: as `RecordSource` gives them; None stands for one that could not be read. count_tokens: text ->
      number of tokens.
    Returns: counts, `labels` {name: {state: number}}, `own_labels` likewise when records have them, `together` (14 x
      14: records in which both observations are present), `sections` {name: {"present", "characters", "words",
      "tokens"}} with a `summary` and a histogram each, `sentences`, `texts` (of findings and impression, else the
      report, per study: distinct, repeated), `views`, `sexes`, `ages` (a summary, in which 90 means 90 and more, and
      `decades`), `image_sizes`, `image_bytes`.
    """
    from PIL import Image

    count: collections.Counter[str] = collections.Counter()
    studies: collections.Counter[int] = collections.Counter()
    patients: collections.defaultdict[int, set[int]] = collections.defaultdict(set)
    state_rows: list[np.ndarray] = []
    own: dict[str, collections.Counter[str]] = {}
    lengths: dict[str, dict[str, list[int]]] = {
        name: {unit: [] for unit in ("characters", "words", "tokens")} for name in SECTIONS
    }
    sentences: list[int] = []
    texts: collections.Counter[int] = collections.Counter()
    views: collections.Counter[str] = collections.Counter()
    sexes: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    ages: list[int] = []
    image_bytes: list[int] = []
    words = {value: name for name, value in STATES.items()}
    for record in records:
        if record is None:
            count["unreadable"] += 1
            continue
        count["records"] += 1
        study, patient = int(record["study_id"]), int(record["patient_id"])
        new_study = study not in studies
        studies[study] += 1
        patients[patient].add(study)
        for name in ("public", "has_findings", "has_impression"):
            count[name] += bool(record[name])
        count["with_boxes"] += len(record["boxes"]["finding"]) > 0
        count["with_masks"] += len(record["masks"]["finding"]) > 0
        count["with_lung_mask"] += len(record["lung_mask"]) > 0
        state_rows.append(np.asarray(record["labels"], np.int8))
        own_labels = record.get("own_labels") or {"name": [], "state": []}
        for name, state in zip(own_labels["name"], own_labels["state"], strict=True):
            own.setdefault(name, collections.Counter())[words.get(int(state), "not_mentioned")] += 1
        for name in SECTIONS:
            text = str(record[name])
            if text.strip():
                lengths[name]["characters"].append(len(text))
                lengths[name]["words"].append(len(text.split()))
                if count_tokens is not None:
                    lengths[name]["tokens"].append(count_tokens(text))
        if len(record["sentences"]):
            sentences.append(len(record["sentences"]))
        if new_study and (whole := study_text(record)):
            texts[hashed_id(whole)] += 1
        views[str(record["view"]) or "not known"] += 1
        if (age := int(record.get("age", UNKNOWN_AGE))) != UNKNOWN_AGE:
            ages.append(age)
        sexes[str(record.get("sex", "")) or "not known"] += 1
        image_bytes.append(len(record["image"]))
        try:
            width, height = Image.open(io.BytesIO(record["image"])).size
            sizes[f"{width} × {height}"] += 1
        except OSError:
            count["unreadable_image"] += 1
    states_Nx14 = np.stack(state_rows) if state_rows else np.zeros((0, len(CHEXPERT_LABELS)), np.int8)
    present_Nx14 = (states_Nx14 == PRESENT).astype(np.int64)
    names = ("records", "unreadable", "unreadable_image", "public", "has_findings", "has_impression")
    return {
        **{name: count[name] for name in (*names, "with_boxes", "with_masks", "with_lung_mask")},
        "studies": len(studies),
        "patients": len(patients),
        "images_per_study": summary(list(studies.values())),
        "studies_per_patient": summary([len(found) for found in patients.values()]),
        "labels": {
            name: {word: int((states_Nx14[:, f] == value).sum()) for word, value in STATES.items()}
            for f, name in enumerate(CHEXPERT_LABELS)
        },
        "own_labels": {name: dict(states) for name, states in sorted(own.items())},
        "together": (present_Nx14.T @ present_Nx14).tolist(),
        "sections": {
            name: {
                "present": len(units["characters"]),
                **{unit: {"summary": summary(values), **histogram(values)} for unit, values in units.items()},
            }
            for name, units in lengths.items()
        },
        "sentences": summary(sentences),
        "texts": {
            "studies_with_text": sum(texts.values()),
            "distinct": len(texts),
            "repeated": sum(number for number in texts.values() if number > 1),
        },
        "views": dict(views.most_common()),
        "sexes": dict(sexes.most_common()),
        "ages": {"summary": summary(ages), "decades": decades(ages, count["records"])},
        "image_sizes": dict(sizes.most_common(10)) | ({"others": _rest(sizes, 10)} if len(sizes) > 10 else {}),
        "image_bytes": summary(image_bytes),
    }


def _rest(counter: collections.Counter[str], shown: int) -> int:
    return sum(number for _, number in counter.most_common()[shown:])


def decades(ages: Sequence[int], records: int) -> dict[str, int]:
    """Ages in years by ten, "90+" last, and how many records have none; {} when none has one."""
    if not ages:
        return {}
    count = collections.Counter(min(age, OLDEST) // 10 for age in ages)
    unknown = records - len(ages)
    named = {f"{10 * ten}–{10 * ten + 9}": count[ten] for ten in range(9)} | {f"{OLDEST}+": count[9]}
    return {name: number for name, number in named.items() if number} | ({"not known": unknown} if unknown else {})


def summary(values: Sequence[float]) -> dict[str, float]:
    """Count, minimum, median, mean, 95 % point and maximum; {"count": 0} of nothing."""
    if not len(values):
        return {"count": 0}
    array = np.asarray(values, np.float64)
    return {
        "count": len(array),
        "min": float(array.min()),
        "median": float(np.median(array)),
        "mean": round(float(array.mean()), 2),
        "p95": float(np.quantile(array, 0.95, method="higher")),
        "max": float(array.max()),
    }


def histogram(values: Sequence[float]) -> dict[str, list[float]]:
    """{"edges": N + 1 numbers, "counts": N}: at most `HISTOGRAM_BARS` bars of a round width, from 0."""
    if not len(values):
        return {"edges": [], "counts": []}
    top = max(float(max(values)), 1.0)
    least = top / HISTOGRAM_BARS
    scale = 10 ** math.floor(math.log10(least))
    width = max(next(step * scale for step in (1, 2, 5, 10) if step * scale >= least), 1.0)
    edges = np.arange(0, math.floor(top / width) + 2) * width
    counts, _ = np.histogram(np.asarray(values, np.float64), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
