"""How often a run of several processes survives `kill -9`, and whether it comes out as if nothing had happened.

    python benchmarks/survival.py --kills 20 [--minutes 20] [--seed 0] [--folder /tmp/survival]

A tiny run (phantoms, a narrow trunk, gloo between processes on the CPU) is trained twice with the same config: once
undisturbed, once under `launch/supervise.py` while processes of it are killed at seeded random moments, a third each
during start-up, between steps, and while a checkpoint is being written. Counted, not assumed:

  * restarts that looked for a checkpoint, and how many of them resumed from the newest one that was complete when the
    process died, or a newer one (a save that the others finished);
  * records repeated or skipped within an epoch, from the records that the steps behind the final parameters consumed
    (`examples.jsonl`), against the permutation of each epoch;
  * arrays of the last checkpoint that differ in any bit from those of the undisturbed run; steps whose loss differs;
  * starts beyond one per kill: deaths that nobody caused.

Exit code 1 when any of them is not as it should be.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402  the run that the tests use too

MOMENTS = ("save", "start", "step")
SAVE_EVERY = 2
POLL = 0.005
BEGUN, STARTED = "run       ", "model     "  # lines of log.txt: the first of a start; behind looking for a checkpoint


def command(folder: Path, run: str, *, steps: int, processes: int) -> list[str]:
    """The training command of one of the two runs, with its launcher."""
    more = {"total_steps": steps, "checkpoint_every_steps": SAVE_EVERY, "keep_checkpoints": 2, "log_examples": True}
    training = tiny.command(folder / "data", folder / run, final_evaluators="()", **more)
    logs = ["--logs", str(folder / f"{run}_logs")]
    return [str(ROOT / "launch" / "local_multiprocess.sh"), str(processes), "--grace", "1", *logs, "--", *training]


def processes_of(workdir: Path) -> list[int]:
    """Training processes that name this run folder, by /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"medvlp_jax.main" in words and str(workdir).encode() in words and b"-m" in words[:4]:
            found.append(int(file.parent.name))
    return found


def complete(workdir: Path) -> int:
    """Newest checkpoint that was renamed into place, 0 when there is none."""
    return max((int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdecimal()), default=0)


def saving(workdir: Path) -> bool:
    """A checkpoint is being written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def disturb(
    run: subprocess.Popen, workdir: Path, *, kills: int, rng: random.Random, processes: int, seconds: dict[str, float]
) -> list[dict]:
    """Kills processes of a supervised run. Returns: one dict per kill."""
    done: list[dict] = []
    deadline = time.monotonic() + seconds["limit"]

    def until(true) -> bool:
        return wait_for(true, run, deadline)

    def one(moment: str) -> dict | None:
        """Waits for the moment, kills, waits until all are gone; None when the moment does not come."""
        log, history = workdir / "log.txt", workdir / "examples.jsonl"
        begun = size(log)
        if not until(lambda: len(processes_of(workdir)) == processes):
            return None
        if moment == "start":
            time.sleep(rng.uniform(0, seconds["start"]))
        else:  # past the point where it resumes
            if not until(lambda: STARTED in log_since(workdir, begun)):
                return None
            known, steps = lines(history), rng.randrange(1, 2 * SAVE_EVERY + 1)
            if not until(lambda: lines(history) >= known + steps if moment == "step" else saving(workdir)):
                return None
            time.sleep(rng.uniform(0, seconds[moment]))
        alive = processes_of(workdir)
        hit = alive if rng.random() < 1 / 3 else rng.sample(alive, min(1, len(alive)))
        found = {"newest": complete(workdir), "saving": saving(workdir), "log": size(log), "step": lines(history)}
        dead = [victim for victim in hit if kill(victim)]
        until(lambda: not set(alive) & set(processes_of(workdir)))
        return {"moment": moment, "processes": len(dead), **found}

    while len(done) < kills and run.poll() is None and time.monotonic() < deadline:
        made = one(MOMENTS[len(done) % len(MOMENTS)])
        if made and made["processes"]:
            done.append(made)
            print(f"kill {len(done)}/{kills} {made}", file=sys.stderr, flush=True)
    return done


def kill(victim: int) -> bool:
    """SIGKILL; False for a process that was gone."""
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(true, run: subprocess.Popen, deadline: float) -> bool:
    """Polls until `true()`; False when the run ends or time is up before."""
    while not true():
        if run.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def log_since(workdir: Path, begin: int, end: int | None = None) -> str:
    path = workdir / "log.txt"
    return path.read_bytes()[begin:end].decode(errors="replace") if path.exists() else ""


def restarts(workdir: Path, kills: list[dict]) -> dict[str, int]:
    """What every start behind a kill found, from the log between that kill and the next."""
    counts: collections.Counter[str] = collections.Counter()
    newest = 0  # known complete since the last start that looked
    for kill, following in zip(kills, [*kills[1:], None], strict=True):
        newest = max(newest, kill["newest"])
        text = log_since(workdir, kill["log"], following and following["log"])
        text = text[text.find(BEGUN) :] if BEGUN in text else ""  # not what the killed start still said
        if STARTED not in text:
            counts["killed before they looked"] += 1
            continue
        counts["looked"] += 1
        found = [int(line.split()[2].rstrip(",")) for line in text.splitlines() if line.startswith("resume ")]
        counts["found the newest"] += (found[0] if found else 0) >= newest
        counts["with a checkpoint to find"] += newest > 0
    return dict(counts)


def difference(run: Path, other: Path, step: int) -> dict[str, int]:
    """Arrays of the checkpoints of `step`, and losses, that are not the same to the last bit."""
    ours, theirs = tiny.parameters(run, step), tiny.parameters(other, step)
    unequal = [
        k for k in ours.keys() | theirs.keys() if k not in ours or k not in theirs or not same(ours[k], theirs[k])
    ]
    losses = tiny.losses(run), tiny.losses(other)
    steps = losses[0].keys() | losses[1].keys()
    return {
        "arrays": len(ours),
        "arrays that differ": len(unequal),
        "losses": len(steps),
        "losses that differ": sum(losses[0].get(n) != losses[1].get(n) for n in steps),
    }


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def survive(folder: Path, *, kills: int, minutes: float, seed: int, processes: int = 2) -> dict:
    """Both runs and what came of them. Args: minutes: after these no more kills; the run then goes on to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data" / "tower").exists():
        tiny.make_data(folder / "data")
    steps = SAVE_EVERY * (kills + 2)
    env = tiny.environment()  # one compilation for all starts, and no TensorFlow
    began = time.monotonic()
    whole = subprocess.run(command(folder, "whole", steps=steps, processes=processes), env=env, cwd=ROOT, **QUIET)
    if whole.returncode:
        raise SystemExit(
            f"The undisturbed run ended with {whole.returncode}:\n{whole.stdout[-2000:]}{whole.stderr[-2000:]}"
        )
    account = json.loads((folder / "whole" / "goodput.json").read_text())["seconds"]
    seconds = {
        "start": account["startup"] + account["compile"] / 2,
        "step": (account["step"] + account["data_wait"]) / steps,
        "save": max(account["checkpoint"] / (steps / SAVE_EVERY), 0.02),
        "limit": 60 * minutes,
    }
    undisturbed = time.monotonic() - began
    supervised = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--wait", "0", "--failures", str(kills + 3)]
    words = [*supervised, "--workdir", str(folder / "killed"), "--"]
    words += command(folder, "killed", steps=steps, processes=processes)
    began = time.monotonic()
    with (folder / "supervise.log").open("w") as log:
        run = subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
        try:
            done = disturb(
                run, folder / "killed", kills=kills, rng=random.Random(seed), processes=processes, seconds=seconds
            )
            run.wait(timeout=60 * minutes + 1200)
        finally:
            if run.poll() is None:
                run.send_signal(signal.SIGTERM)
                run.wait()
    said = (folder / "supervise.log").read_text()
    if run.returncode:
        raise SystemExit(f"The disturbed run ended with {run.returncode}:\n{said[-4000:]}")
    killed = folder / "killed"
    by_moment = collections.Counter(kill["moment"] for kill in done)
    starts = said.count("supervise: start ")
    return {
        "kills": len(done),
        "asked for": kills,
        **{f"kills during {moment}": by_moment[moment] for moment in MOMENTS},
        "kills with a checkpoint half written": sum(kill["saving"] for kill in done),
        "kills of all processes": sum(kill["processes"] > 1 for kill in done),
        "starts": starts,
        "starts beyond one per kill": starts - 1 - len(done),
        **{f"restarts: {name}": count for name, count in restarts(killed, done).items()},
        **tiny.order(killed),
        **difference(killed, folder / "whole", steps),
        "goodput": json.loads((killed / "metrics.jsonl").read_text().splitlines()[-1]),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "minutes undisturbed": round(undisturbed / 60, 1),
    }


QUIET = {"capture_output": True, "text": True, "check": False}
MUST_BE_ZERO = (
    *("starts beyond one per kill", "steps out of order", "repeated within an epoch", "skipped within an epoch"),
    *("not where the seed puts them", "arrays that differ", "losses that differ"),
)


def failures(found: dict) -> list[str]:
    """What is not as it should be."""
    wrong = [f"{name}: {found[name]}" for name in MUST_BE_ZERO if found[name]]
    looked, newest = found.get("restarts: looked", 0), found.get("restarts: found the newest", 0)
    return wrong + ([f"restarts that found the newest checkpoint: {newest} of {looked}"] if newest < looked else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30.0, help="no more kills after so long (default 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for data, both runs and logs")
    flags = parser.parse_args()
    if flags.kills < 1 or flags.minutes <= 0 or flags.processes < 1:
        parser.error("--kills, --minutes and --processes must be positive.")
    if any((flags.folder / run).exists() for run in ("whole", "killed")):
        parser.error(f"--folder {flags.folder} holds an earlier benchmark; name a new one.")
    if not Path("/proc/self/cmdline").exists():
        parser.error("needs /proc, that is Linux.")
    tiny.SESSION = flags.folder.resolve() / "session"
    found = survive(
        flags.folder.resolve(), kills=flags.kills, minutes=flags.minutes, seed=flags.seed, processes=flags.processes
    )
    for name, value in found.items():
        if not isinstance(value, dict):
            print(f"{name:42s} {value:>10}")
    for name in (*failures(found),):
        print(f"WRONG      {name}")
    print(json.dumps({"benchmark": "survival", "seed": flags.seed, "processes": flags.processes, **found}))
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
