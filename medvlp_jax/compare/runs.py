"""The processes of a comparison: measuring, calibrating, training; one after the other, each in its own process."""

import collections
import contextlib
import fcntl
import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvlp_jax import config as configs
from medvlp_jax.compare.entries import SAME, Entry
from medvlp_jax.metrics import read_metrics

STOPPED = 75  # what training ends with when a signal stopped it and its checkpoint is saved
CALIBRATION_STEPS = 40
_SHOWN = ("step", "resume", "compile", "text", "trained", "stopped")  # first words of lines of a run that are shown
_KEPT = 1000  # lines of stderr that a reason is looked for in: an error may list every field of a config


class Outcome(NamedTuple):
    """How a process ended. reason: "" when it did well. output: of stdout. peak_bytes: most memory that it held."""

    code: int
    reason: str
    output: str
    peak_bytes: int | None


def training_command(entry: Entry, workdir: Path, fields: Mapping[str, Any]) -> list[str]:
    """The command that trains `entry` in `workdir`; `fields` come before the overrides of the comparison."""
    theirs = [flag for flag in entry.overrides if flag.removeprefix("--config.").partition("=")[0] not in fields]
    ours = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["python", "-m", "medvlp_jax.main", "--config", entry.spec, "--workdir", str(workdir), *ours, *theirs]


def measuring_command(entry: Entry) -> list[str]:
    """The command that prints what a step costs."""
    return ["python", "-m", "medvlp_jax.compare.measure", "--config", entry.spec, *entry.overrides]


def calibrating_command(entry: Entry, workdir: Path, steps: int) -> list[str]:
    """The command that trains for a moment, to see how long a step takes, without scoring anything."""
    quiet = {"eval_every_steps": 0, "checkpoint_every_steps": 0, "final_evaluators": "()", "report": False}
    timed = {"total_steps": steps, "log_every_steps": max(steps // 8, 1), "optimizer.warmup_steps": 0}
    return training_command(entry, workdir, {**timed, **quiet})


def seconds_per_step(workdir: Path) -> float:
    """The median over the intervals between lines of `metrics.jsonl`, waiting for data included; the first left out.

    Raises: ValueError when there are too few lines.
    """
    speeds = [line["steps_per_second"] for line in read_metrics(workdir) if line.get("steps_per_second")]
    if len(speeds) < 2:
        raise ValueError(f"{workdir} holds too few steps to tell how long one takes.")
    return statistics.median(1.0 / speed for speed in speeds[1:])


def finished(workdir: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a run folder holds the scores of the run with these fields (a flat config).

    Fields that only say how a run is run may differ, those that its scores depend on may not.
    """
    try:
        stored = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        step = json.loads((workdir / "scores.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    wanted = json.loads(json.dumps(wanted))
    scored = all(stored.get(name) == value for name, value in wanted.items() if name.startswith(SAME))
    return step == wanted["total_steps"] and scored and not configs.differences(stored, wanted, ("stored", "wanted"))


@contextlib.contextmanager
def alone(out: Path) -> Iterator[int]:
    """Makes the folder of a comparison and locks it. Yields the file descriptor of the lock.

    A process that inherits it holds the lock as long as it lives: also a run whose comparison was killed.
    Raises: ValueError when somebody is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--out={out} is in use: another comparison, or a run that a killed one left behind. Wait for it, or "
                "end it."
            ) from None
        yield file.fileno()


class Processes:
    """Starts commands and shows how they get on. SIGTERM and SIGINT go on to the one that runs; then `stopped` is True.

    Args: say: takes lines of progress. lock: file descriptor that the processes inherit (see `alone`).
    """

    def __init__(self, say: Callable[[str], None], lock: int | None = None):
        self.stopped = False
        self._say = say
        self._inherited = () if lock is None else (lock,)
        self._process: subprocess.Popen | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Processes":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self, command: Sequence[str], label: str) -> Outcome:
        """Runs `command` (`python` is the Python of this process) to its end."""
        if self.stopped:
            return Outcome(STOPPED, "not started", "", None)
        self._say(f"          {shlex.join(command)}")
        arguments = [sys.executable if word == "python" else word for word in command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        # In a session of its own: what a terminal sends comes through `_pass_on` alone, once.
        process = self._process = subprocess.Popen(arguments, start_new_session=True, pass_fds=self._inherited, **pipes)
        output: list[str] = []
        errors: collections.deque[str] = collections.deque(maxlen=_KEPT)
        readers = [
            threading.Thread(target=self._read, args=(process.stdout, output, label), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, errors, label), daemon=True),
        ]
        for reader in readers:
            reader.start()
        if self.stopped:  # the signal came before there was a process to tell
            process.send_signal(signal.SIGTERM)
        peak = None
        while True:
            peak = max(filter(None, (peak, _most_memory(process.pid))), default=None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                break
        for reader in readers:
            reader.join()
        self._process = None
        code = process.returncode
        return Outcome(code, reason(code, errors) if code else "", "".join(output), peak)

    def _read(self, lines, kept, label: str) -> None:
        for line in lines:
            kept.append(line)
            if line[:1].isalpha() and line.split(maxsplit=1)[0] in _SHOWN:
                self._say(f"          [{label}] {line.rstrip()}")

    def _pass_on(self, number, _frame) -> None:
        self.stopped = True
        if self._process is not None:
            self._process.send_signal(number)


def reason(code: int, errors: Sequence[str]) -> str:
    """Why a process ended with `code`, in one line: the last error that it named."""
    lines = [line.strip() for line in errors if line.strip()]
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    text = " ".join(" ".join(lines[named[-1] :] if named else lines[-1:]).split())
    text = text if len(text) <= 500 else f"{text[:500]} ..."
    if code == STOPPED:
        return "stopped by a signal, its checkpoint is saved; the same command resumes"
    if code < 0:
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
    return text or f"exit code {code} without a word"


def _most_memory(pid: int) -> int | None:
    """Peak resident bytes of a process (VmHWM of Linux); None elsewhere, and for one that has ended."""
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
