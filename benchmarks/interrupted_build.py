"""Kills one build with `kill -9` again and again: does it end in the bytes of a build that nobody disturbed?

    python benchmarks/interrupted_build.py --kills 50 [--minutes 30] [--seed 0]

The same `mimic_cxr` build (`mimic_folder.py`) runs twice: once undisturbed, once killed at seeded random moments and
started again, with one process or two workers as it comes: during start-up, while chunks are made, while records are
written, and while side tables are written. Half of the kills hit the main process alone, the others its workers too.
After so many minutes nothing is killed any more, and the build may end. Counted are kills by moment, chunk files that
the last start found finished, files that differ at the end (names and bytes of everything below the two data folders),
and what is left over. Exit code 1 when something differs or is left over, or nothing was killed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import mimic_folder  # noqa: E402

CHUNK = 64  # images, of a chunk of the command
DELAYS = {"start-up": 1.5, "chunks": 0.3, "records": 0.2, "side tables": 0.2}
"""Moment -> at most so many seconds after it began."""


def start(folder: Path, data_dir: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "medvlp_jax.prepare", "mimic_cxr", "--root", str(folder), "--size", "64"]
    command += ["--data_dir", str(data_dir), "--workers", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def chunks(data_dir: Path) -> int:
    return len(list(data_dir.glob(".staging/*/*/*/*.msgpack")))


def begun(moment: str, data_dir: Path, known: int) -> bool:
    """Whether a moment has come. Args: known: finished chunks at the start of the process."""
    built = data_dir / "mimic_cxr" / "default"
    return {
        "start-up": lambda: True,
        "chunks": lambda: chunks(data_dir) > known,
        "records": lambda: any(built.glob("incomplete.*/*.array_record*")),
        "side tables": lambda: (built / "1.0.0").exists(),
    }[moment]()


def kill(run: subprocess.Popen, everyone: bool) -> None:
    """`kill -9`, and waits until workers that lost their parent are gone, too."""
    if everyone:
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    run.communicate()
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(run.pid, 0)
            time.sleep(0.02)
        raise SystemExit("Worker processes outlive the build by more than 30 seconds.")


def disturb(
    folder: Path, data_dir: Path, total: int, kills: int, minutes: float, rng: random.Random
) -> collections.Counter[str]:
    """Kills and starts again until `kills` are reached, the minutes are over, or the build ends.

    Returns: kills by moment, "starts", and the chunks "reused" and "made" of the last start."""
    done: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + 60 * minutes
    while True:
        known = chunks(data_dir)
        done["starts"] += 1
        left = 0 if time.monotonic() > deadline else kills - sum(done[moment] for moment in DELAYS)
        later = ["records", "side tables"] if known >= total else ["chunks"]
        moment = rng.choice(["start-up", *later, *later])
        delay, everyone = rng.uniform(0, DELAYS[moment]), rng.random() < 0.5
        run = start(folder, data_dir, rng.choice([1, 2]))
        while left and run.poll() is None:
            if begun(moment, data_dir, known):
                time.sleep(delay)
                break
            time.sleep(0.002)
        if left and run.poll() is None:
            kill(run, everyone)
            done[moment] += 1
            print(
                f"kill {kills - left + 1}: {moment} + {delay:.2f} s, {chunks(data_dir)} of {total} chunks", flush=True
            )
            continue
        output, _ = run.communicate()
        if run.returncode:
            raise SystemExit(f"The build ended with {run.returncode}:\n{output}")
        if found := re.search(r"Reused (\d+) finished chunks of an earlier run, made (\d+)", output):
            done["reused"], done["made"] = int(found[1]), int(found[2])
        return done


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=2600)
    parser.add_argument("--side", type=int, default=96, help="pixels of an image file")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        mimic_folder.write(base / "mimic", flags.images, flags.side, flags.side)
        began = time.monotonic()
        undisturbed = start(base / "mimic", base / "whole", 1)
        undisturbed.communicate()
        if undisturbed.returncode:
            raise SystemExit(f"The undisturbed build ended with {undisturbed.returncode}.")
        print(f"{flags.images} images; undisturbed build: {time.monotonic() - began:.0f} s", flush=True)
        splits = collections.Counter(split for *_, split in mimic_folder.ids(flags.images))
        total = sum(-(-count // CHUNK) for count in splits.values())
        done = disturb(base / "mimic", base / "killed", total, flags.kills, flags.minutes, rng)
        whole, killed = files(base / "whole"), files(base / "killed")
        differing = [name for name in sorted(whole.keys() & killed) if whole[name] != killed[name]]
        alone = sorted(whole.keys() ^ killed)
        size = sum(map(len, whole.values()))
    kills = sum(done[moment] for moment in DELAYS)
    print(f"kills {kills}: " + ", ".join(f"{moment} {done[moment]}" for moment in DELAYS))
    print(f"starts {done['starts']}; last start: chunks reused {done['reused']}, made {done['made']}")
    print(f"files compared {len(whole)}, {size / 2**20:.1f} MiB; differing {len(differing)}, in one only {len(alone)}")
    for name in (*differing, *alone):
        print(f"WRONG  {name}")
    return int(bool(differing or alone) or not kills)


if __name__ == "__main__":
    sys.exit(main())
