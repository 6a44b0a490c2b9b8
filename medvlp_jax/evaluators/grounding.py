"""Phrase grounding: does the map of a sentence over an image point at the box that belongs to the sentence."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.labels import CHEXPERT_LABELS, position
from medvlp_jax.evaluators import prompts
from medvlp_jax.evaluators.context import Context
from medvlp_jax.evaluators.scores import Result, Score, mean_interval, resampling_weights
from medvlp_jax.heatmap import BLUR_SIGMA, similarity_map, upsample

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
PROTOCOL = (
    "For each image with boxes and each finding boxed in it: the boxes of one finding are united. Map: what each "
    "image region contributes to the cosine with the text, bilinear to the evaluation view; boxes are cut to the "
    "view, those outside are skipped. Texts: `contrast`, the affirming minus the denying prompts of the finding "
    "(mean vectors), `phrase`, the report's own sentence about it. Pointing: the greatest value lies in a box "
    "(share of them on ties; chance is the mean share of the view that boxes cover). CNR: (mean inside - mean "
    "outside) / sqrt(sum of variances), signed (corrected); its absolute value is cnr_absolute (as_published: "
    "BioViL). mIoU: map scaled to [-1, 1], mean IoU over thresholds 0.1 to 0.5 where prediction is not empty, map"
    f" blurred by sigma {BLUR_SIGMA} regions first. Raw pixels: brightness as the map. Bootstrap over patients."
)


class Query(NamedTuple):
    """One finding of one image: row among the boxed images, its name, the report's sentence or "", its boxes."""

    row: int
    finding: str
    sentence: str
    mask_SxS: NDArray[np.bool_]


def run(context: Context) -> Result:
    """Scores `grounding/{pointing,cnr,cnr_absolute,miou}[_phrase]/{all,<finding>}`."""
    features = context.features(context.split)
    section = context.section(features)
    if section not in features.regions:
        return Result([], "", {"grounding": f"{section} has no image regions"})
    if not len(features.boxed_M):
        return Result([], "", {"grounding": "no image has boxes"})
    skipped: dict[str, int] = {}
    queries = list(_queries(context, features.boxed_M, skipped))
    if not queries:
        return Result([], "", {"grounding": "no box lies in the evaluation view"})
    maps = _maps(context, queries, features.regions[section], section)
    if context.baselines:
        side = round(features.pixels_NxP.shape[1] ** 0.5)
        maps["pixels"] = [features.pixels_NxP[features.boxed_M[q.row]].reshape(side, side) for q in queries]
    patient_Q = features.patient_N[[features.boxed_M[q.row] for q in queries]]
    measured = {kind: _measure(queries, small) for kind, small in maps.items()}
    scores = []
    for kind, suffix in (("contrast", ""), ("phrase", "_phrase")):
        scores += _scores(queries, measured[kind], measured.get("pixels", {}), patient_Q, suffix, context)
    reasons = {name: f"{count} boxes or sentences" for name, count in skipped.items()}
    return Result(scores, PROTOCOL, reasons)


def _queries(context: Context, boxed_M: NDArray, skipped: dict[str, int]) -> Iterator[Query]:
    fields = context.features(context.split).fields
    for row, place in enumerate(boxed_M):
        record = context.record(context.split, int(fields["index"][place]))
        height, width = record["image_shape"]
        boxes, sentences = record["boxes"], record["sentences"]
        by_finding: dict[str, tuple[NDArray, set[int]]] = {}
        for box, finding, sentence in zip(boxes["box"], boxes["finding"], boxes["sentence"], strict=True):
            name = _name(finding)
            if not name:
                skipped["no prompt for the boxed finding"] = skipped.get("no prompt for the boxed finding", 0) + 1
                continue
            mask, linked = by_finding.setdefault(name, (np.zeros((height, width), bool), set()))
            _fill(mask, box)
            if 0 <= sentence < len(sentences):
                linked.add(int(sentence))
        for name, (mask, linked) in by_finding.items():
            seen_SxS = context.view_mask(mask)
            if not seen_SxS.any():
                skipped["outside of the evaluation view"] = skipped.get("outside of the evaluation view", 0) + 1
                continue
            yield Query(row, name, " ".join(sentences[i] for i in sorted(linked)), seen_SxS)


def _name(finding: str) -> str:
    try:
        return CHEXPERT_LABELS[position(finding)]
    except ValueError:
        return ""


def _fill(mask_HxW: NDArray, box: NDArray) -> None:
    """Marks the pixels of a box [ymin, xmin, ymax, xmax] in 0..1, at least one."""
    height, width = mask_HxW.shape
    top, left, bottom, right = np.asarray(box) * (height, width, height, width)
    rows = slice(int(np.clip(round(top), 0, height - 1)), max(round(bottom), round(top) + 1))
    columns = slice(int(np.clip(round(left), 0, width - 1)), max(round(right), round(left) + 1))
    mask_HxW[rows, columns] = True


def _maps(context: Context, queries: list[Query], region_MxhxwxD: NDArray, section: str) -> dict[str, list[NDArray]]:
    loaded = prompts.load(context.settings.prompts)
    pairs = {name: loaded[name] for name in sorted({q.finding for q in queries} & set(loaded))}
    phrases = sorted({q.sentence for q in queries if q.sentence})
    asked = prompts.texts(pairs) + phrases
    vector_TxD = np.asarray(context.embed_texts(asked)[section], np.float64)
    sides = {n: [side.mean(axis=0) for side in both] for n, both in prompts.split(pairs, vector_TxD).items()}
    vector = dict(zip(phrases, vector_TxD[len(asked) - len(phrases) :], strict=True))
    nothing = np.full(region_MxhxwxD.shape[1:3], np.nan)
    maps: dict[str, list[NDArray]] = {"contrast": [], "phrase": []}
    for query in queries:
        region = region_MxhxwxD[query.row]
        known = query.finding in sides
        maps["contrast"].append(similarity_map(region, *sides[query.finding]) if known else nothing)
        maps["phrase"].append(similarity_map(region, vector[query.sentence]) if query.sentence else nothing)
    return maps


def _measure(queries: list[Query], maps: list[NDArray]) -> dict[str, NDArray]:
    """Per query; NaN where the text is missing or the measure is not defined."""
    rows = [measure(q.mask_SxS, heat) for q, heat in zip(queries, maps, strict=True)]
    return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}


def measure(mask_SxS: NDArray[np.bool_], heat_hxw: NDArray) -> dict[str, float]:
    """Pointing, CNR and mIoU of one map against the united boxes, and the share of the view that they cover."""
    covered = float(mask_SxS.mean())
    if not np.isfinite(heat_hxw).all():
        return {"pointing": np.nan, "cnr": np.nan, "cnr_absolute": np.nan, "miou": np.nan, "covered": covered}
    heat_SxS = upsample(heat_hxw, mask_SxS.shape)
    highest = heat_SxS == heat_SxS.max()
    cnr = np.nan
    if mask_SxS.any() and not mask_SxS.all():
        inside, outside = heat_SxS[mask_SxS].astype(np.float64), heat_SxS[~mask_SxS].astype(np.float64)
        spread = np.sqrt(inside.var() + outside.var())
        cnr = float((inside.mean() - outside.mean()) / spread) if spread > 0 else 0.0
    return {
        "pointing": float(mask_SxS[highest].mean()),
        "cnr": cnr,
        "cnr_absolute": abs(cnr),
        "miou": _miou(mask_SxS, upsample(heat_hxw, mask_SxS.shape, blur=BLUR_SIGMA)),
        "covered": covered,
    }


def _miou(mask_SxS: NDArray[np.bool_], heat_SxS: NDArray) -> float:
    low, high = float(heat_SxS.min()), float(heat_SxS.max())
    if high <= low or not mask_SxS.any():
        return np.nan
    scaled_SxS = 2 * (heat_SxS - low) / (high - low) - 1
    boxed, inside = np.count_nonzero(mask_SxS), scaled_SxS[mask_SxS]
    values = []
    for threshold in THRESHOLDS:
        if predicted := np.count_nonzero(scaled_SxS > threshold):
            hit = np.count_nonzero(inside > threshold)
            values.append(hit / (predicted + boxed - hit))
    return float(np.mean(values)) if values else np.nan


def _scores(queries, measured, pixels, patient_Q, suffix: str, context: Context) -> list[Score]:
    finding_Q = np.asarray([q.finding for q in queries])
    groups = {"all": np.ones(len(queries), bool)} | {n: finding_Q == n for n in sorted(set(finding_Q))}
    variants = {"cnr": "corrected", "cnr_absolute": "as_published"}
    weights: dict[bytes, NDArray] = {}  # most measures are defined for the same queries
    scores = []
    for name in ("pointing", "cnr", "cnr_absolute", "miou"):
        for group, rows_Q in groups.items():
            used_Q = rows_Q & np.isfinite(measured[name])
            if not used_Q.any():
                continue
            key = used_Q.tobytes()
            if key not in weights:
                weights[key] = resampling_weights(patient_Q[used_Q], context.settings.resamples)
            weight_RxQ = weights[key]
            value_Q = measured[name][used_Q]
            raw_Q = pixels[name][used_Q] if name in pixels else np.array([np.nan])
            score = Score(
                f"grounding/{name}{suffix}/{group}",
                float(value_Q.mean()),
                int(used_Q.sum()),
                mean_interval(value_Q, weight_RxQ),
                chance=float(measured["covered"][used_Q].mean()) if name == "pointing" else None,
                variant=variants.get(name, ""),
                raw_pixels=float(raw_Q.mean()) if np.isfinite(raw_Q).all() else None,
                raw_interval=mean_interval(raw_Q, weight_RxQ) if np.isfinite(raw_Q).all() else None,
            )
            scores.append(score)
    return scores
