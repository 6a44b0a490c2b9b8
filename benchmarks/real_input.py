"""A run on real chest radiographs with their texts: prepared, killed, resumed, scored beside chance and random init.

    python benchmarks/real_input.py --covid_cxr DIR --lungseg DIR --out runs/real

reads two small public collections that the project does not contain: radiographs of the COVID-19 Image Data
Collection with a sentence each (DIR/manifest.jsonl: image, imaging_text, patient_id, view, split) and the Shenzhen
tuberculosis set with a short reading each (image, reading, image_id, split). A sentence describes what is seen, so it
becomes FINDINGS; a reading concludes, so it becomes IMPRESSION; the other section is absent and masked. Training is
stopped with SIGKILL after its first checkpoint and started again with the same command. Four minutes.
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


def rows(folder: Path, source: str) -> list[dict[str, str]]:
    """Manifest rows of one collection with absolute image paths."""
    splits = {"train": "train", "val": "validation", "test": "test"}
    found = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("imaging_text") if source == "covid_cxr" else row.get("reading")
        if text and row["split"] in splits:
            found.append(
                {
                    "image": str((folder / row["image"]).resolve()),
                    "findings": text if source == "covid_cxr" else "",
                    "impression": "" if source == "covid_cxr" else text,
                    "patient_id": f"{source}-{row.get('patient_group') or row.get('patient_id') or row['image_id']}",
                    "view": row.get("view") or "PA",
                    "split": splits[row["split"]],
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covid_cxr", type=Path, required=True)
    parser.add_argument("--lungseg", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for manifest, records and run")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    manifest = flags.out / "manifest.jsonl"
    pairs = rows(flags.covid_cxr, "covid_cxr") + rows(flags.lungseg, "lungseg")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    python, data = [sys.executable, "-m"], str(flags.out / "data")
    subprocess.run(
        [
            *(*python, "medvlp_jax.prepare", "image_report_folder", "--data_dir", data, "--name", "real"),
            *("--manifest", str(manifest), "--size", "128"),
        ],
        check=True,
    )
    workdir = flags.out / f"run-{flags.seed}"
    train = [*python, "medvlp_jax.main", "--config", "configs/imitate.py:data=image_report_folder/real,small"]
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


if __name__ == "__main__":
    main()
