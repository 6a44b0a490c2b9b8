"""Peak memory of a build of `mimic_cxr`, by its number of images.

    python benchmarks/preparation_memory.py --images 1000 10000 [100000]

Every build is the command that users run, on a folder in the layout of MIMIC-CXR-JPG (`mimic_folder.py`) with small
pictures, stored at 64 pixels with incompressible noise, so that their number grows and nothing else does. Printed are
the largest resident set (VmHWM of /proc) of the main process, also before the first image is read (the plan: tables
joined, files found), and of any worker; and what a further record adds to them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import mimic_folder  # noqa: E402


def peak(pid: int) -> int:
    """Bytes of the largest resident set of a process so far; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in file.read_text().split()]
        except OSError:
            continue
    return found


def build(folder: Path, data_dir: Path, workers: int) -> dict[str, float]:
    """Peaks in bytes (main, plan, worker) and seconds of one build."""
    command = [sys.executable, "-m", "medvlp_jax.prepare", "mimic_cxr", "--root", str(folder), "--size", "64"]
    command += ["--data_dir", str(data_dir), "--workers", str(workers)]
    start, found = time.perf_counter(), {"main": 0, "plan": 0, "worker": 0}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}) as run:
        while run.poll() is None:
            found["main"] = max(found["main"], peak(run.pid))
            if not any(data_dir.glob(".staging/*/*/*/*.msgpack")) and not found["worker"]:
                found["plan"] = found["main"]
            found["worker"] = max(found["worker"], *map(peak, children(run.pid)), 0)
            time.sleep(0.05)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}.")
    return {**found, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--side", type=int, default=96, help="pixels of an image file")
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("needs /proc, that is Linux.")
    print(f"{'images':>8s} {'plan':>10s} {'main':>10s} {'worker':>10s} {'seconds':>8s}   a further record")
    before: tuple[int, dict[str, float]] | None = None
    for count in flags.images:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "mimic"
            mimic_folder.write(folder, count, flags.side, flags.side)
            found = build(folder, Path(temporary) / "data", flags.workers)
        more = ""
        if before is not None:
            slopes = {
                name: (found[name] - before[1][name]) / (count - before[0]) for name in ("plan", "main", "worker")
            }
            more = ", ".join(f"{name} {slope:.0f} bytes" for name, slope in slopes.items())
        sizes = " ".join(f"{found[name] / 2**20:6.0f} MiB" for name in ("plan", "main", "worker"))
        print(f"{count:8d} {sizes} {found['seconds']:8.0f}   {more}", flush=True)
        before = count, found


if __name__ == "__main__":
    main()
