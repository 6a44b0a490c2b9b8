"""Test images with what the model says about them, made once per checkpoint and kept in `gallery.json`.

Only records marked `public` leave a trace in it: no picture, text or place on the map comes from another.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data import whole_files
from medvlp_jax.data.labels import CHEXPERT_LABELS, NOT_MENTIONED, PRESENT, label_states
from medvlp_jax.data.preprocess import decode_grey
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.view_geometry import box_in_view, view_to_image
from medvlp_jax.evaluators.retrieval import image_to_text_places, scores_against_texts
from medvlp_jax.heatmap import overlay, upsample
from medvlp_jax.report import pick, pool

FILE = "gallery.json"
VERSION = 2
RETRIEVED = 3
MAPS = 2  # heat maps per image
SIDE = 288  # pixels, at least, of a picture
MAPPED = 12  # findings on the embedding map
MINIMUM = 5  # images that a finding needs there
NOT_PUBLIC = (
    "The records of this split are not marked public: their images, texts and places on an embedding map stay out of "
    "this file. Scores alone are shown."
)


def gallery(
    workdir: Path, *, step: int | None, data_dir: str | Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The gallery of a run at a step (None: its newest checkpoint), from `gallery.json` or made and written there.

    Raises: FileNotFoundError or ValueError saying what is missing: checkpoint, data, text tower.
    """
    key = _key(workdir, step)
    kept = _read(workdir / FILE, key, step)
    if kept is not None:
        return kept
    from medvlp_jax.trained import open_run

    run = open_run(workdir, step=step, data_dir=data_dir)
    source = RecordSource(run.config.data.dir, run.config.data.name, run.config.data.test_split)
    if not len(source):
        raise ValueError(f"The {source.split} split of {source.name} is empty.")
    made = {"key": key, "step": run.step, "data": source.name, "split": source.split, "records": len(source)}
    embedded = pool.embed(run, source, say=say)
    made |= {"pool": len(embedded.records), "section": embedded.section, "prompts": embedded.prompts}
    made |= {"public": int(embedded.public_N.sum()), "rule": pick.RULE}
    made |= {"cards": _cards(embedded, run), "map": _map(embedded, say)}
    try:
        whole_files.write_text(workdir / FILE, json.dumps(made) + "\n")
    except OSError as error:
        say(f"report    {FILE} is not kept: {error.strerror}")
    return made


def _key(workdir: Path, step: int | None) -> str:
    """Version, step and checkpoint: what a kept gallery must share."""
    from medvlp_jax.checkpoint import Checkpoints

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        known = checkpoints.all_steps()
    number = step if step is not None else max(known, default=None)
    if number not in known:
        return f"{VERSION}:{number}:"
    stamp = workdir / "checkpoints" / str(number) / "_CHECKPOINT_METADATA"
    return f"{VERSION}:{number}:{blake2b(stamp.read_bytes(), digest_size=8).hexdigest()}"


def _read(path: Path, key: str, step: int | None) -> dict[str, Any] | None:
    """The kept gallery when it is of this checkpoint; without any checkpoint, when it is of this step."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same = kept["key"] == key or (key.endswith(":") and kept["key"].startswith(f"{VERSION}:{step}:"))
        return kept if same and {"cards", "map", "public", "pool"} <= set(kept) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# ---- images -----------------------------------------------------------


def _cards(embedded: pool.Pool, run: Any) -> list[dict[str, Any]]:
    percentile_NxF = pick.percentiles(embedded.score_NxF)
    _, first_M, own_N = np.unique(embedded.report_N, return_index=True, return_inverse=True)
    own_N = own_N.reshape(-1)
    # What no prompt asks for is no reason to show an image.
    labels_NxF = np.where(np.isfinite(embedded.score_NxF), embedded.labels_NxF, NOT_MENTIONED)
    cards = []
    for chosen in pick.pick(percentile_NxF, labels_NxF, embedded.public_N):
        row, record = chosen.row, embedded.records[chosen.row]
        parts = [(image[[row]], text, has) for image, text, has in embedded.parts]
        score_1xM = scores_against_texts(parts, first_M)
        # A report that the model reads nothing of (no such section) is no candidate; as an image's own it has no place.
        rank = float(image_to_text_places(iter([score_1xM]), own_N[[row]]).ranks()[0])
        has_place = np.isfinite(score_1xM[0, own_N[row]])
        states = label_states(record["labels"])
        cards.append(
            {
                "record": row,
                "kind": chosen.kind,
                "finding": None if chosen.finding is None else CHEXPERT_LABELS[chosen.finding],
                "picture": jpeg(_enlarged(embedded.view_NxSxSx1[row, ..., 0])),
                "texts": _sections(record),
                "rank": rank if has_place else None,
                "candidates": int(np.isfinite(score_1xM).sum()),
                "retrieved": [
                    {
                        "score": round(float(score_1xM[0, m]), 3),
                        "own": bool(m == own_N[row]),
                        # Any public record with these words will do; without one they stay out.
                        "texts": _public_text(embedded, np.flatnonzero(own_N == m)),
                    }
                    for m in np.argsort(-score_1xM[0], kind="stable")[:RETRIEVED]
                    if np.isfinite(score_1xM[0, m])
                ],
                "zero_shot": [
                    {
                        "finding": name,
                        "score": round(float(embedded.score_NxF[row, f]), 4),
                        "percentile": round(float(percentile_NxF[row, f]), 1),
                        "state": states.get(name),
                    }
                    for f, name in enumerate(CHEXPERT_LABELS)
                    if np.isfinite(embedded.score_NxF[row, f])
                ],
                "maps": _heat_maps(embedded, run, row, _mapped(chosen, record, percentile_NxF[row])),
            }
        )
    return cards


def _mapped(chosen: pick.Pick, record: dict[str, Any], percentile_F: NDArray) -> list[int]:
    """Findings to draw maps of: first the one chosen for, then boxed ones, then present ones; else the highest."""
    boxed = [CHEXPERT_LABELS.index(name) for name in record["boxes"]["finding"] if name in CHEXPERT_LABELS]
    present = [f for f, state in enumerate(record["labels"]) if state == PRESENT]
    own = [] if chosen.finding is None else [chosen.finding]
    wanted = [f for f in dict.fromkeys([*own, *boxed, *present]) if CHEXPERT_LABELS[f] != "No Finding"]
    return wanted or [int(np.argmax(percentile_F[1:])) + 1]


def _heat_maps(embedded: pool.Pool, run: Any, row: int, findings: Sequence[int]) -> list[dict[str, Any]]:
    """Maps on one scale per finding: from the median over all regions of all images to their 99.9th percentile."""
    if embedded.map_NxhxwxF is None:
        return []
    from medvlp_jax.trained import evaluation_ops

    record, view_SxS = embedded.records[row], embedded.view_NxSxSx1[row, ..., 0]
    grey_HxW = decode_grey(record["image"])
    matrix = view_to_image(evaluation_ops(run.config), grey_HxW)
    asked = [f for f in findings if np.isfinite(embedded.score_NxF[row, f])]
    maps = []
    for f in asked[:MAPS]:
        low, high = (float(q) for q in np.quantile(embedded.map_NxhxwxF[..., f], (0.5, 0.999)))
        own = [
            box
            for box, finding in zip(record["boxes"]["box"], record["boxes"]["finding"], strict=True)
            if finding == CHEXPERT_LABELS[f]
        ]
        seen = (box_in_view(box, matrix, grey_HxW.shape, len(view_SxS)) for box in own)
        boxes = [box for box in seen if box is not None]
        heat_SxS = upsample(embedded.map_NxhxwxF[row, ..., f], view_SxS.shape)
        picture = overlay(view_SxS, heat_SxS, low=low, high=high, boxes=boxes, scale=_scale(view_SxS), opacity=0.55)
        entry = {"finding": CHEXPERT_LABELS[f], "picture": jpeg(picture), "boxes": len(boxes)}
        maps.append(entry | {"low": round(low, 6), "high": round(high, 6)})
    return maps


def _sections(record: dict[str, Any]) -> dict[str, str]:
    return {name: record[name] for name in ("findings", "impression") if str(record[name]).strip()}


def _public_text(embedded: pool.Pool, rows: NDArray) -> dict[str, str] | None:
    public = [row for row in rows if embedded.public_N[row]]
    return _sections(embedded.records[public[0]]) if public else None


def _scale(view_SxS: NDArray) -> int:
    return max(1, round(SIDE / view_SxS.shape[0]))


def _enlarged(view_SxS: NDArray) -> NDArray:
    scale = _scale(view_SxS)
    return cv2.resize(view_SxS, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def jpeg(picture: NDArray) -> str:
    """uint8 picture, grey or RGB -> JPEG in base64, for a page."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=82)
    return base64.b64encode(out.getvalue()).decode()


# ---- embedding map -----------------------------------------------------------


def _map(embedded: pool.Pool, say: Callable[[str], None]) -> dict[str, Any] | None:
    """t-SNE of the public images' vectors: whole numbers in 0..1000, and the rows that have each finding."""
    rows = np.flatnonzero(embedded.public_N & np.isfinite(embedded.aligned_NxD).all(axis=1))
    present = {name: np.flatnonzero(embedded.labels_NxF[rows, f] == PRESENT) for f, name in enumerate(CHEXPERT_LABELS)}
    shown = sorted((n for n in present if len(present[n]) >= MINIMUM), key=lambda n: -len(present[n]))[:MAPPED]
    if len(rows) < 4 * MINIMUM or not shown:
        return None
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    say(f"report    embedding map of {len(rows)} images")
    perplexity = min(30, (len(rows) - 1) // 3)
    with threadpool_limits(1):  # on busy machines its threads wait for each other: 50 s instead of 6
        tsne = TSNE(random_state=0, init="pca", perplexity=perplexity, max_iter=500)
        point_nx2 = tsne.fit_transform(embedded.aligned_NxD[rows])
    low, high = point_nx2.min(axis=0), point_nx2.max(axis=0)
    point_nx2 = np.round(20 + 960 * (point_nx2 - low) / np.maximum(high - low, 1e-9)).astype(int)
    return {"points": point_nx2.tolist(), "perplexity": perplexity, "present": {n: present[n].tolist() for n in shown}}
