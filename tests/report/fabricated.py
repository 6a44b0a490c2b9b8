"""Run folders as training leaves them, written by hand: no model, no data."""

import json
from pathlib import Path

from medvlp_jax.report.gallery import VERSION

REPORT_TEXT = 'Heart <b>large</b> & "old" {{ 7 * 7 }}'

CONFIG = {
    "method": "imitate",
    "preset": "fixed",
    "seed": 0,
    "total_steps": 400,
    "batch_size": 8,
    "data.name": "cxr_phantom/none",
    "data.dir": "nowhere",
    "data.test_split": "test",
    "data.eval_split": "validation",
    "image.evaluate": "decode|center({size})",
    "optimizer.learning_rate": 0.003,
}


def score(name, value, interval=None, **more):
    """A row of `scores.json` with every field."""
    empty = dict.fromkeys(("seeds", "chance", "random_init", "random_interval", "raw_pixels", "raw_interval"))
    row = {"protocol": name.partition("/")[0], "name": name, "value": value, "interval": interval, "count": 604}
    return {**row, "variant": "", **empty, **more}


SCORES = [
    score("retrieval/findings/image_to_text_R@10", 21.0, [18.0, 24.0], chance=2.2),
    score("retrieval/report/image_to_text_R@1", 5.0, [4.0, 6.0], chance=0.2),
    score("retrieval/report/image_to_text_R@10", 29.47, [26.0, 33.0], chance=2.0, random_init=2.0),
    score("retrieval/report/image_to_text_median_rank", 35.0),
    score("zero_shot/auc/mean", 0.934, [0.921, 0.947], chance=0.5, random_init=0.51, raw_pixels=0.72),
    score("zero_shot/auc/Edema", 0.95, [0.93, 0.97], chance=0.5),
    score("zero_shot/f1/mean", 0.41, [0.38, 0.44], variant="corrected"),
    score("zero_shot/f1_test_threshold/mean", 0.47, [0.44, 0.5], variant="as_published"),
    score("linear_probe/1%/auc/mean", 0.71, [0.7, 0.72], seeds=5),
    score("linear_probe/100%/auc/mean", 0.88, [0.86, 0.9]),
    score("grounding/cnr/mean", -0.7, [-0.8, -0.6]),
    score("calibration/ece", 0.1),
    score("calibration/brier", float("nan")),
    score("loss", 33.5, random_init=68.0),
    score("loss/read", 12.0),
]


def scores(rows=SCORES, **about):
    """The content of a `scores.json`."""
    known = {
        "data": "cxr_phantom",
        "split": "test",
        "split_hash": "9f3a",
        "step": 400,
        "examples": 604,
        "patients": 412,
    }
    return {
        **known,
        "public": True,
        "method": "imitate",
        "seed": 0,
        "protocols": {"retrieval": "An image must find its own text.", "validation_loss": "Mean over batches."},
        "scores": list(rows),
        "skipped": {"zero_shot": {"Fracture": "no positive image"}},
        **about,
    }


def account(**seconds):
    """The account of a run of two attempts as its last lines hold it: 100 s, 50 s of them for 398 steps that stayed."""
    known = {"step": 50.0, "data_wait": 10.0, "checkpoint": 4.0, "evaluation": 6.0, "startup": 8.0, "restore": 1.0}
    known |= {"compile": 12.0, "lost": 5.0, "down": 4.0} | seconds
    counts = {"share": known["step"] / sum(known.values()), "attempts": 2, "steps": 398, "lost_steps": 30}
    return {f"goodput/{name}": value for name, value in (known | counts).items()}


def metrics():
    """Lines of a run of two attempts with validation and test lines, the account of its time on the last ones."""
    rates = {"steps_per_second": 10.0, "images_per_second": 160.0, "data_wait_share": 0.1}
    terms = {"loss": 40.0, "read": 20.0, "diagnosis": 20.0, "mu": 1.0, "learning_rate": 0.001, "gradient_norm": 9.0}
    return [
        {"step": 1, **terms, "seconds": 20.0},
        {"step": 100, **terms, **rates, "loss": 30.0, "seconds": 29.9},
        {"step": 200, **terms, **rates, "loss": 25.0, "seconds": 39.9},
        {"step": 200, "loss": 35.0, "loss/read": 17.0, "retrieval/report/image_to_text_R@10": 20.0},
        {"step": 300, **terms, "loss": 22.0, "seconds": 60.0},  # resumed behind step 200
        {"step": 400, **terms, **rates, "loss": 20.0, "seconds": 75.0, **account(evaluation=2.0)},
        {"step": 400, "test/loss": 33.5},
        {"step": 400, "seconds": 96.0, **account()},
    ]


LOG = """run       imitate preset=fixed in runs/demo
devices   1 cpu in 1 process(es), mesh data=1 fsdp=1, batch 8 = 8 per device
model     339,144 trainable parameters, float32 compute
"""


def card(text=REPORT_TEXT, **more):
    """An image of a gallery."""
    zero_shot = [{"finding": "Edema", "score": 0.51, "percentile": 97.0, "state": 1}]
    retrieved = [
        {"score": 0.4, "own": True, "texts": {"impression": text}},
        {"score": 0.3, "own": False, "texts": None},
    ]
    maps = [{"finding": "Edema", "picture": "AAAA", "boxes": 1, "low": -0.1, "high": 0.2}]
    return {
        **{"record": 3, "kind": "missed", "finding": "Edema", "picture": "AAAA", "texts": {"findings": text}},
        **{"rank": 1.0, "candidates": 500, "retrieved": retrieved, "zero_shot": zero_shot, "maps": maps, **more},
    }


def gallery(cards=None, key=f"{VERSION}:400:", **more):
    """The content of a `gallery.json`."""
    points = [[i * 10, i * 7] for i in range(40)]
    known = {"key": key, "step": 400, "data": "cxr_phantom", "split": "test", "records": 604, "pool": 604}
    known |= {"section": "impression", "prompts": "ensemble", "public": 604, "rule": "Chosen by rule."}
    known |= {"map": {"points": points, "perplexity": 13, "present": {"Edema": [0, 1, 2]}}}
    return {**known, "cards": [card()] if cards is None else cards, **more}


def make_run(folder: Path, *, config=None, **files) -> Path:
    """A run folder. files: name without ending -> content of scores, metrics, gallery or log; None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    content = {"scores": scores(), "metrics": metrics(), "log": LOG, "gallery": None} | files
    if content["scores"] is not None:
        (folder / "scores.json").write_text(json.dumps(content["scores"]))
    if content["metrics"] is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content["metrics"]))
    if content["log"] is not None:
        (folder / "log.txt").write_text(content["log"])
    if content["gallery"] is not None:
        (folder / "gallery.json").write_text(json.dumps(content["gallery"]))
    return folder
