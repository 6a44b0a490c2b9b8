#!/usr/bin/env python3
"""Keeps a run going: starts its command again, from the last checkpoint, until it is done.

    python launch/supervise.py -- python -m medvlp_jax.main --config configs/imitate.py --workdir runs/imitate
    python launch/supervise.py -- launch/local_multiprocess.sh 2 -- python -m medvlp_jax.main ...

When one process of a run dies, JAX aborts the others, and nothing inside them can go on. So the command (of one
process, or of a launcher that ends when one of its processes ends) is simply started again; training resumes by itself.

Exit codes of the command: 0 done; 2 an error that trying again does not help; anything else (69: a process did not
come; 75: stopped with its checkpoint saved; 137, 134: killed, aborted) starts it again, unless it dies `--failures`
times in a row without a newer checkpoint. SIGTERM and SIGINT go on to the command and end the supervision. Standard
library alone.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

DONE, NAMED_ERROR = 0, 2


def newest_checkpoint(workdir: Path) -> int:
    """Step of the newest complete checkpoint of a run folder, 0 when there is none."""
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    return max(steps, default=0)


def workdir_of(command: list[str]) -> Path | None:
    """The run folder that a command line names."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word in ("--workdir", "-workdir"):
            return Path(following)
        if word.startswith("--workdir="):
            return Path(word.partition("=")[2])
    return None


def supervise(command: list[str], workdir: Path, *, failures: int, wait: float) -> int:
    """Runs `command` until it is done or hopeless. Returns: its last exit code."""
    told: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(number, _frame):
        told.append(number)
        if process is not None:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    fruitless, starts = 0, 0
    while True:
        before = newest_checkpoint(workdir)
        starts += 1
        say(f"start {starts} from step {before}: {shlex.join(command)}")
        process = subprocess.Popen(command, start_new_session=True)  # signals of a terminal come through pass_on alone
        code = process.wait()
        code = 128 - code if code < 0 else code  # as a shell counts
        after = newest_checkpoint(workdir)
        if code in (DONE, NAMED_ERROR) or told:
            words = {DONE: "done", NAMED_ERROR: "an error that a restart does not help"}.get(code, "told to end")
            say(f"{words}, exit code {code}, newest checkpoint {after}, after {starts} start(s)")
            return code
        fruitless = 0 if after > before else fruitless + 1
        if fruitless >= failures:
            say(f"exit code {code}; {failures} starts in a row brought no newer checkpoint than {after}: giving up")
            return code
        say(f"exit code {code}, newest checkpoint {after}; starting again in {wait:g} s")
        time.sleep(wait)


def say(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="run folder (default: the command's own --workdir)")
    parser.add_argument(
        "--failures", type=int, default=3, help="starts in a row without a newer checkpoint (default 3)"
    )
    parser.add_argument("--wait", type=float, default=5.0, help="seconds before starting again (default 5)")
    parser.add_argument("--dry-run", action="store_true", help="print the command and the run folder")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGS...]")
    flags = parser.parse_args()
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not command:
        parser.error("the command is missing; it goes behind '--'.")
    workdir = flags.workdir or workdir_of(command)
    if workdir is None:
        parser.error("the command has no --workdir; say which run folder to watch with --workdir.")
    if flags.failures < 1 or flags.wait < 0:
        parser.error(f"--failures {flags.failures} must be 1 or more, --wait {flags.wait:g} not negative.")
    if flags.dry_run:
        print(f"{shlex.join(command)}  # watching {workdir}/checkpoints")
        return 0
    return supervise(command, workdir, failures=flags.failures, wait=flags.wait)


if __name__ == "__main__":
    sys.exit(main())
