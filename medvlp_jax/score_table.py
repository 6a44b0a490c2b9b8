"""Scores as text for people: one line while training, tables at the end."""

from collections.abc import Mapping
from typing import Any

from medvlp_jax.evaluators import Result

# Name -> what the line says; in this order, as far as the scores are there.
HEADLINES = {
    "retrieval/report/image_to_text_R@1": "image -> report, R@1 %",
    "retrieval/report/image_to_text_R@5": "image -> report, R@5 %",
    "retrieval/report/image_to_text_R@10": "image -> report, R@10 %",
    "retrieval/report/image_to_text_median_rank": "image -> report, median rank",
    "retrieval/report/text_to_image_R@10": "report -> image, R@10 %",
    "retrieval/report/image_to_text_P@10": "image -> report, class P@10 %",
    "retrieval/findings/image_to_text_R@10": "image -> findings, R@10 %",
    "retrieval/impression/image_to_text_R@10": "image -> impression, R@10 %",
    "zero_shot/auc/mean": "zero-shot, mean AUC",
    "zero_shot/mcc/mean": "zero-shot, mean MCC",
    "zero_shot/multiclass/accuracy": "zero-shot, one of many, accuracy",
    "linear_probe/1%/auc/mean": "linear probe, 1 % of labels, AUC",
    "linear_probe/10%/auc/mean": "linear probe, 10 %, AUC",
    "linear_probe/100%/auc/mean": "linear probe, 100 %, AUC",
    "knn/1%/auc/mean": "nearest neighbours, 1 %, AUC",
    "knn/100%/auc/mean": "nearest neighbours, 100 %, AUC",
    "grounding/pointing/all": "pointing at boxes, finding texts",
    "grounding/pointing_phrase/all": "pointing at boxes, sentences",
    "grounding/cnr/all": "contrast of box and rest, CNR",
    "grounding/miou/all": "overlap with boxes, mIoU",
    "loss": "loss",
}
FINDING_COLUMNS = {
    "zero_shot/auc/": "zero-shot AUC",
    "linear_probe/1%/auc/": "probe 1 %",
    "linear_probe/100%/auc/": "probe 100 %",
    "grounding/pointing/": "pointing",
}


def flat(results: Mapping[str, Result]) -> dict[str, float]:
    """Score name -> value, for metric writers."""
    return {score.name: score.value for result in results.values() for score in result.scores}


def brief(results: Mapping[str, Result]) -> str:
    """One line for the log while training: the loss, R@10 from image to text beside chance, zero-shot AUC."""
    scores = {score.name: score for result in results.values() for score in result.scores}
    parts = [f"loss {scores['loss'].value:.4g}"] if "loss" in scores else []
    for name, score in scores.items():
        if name.endswith("image_to_text_R@10"):
            parts.append(f"{name.split('/')[1]} R@10 {score.value:.1f} % (chance {score.chance:.1f})")
    if "zero_shot/auc/mean" in scores:
        parts.append(f"zero-shot AUC {scores['zero_shot/auc/mean'].value:.3f}")
    return "  ".join(parts)


def format_scores(scores: dict[str, Any]) -> list[str]:
    """The headlines beside random init, raw pixels and chance; then what was reached per finding."""
    by_name = {row["name"]: row for row in scores["scores"]}
    lines = [
        "",
        f"Scores on {scores['examples']} images of {scores['patients']} patients, {scores['data']}/{scores['split']} "
        f"({scores['split_hash']}), step {scores['step']}",
        f"{'':36s}{'trained':>9s}  {'95 % interval':^17s}{'random init':>12s}{'raw pixels':>12s}{'chance':>9s}"
        f"{'n':>7s}",
    ]
    for name, words in HEADLINES.items():
        if name in by_name:
            row = by_name[name]
            interval = row["interval"]
            span = f"{number(interval[0])} - {number(interval[1])}" if interval else ""
            cells = f"{number(row['random_init']):>12s}{number(row['raw_pixels']):>12s}{number(row['chance']):>9s}"
            lines.append(f"{words:36s}{number(row['value']):>9s}  {span:^17s}{cells}{row['count']:>7d}")
    findings = [
        name.removeprefix("zero_shot/auc/")
        for name in by_name
        if name.startswith("zero_shot/auc/") and "mean" not in name
    ]
    if findings:
        lines.append(f"\n{'':36s}" + "".join(f"{words:>15s}" for words in FINDING_COLUMNS.values()))
        for finding in findings:
            values = [by_name.get(prefix + finding, {}).get("value") for prefix in FINDING_COLUMNS]
            lines.append(f"{finding:36s}" + "".join(f"{number(value):>15s}" for value in values))
    lines += _left_out(scores["skipped"])
    lines.append("(random init: the same model before training; what each score means and all others: scores.json)")
    return lines


def _left_out(skipped: dict[str, dict[str, str]]) -> list[str]:
    """One line for the evaluators that leave out the same names for the same reasons."""
    evaluators: dict[str, list[str]] = {}
    for evaluator, reasons in skipped.items():
        names: dict[str, list[str]] = {}
        for name, why in reasons.items():
            names.setdefault(why, []).append(name)
        text = "; ".join(f"{', '.join(some)} ({why})" for why, some in names.items())
        evaluators.setdefault(text, []).append(evaluator)
    return [f"{', '.join(some)} left out: {text}" for text, some in evaluators.items()]


def number(value: float | None) -> str:
    """A score in three or four digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"
