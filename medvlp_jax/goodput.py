"""Where the wall clock of a run goes, over all its attempts: measured while it trains, kept beside its checkpoints.

Goodput is the share of the wall clock spent on steps that stayed; the word and the idea of charging restarts and work
done twice against it are those of Google's ML goodput (https://github.com/AI-Hypercomputer/ml-goodput-measurement).
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.data import whole_files

FILE = "goodput.json"
BEAT_SECONDS = 5.0  # how much of an attempt that was killed may be taken for time between attempts
# What a second of the wall clock was used for, and the words for it.
USES = {
    "step": "steps that stayed",
    "data_wait": "waiting for data",
    "checkpoint": "saving checkpoints",
    "evaluation": "evaluation",
    "startup": "start-up",
    "restore": "restoring",
    "compile": "compiling, with the first step",
    "lost": "steps lost and computed again",
    "down": "between attempts",
}
_REDONE = ("step", "data_wait")  # what an attempt spent behind its last checkpoint is spent again by the next


class Goodput:
    """The account of a run. Process 0 keeps it in `goodput.json`; the others only measure themselves.

    The clock always runs for one use: `startup` first, then what `turn` says, inside `spend` another. While entered, a
    thread writes the account every BEAT_SECONDS, so that what a killed attempt did is known to the next one.

    Args: started: wall-clock time (`time.time()`) at which the process began; now when omitted.
    """

    def __init__(self, workdir: str | Path, *, started: float | None = None, write: bool = True):
        now = time.time()
        started = now if started is None else started
        self._path = Path(workdir) / FILE if write else None
        earlier = _read(self._path)
        self._seconds = dict.fromkeys(USES, 0.0) | earlier["seconds"]
        if earlier["attempts"] and not earlier["done"]:
            self._seconds["down"] += max(started - earlier["time"], 0.0)
        self.attempts = earlier["attempts"] + 1
        self.step, self.steps, self.lost_steps = earlier["step"], earlier["steps"], earlier["lost_steps"]
        self._use, self._since = "startup", time.monotonic() - max(now - started, 0.0)
        self._ended = False
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="goodput", daemon=True)

    def __enter__(self) -> "Goodput":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._write()

    def turn(self, use: str) -> str:
        """From now on the clock runs for `use`. Returns: what it ran for."""
        with self._lock:
            now = time.monotonic()
            self._seconds[self._use] += now - self._since
            before, self._use, self._since = self._use, use, now
            return before

    @contextlib.contextmanager
    def spend(self, use: str) -> Iterator[None]:
        """The clock runs for `use` inside; then again for what it ran for before."""
        before = self.turn(use)
        try:
            yield
        finally:
            self.turn(before)

    def resume(self, step: int, saved: Mapping[str, Any]) -> None:
        """The run goes on from `step`: what was computed behind it is lost.

        Args: saved: `at_save` of that checkpoint; empty when there is none.
        """
        with self._lock:
            for use in _REDONE:
                kept = min(saved.get(use, 0.0), self._seconds[use])
                self._seconds["lost"] += self._seconds[use] - kept
                self._seconds[use] = kept
            self.lost_steps += max(self.step - step, 0)
            self.step, self.steps = step, min(saved.get("steps", 0), self.steps)
        self._write()

    def stepped(self, step: int, *, timed: bool = True) -> None:
        """`step` was computed. Args: timed: its time went to the use `step`, not to `compile`."""
        with self._lock:
            self.step, self.steps = step, self.steps + timed

    def at_save(self) -> dict[str, float]:
        """What a checkpoint must know for `resume`; puts the account on disk first, so that it is never behind."""
        self._write()
        with self._lock:
            return {use: self._seconds[use] for use in _REDONE} | {"steps": self.steps}

    def done(self) -> None:
        """Training has reached its end: time until somebody prolongs the run is not down time."""
        self._write(done=True)

    def seconds(self) -> dict[str, float]:
        """Seconds by use up to now."""
        with self._lock:
            self.turn(self._use)
            return dict(self._seconds)

    def clock(self) -> float:
        """Seconds on which the run was at work, without the time between attempts."""
        return sum(seconds for use, seconds in self.seconds().items() if use != "down")

    def scalars(self) -> dict[str, float]:
        """Metrics `goodput/<use>` in seconds, `goodput/share`, and counts of attempts, timed and lost steps."""
        seconds = self.seconds()
        counts = {
            "share": share(seconds),
            "attempts": self.attempts,
            "steps": self.steps,
            "lost_steps": self.lost_steps,
        }
        return {f"goodput/{name}": value for name, value in (seconds | counts).items()}

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._write()

    def _write(self, done: bool = False) -> None:
        if self._path is None:
            return
        counts = {"attempts": self.attempts, "step": self.step, "steps": self.steps, "lost_steps": self.lost_steps}
        with self._lock, contextlib.suppress(OSError):  # a full disk is the checkpoint's to name
            self._ended |= done
            account = {"seconds": self.seconds(), **counts, "time": time.time(), "done": self._ended}
            whole_files.write_text(self._path, json.dumps(account) + "\n")


def share(seconds: Mapping[str, float]) -> float:
    """Goodput: the part of all seconds that went into steps that stayed; 0 for an empty account."""
    total = sum(seconds.values())
    return seconds["step"] / total if total else 0.0


def _read(path: Path | None) -> dict[str, Any]:
    """The account on disk; an empty one when there is none, or none that can be read."""
    empty = {"seconds": {}, "attempts": 0, "step": 0, "steps": 0, "lost_steps": 0, "time": 0.0, "done": False}
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        seconds = {use: float(found["seconds"][use]) for use in USES if use in found.get("seconds", {})}
        counts = {name: type(empty[name])(found.get(name, empty[name])) for name in empty if name != "seconds"}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return empty
    return counts | {"seconds": seconds}
