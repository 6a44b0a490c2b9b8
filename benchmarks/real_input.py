"""A run on real chest radiographs with their texts: prepared, killed, resumed, scored beside chance and random init.

    python benchmarks/real_input.py --covid_cxr DIR --lungseg DIR [--nih DIR] --out runs/real

reads two small public collections that the project does not contain: radiographs of the COVID-19 Image Data
Collection with a sentence each (DIR/manifest.jsonl: image, imaging_text, patient_id, view, split) and the Shenzhen
tuberculosis set with a short reading each (image, reading, image_id, split). A sentence describes what is seen, so it
becomes FINDINGS; a reading concludes, so it becomes IMPRESSION; the other section is absent and masked. Training is
stopped with SIGKILL after its first checkpoint and started again with the same command. Four to eight minutes.

With --nih the run is then scored on a third collection without texts, NIH ChestX-ray14 images with RSNA boxes
(DIR/manifest.jsonl: image, patient_id, view, labels, rsna, width, height, split): zero-shot, probes, neighbours and
pointing. Its labels take the nearest CheXpert name (`NIH_LABELS`); three of these are wider or narrower than the word
they stand for: Infiltration -> Lung Opacity, Nodule and Mass -> Lung Lesion, Pleural_Thickening -> Pleural Other.
Emphysema, Fibrosis and Hernia have none and are left out. A label that is not listed counts as absent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPLITS = {"train": "train", "val": "validation", "test": "test"}
NIH_LABELS = {
    **{name: name for name in ("Pneumonia", "Atelectasis", "Edema", "Consolidation", "Cardiomegaly", "Pneumothorax")},
    "Effusion": "Pleural Effusion",
    "Nodule": "Lung Lesion",
    "Mass": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
    "Infiltration": "Lung Opacity",
    "No Finding": "No Finding",
}


def nih_rows(folder: Path) -> list[dict[str, Any]]:
    """Manifest rows of the NIH images: labels by CheXpert name, RSNA boxes as Pneumonia, no text."""
    found = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        present = {NIH_LABELS[name] for name in row["labels"] if name in NIH_LABELS}
        size_4 = [row["height"], row["width"]] * 2
        corners = [[y, x, y + h, x + w] for x, y, w, h in (row["rsna"] or {}).get("boxes", [])]
        # Corners are rounded in the source, and some pass the edge by a fraction of a pixel.
        boxes = [[min(max(c / s, 0.0), 1.0) for c, s in zip(box, size_4, strict=True)] for box in corners]
        found.append(
            {
                "image": str((folder / row["image"]).resolve()),
                "patient_id": f"nih-{row['patient_id']}",
                "view": row["view"],
                "split": SPLITS[row["split"]],
                "boxes": [{"box": box, "finding": "Pneumonia"} for box in boxes],
                **{name: int(name in present) for name in NIH_LABELS.values()},
            }
        )
    return found


def prepare(name: str, pairs: list[dict[str, Any]], out: Path, data: str, *options: str) -> None:
    """Writes the manifest and prepares `image_report_folder/<name>` from it."""
    manifest = out / f"manifest-{name}.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    command = [sys.executable, "-m", "medvlp_jax.prepare", "image_report_folder", "--data_dir", data, "--name", name]
    subprocess.run([*command, "--manifest", str(manifest), "--size", "128", *options], check=True)


def rows(folder: Path, source: str) -> list[dict[str, str]]:
    """Manifest rows of one collection with absolute image paths."""
    found = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("imaging_text") if source == "covid_cxr" else row.get("reading")
        if text and row["split"] in SPLITS:
            found.append(
                {
                    "image": str((folder / row["image"]).resolve()),
                    "findings": text if source == "covid_cxr" else "",
                    "impression": "" if source == "covid_cxr" else text,
                    "patient_id": f"{source}-{row.get('patient_group') or row.get('patient_id') or row['image_id']}",
                    "view": row.get("view") or "PA",
                    "split": SPLITS[row["split"]],
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covid_cxr", type=Path, required=True)
    parser.add_argument("--lungseg", type=Path, required=True)
    parser.add_argument("--nih", type=Path, help="labelled images with boxes, scored after training")
    parser.add_argument("--out", type=Path, required=True, help="folder for manifest, records and run")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    for folder in filter(None, (flags.covid_cxr, flags.lungseg, flags.nih)):
        if not (folder / "manifest.jsonl").is_file():
            parser.error(f"{folder} holds no manifest.jsonl; what each folder must hold is said above (--help)")
    flags.out.mkdir(parents=True, exist_ok=True)
    data = str(flags.out / "data")
    prepare("real", rows(flags.covid_cxr, "covid_cxr") + rows(flags.lungseg, "lungseg"), flags.out, data)
    if flags.nih:
        prepare("nih", nih_rows(flags.nih), flags.out, data, "--empty_report", "keep")
    workdir = flags.out / f"run-{flags.seed}"
    train = [sys.executable, "-m", "medvlp_jax.main"]
    train += ["--config", "configs/imitate.py:data=image_report_folder/real,small"]
    train += ["--workdir", str(workdir), f"--config.data.dir={data}", f"--config.seed={flags.seed}"]
    train += [f"--config.total_steps={flags.steps}", f"--config.checkpoint_every_steps={flags.steps // 3}"]
    train += [f"--config.eval_every_steps={flags.steps // 3}", "--config.log_every_steps=50"]
    with subprocess.Popen(train) as process:
        while process.poll() is None and not list((workdir / "checkpoints").glob("[0-9]*[0-9]")):
            time.sleep(0.2)
        time.sleep(3)
        os.kill(process.pid, signal.SIGKILL)
    print(f"--- killed with SIGKILL; the same command again: {' '.join(train)}", flush=True)
    subprocess.run(train, check=True)
    if flags.nih:
        names = ("zero_shot", "linear_probe", "knn", "grounding")
        score = ["--mode", "eval", "--config.evaluation.data=image_report_folder/nih"]
        subprocess.run([*train, *score, f"--config.final_evaluators={names!r}"], check=True)


if __name__ == "__main__":
    main()
