"""`scores.json` as tables: protocols in order, headline numbers first, two runs side by side."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Interval = tuple[float, float]

TITLES = {
    "zero_shot": "Zero-shot classification",
    "retrieval": "Retrieval",
    "grounding": "Grounding",
    "linear_probe": "Linear probe",
    "knn": "Nearest neighbours",
}
"""Protocols in the order in which they are shown; others follow as they come, the loss last."""

_LAST = "loss"
_PARAGRAPHS = {"loss": "validation_loss"}  # protocol of a score -> evaluator that describes it
_MEANS = ("mean", "all", "accuracy", "macro", "loss")
_COUNTS = ("images", "texts", "not_finite")
_WORDS = {"auc": "AUC", "f1": "F1", "mcc": "MCC", "cnr": "CNR", "miou": "mIoU", "z": "z"}
_UNIT = ("auc", "f1", "accuracy", "pointing", "miou", "precision", "recall", "dice", "iou")
_HIGHER = (*_UNIT, "mcc", "cnr")


class Score(NamedTuple):
    """One number of one protocol; numbers that are missing or not finite are None."""

    protocol: str
    name: str
    value: float | None
    interval: Interval | None = None
    seeds: int | None = None
    count: int | None = None
    chance: float | None = None
    variant: str = ""
    random_init: float | None = None
    random_interval: Interval | None = None
    raw_pixels: float | None = None
    raw_interval: Interval | None = None

    @property
    def label(self) -> str:
        """The name for people, without its protocol: `report · image to text R@10`."""
        parts = self.name.split("/")
        parts = parts[1:] if len(parts) > 1 and parts[0] == self.protocol else parts
        return " · ".join(" ".join(_WORDS.get(word, word) for word in part.split("_")) for part in parts)

    @property
    def limit(self) -> float | None:
        """The end of the scale that starts at 0: 100 for percent, 1 for shares and areas, None without a scale."""
        if _percent(self.name):
            return 100.0
        return 1.0 if self._measures(_UNIT) else None

    @property
    def better(self) -> int:
        """1: higher is better, -1: lower is better, 0: neither, or not known."""
        leaf = self.name.rsplit("/", 1)[-1]
        if leaf in _COUNTS:
            return 0
        if self.protocol == _LAST or leaf.endswith("median_rank"):
            return -1
        return 1 if _percent(self.name) or self._measures(_HIGHER) else 0

    @property
    def headline(self) -> bool:
        """Whether it stands for its protocol: a mean over findings, recall at 10, the loss."""
        leaf = self.name.rsplit("/", 1)[-1]
        return leaf in _MEANS or leaf.endswith("R@10")

    def _measures(self, words: Sequence[str]) -> bool:
        return any(part.split("_")[0] in words for part in self.name.split("/")[1:])


class Group(NamedTuple):
    """The scores of one protocol. published: defective variants of the field, never in one table with the others."""

    protocol: str
    title: str
    paragraph: str
    headline: list[Score]
    rest: list[Score]
    published: list[Score]
    skipped: dict[str, str]


class Scores(NamedTuple):
    """A `scores.json`. about: its fields beside the scores (data, split, step, ...)."""

    about: dict[str, Any]
    scores: list[Score]
    groups: list[Group]


def read_scores(path: Path) -> Scores:
    """Reads `scores.json`.

    Raises: FileNotFoundError when it is not there; ValueError when it is damaged or has another layout.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not there: the run was not scored yet.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged ({error}).") from error
    rows = stored.get("scores") if isinstance(stored, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError(f"{path.name} has another layout: it holds no list of scores. Score the run again.")
    scores = [_score(row) for row in rows if isinstance(row, Mapping) and isinstance(row.get("name"), str)]
    about = {key: value for key, value in stored.items() if key not in ("scores", "protocols", "skipped")}
    return Scores(about, scores, groups(scores, stored.get("protocols") or {}, stored.get("skipped") or {}))


def groups(scores: Sequence[Score], protocols: Mapping[str, str], skipped: Mapping[str, Any]) -> list[Group]:
    """Scores by protocol. A protocol without a headline number shows all of its scores."""
    order = [*TITLES, *dict.fromkeys(s.protocol for s in scores if s.protocol not in (*TITLES, _LAST)), _LAST]
    found = []
    for protocol in order:
        own = [s for s in scores if s.protocol == protocol]
        reasons = skipped.get(protocol) or {}
        if not own and not reasons:
            continue
        own.sort(key=lambda s: not s.name.startswith("retrieval/report/"))  # the whole report before its sections
        kept = [s for s in own if s.variant != "as_published"]
        headline = [s for s in kept if s.headline] or kept
        paragraph = protocols.get(protocol) or protocols.get(_PARAGRAPHS.get(protocol, ""), "")
        found.append(
            Group(
                protocol,
                TITLES.get(protocol) or protocol.replace("_", " ").capitalize(),
                str(paragraph),
                headline,
                [s for s in kept if s not in headline],
                [s for s in own if s.variant == "as_published"],
                {str(k): str(v) for k, v in reasons.items()} if isinstance(reasons, Mapping) else {"": str(reasons)},
            )
        )
    return found


def show(name: str, value: float | None) -> str:
    """A value with the digits that it deserves; a dash for none."""
    return "–" if value is None else _digits(name, value).replace("-", "−")


def _digits(name: str, value: float) -> str:
    leaf = name.rsplit("/", 1)[-1]
    if leaf in _COUNTS:
        return f"{value:,.0f}"
    if leaf.endswith("median_rank"):
        return f"{value:g}"
    if _percent(name):
        return f"{value:z.1f} %"
    return f"{value:z.3f}" if abs(value) < 2 and not name.startswith(_LAST) else f"{value:.4g}"


def show_interval(name: str, interval: Interval | None) -> str:
    """An interval as `0.91 – 0.95`."""
    return "" if interval is None else " – ".join(show(name, end).removesuffix(" %") for end in interval)


# ---- several runs -----------------------------------------------------------


class Row(NamedTuple):
    """One score of several runs, None where a run lacks it. best: place of the run that is clearly best, or None."""

    label: str
    scores: list[Score | None]
    best: int | None


def side_by_side(per_run: Sequence[Scores], *, comparable: bool) -> list[tuple[Group, list[Row], list[Row]]]:
    """Per protocol: a group for its names, rows of headline numbers, other rows; as-published ones stand with these.

    Args: comparable: whether the runs were scored on the same records; otherwise none is marked as best.
    """
    merged = list({s.name: s for scores in per_run for s in scores.scores}.values())
    by_name = [{s.name: s for s in scores.scores} for scores in per_run]

    def row(score: Score) -> Row:
        found = [names.get(score.name) for names in by_name]
        label = score.label + (" (as published)" if score.variant == "as_published" else "")
        return Row(label, found, clearly_best(found) if comparable else None)

    return [
        (group, [row(s) for s in group.headline], [row(s) for s in [*group.rest, *group.published]])
        for group in groups(merged, {}, {})
    ]


def clearly_best(scores: Sequence[Score | None]) -> int | None:
    """Place of the best score when its interval overlaps with no other; None when that is not known."""
    if len(scores) < 2 or any(s is None or s.value is None or s.interval is None for s in scores):
        return None
    sign = scores[0].better
    if not sign:
        return None
    best = max(range(len(scores)), key=lambda i: sign * scores[i].value)
    low, high = scores[best].interval
    apart = all(
        (low > s.interval[1]) if sign > 0 else (high < s.interval[0]) for i, s in enumerate(scores) if i != best
    )
    return best if apart else None


# ---- reading -----------------------------------------------------------


def _score(row: Mapping[str, Any]) -> Score:
    name = row["name"]
    whole = {key: int(value) if (value := _number(row.get(key))) is not None else None for key in ("seeds", "count")}
    intervals = {key: _interval(row.get(key)) for key in ("interval", "random_interval", "raw_interval")}
    numbers = {key: _number(row.get(key)) for key in ("value", "chance", "random_init", "raw_pixels")}
    protocol = str(row.get("protocol") or name.partition("/")[0])
    return Score(protocol=protocol, name=name, variant=str(row.get("variant") or ""), **whole, **intervals, **numbers)


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _interval(value: Any) -> Interval | None:
    ends = [_number(end) for end in value] if isinstance(value, list | tuple) else []
    return (ends[0], ends[1]) if len(ends) == 2 and None not in ends else None


def _percent(name: str) -> bool:
    return "@" in name.rsplit("/", 1)[-1]
