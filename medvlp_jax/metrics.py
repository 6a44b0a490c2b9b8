"""What a run writes down: JSON lines, TensorBoard events through CLU, and the console.

The only module that imports CLU, and through it TensorFlow when that is installed; without TensorFlow the same events
are written by tensorboardX.
"""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricWriter:
    """Writes scalars, images and hyperparameters of one run. Process 0 writes, the others only check.

    Files in `workdir`: `metrics.jsonl`, one `{"step": ..., name: value}` per call, and `events.out.tfevents.*`.
    A resumed run first drops the lines after its checkpoint, so that no step appears twice.

    Args: workdir: run folder. resume_step: step that the run continues from; 0 starts afresh.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int = 0, write: bool = True):
        self._write = write
        if not write:
            return
        self.path = Path(workdir) / "metrics.jsonl"
        _drop_lines_after(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._events = _event_writer(Path(workdir))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes named numbers of a step; NaN and infinity become null in the JSON line."""
        if not self._write:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in numbers.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._events.scalars(step, numbers)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes named images, N×H×W×C uint8 or float in [0, 1], to TensorBoard."""
        if self._write:
            self._events.images(step, images)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Writes the flat config once."""
        if self._write:
            plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
            self._events.hyperparameters(plain)

    def close(self) -> None:
        if self._write:
            self._events.close()
            self._file.close()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in _whole_lines(path) if line["step"] <= step]
    part = path.with_suffix(".tmp")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:  # a killed run may leave half a line behind
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, in order, without the half line that a killed or writing run may end with."""
    path = Path(workdir) / "metrics.jsonl"
    return _whole_lines(path) if path.exists() else []


def _event_writer(workdir: Path) -> Any:
    if all(importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard")):
        return _CluEvents(workdir)
    return _TensorboardXEvents(workdir)


class _CluEvents:
    def __init__(self, workdir: Path):
        # TensorFlow greets on stderr unless told otherwise before its import.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        from clu import metric_writers  # imports TensorFlow

        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    def scalars(self, step, values):
        self._writer.write_scalars(step, values)

    def images(self, step, images):
        self._writer.write_images(step, images)

    def hyperparameters(self, values):
        self._writer.write_hparams(dict(values))

    def close(self):
        self._writer.close()


class _TensorboardXEvents:
    def __init__(self, workdir: Path):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(workdir))

    def scalars(self, step, values):
        from tensorboardX.proto.summary_pb2 import Summary  # `add_scalar` would turn R@1 into R_1

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.file_writer.add_summary(summary, step)

    def images(self, step, images):
        for name, batch in images.items():
            self._writer.add_images(name, batch, step, dataformats="NHWC")

    def hyperparameters(self, values):
        from tensorboardX.summary import hparams

        # `add_hparams` opens a second file, of the same name when that happens within the same second.
        for summary in hparams(dict(values), {}):
            self._writer.file_writer.add_summary(summary)

    def close(self):
        self._writer.close()


class NonFiniteError(FloatingPointError):
    """Training met NaN or infinity."""


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises: NonFiniteError naming the step and the terms that are NaN or infinite."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        shown = ", ".join(f"{name}={values[name]}" for name in broken)
        raise NonFiniteError(
            f"Step {step}: {shown} is not finite; training stops and nothing of this step is saved. Try a lower "
            "optimizer.learning_rate, optimizer.clip_norm=1, more optimizer.warmup_steps, or model.dtype=float32."
        )


class Progress:
    """Console lines with rates; keeps the clock of the run.

    Args: total_steps, batch_size: of the run. views: images per example. seconds: training seconds of earlier sessions.
    """

    def __init__(self, *, total_steps: int, batch_size: int, views: int, seconds: float = 0.0):
        self.total_steps, self.batch_size, self.views = total_steps, batch_size, views
        self._before = seconds
        self._start = self._last_time = time.monotonic()
        self._last_step, self._last_wait = None, 0.0

    def seconds(self) -> float:
        """Seconds spent in training so far, earlier sessions included."""
        return self._before + time.monotonic() - self._start

    def pause(self, seconds: float) -> None:
        """Leaves evaluation or checkpoint time out of the next rates."""
        self._last_time += seconds

    def rates(self, step: int, wait_seconds: float) -> dict[str, float]:
        """images/s (augmented views), steps/s and share of time spent waiting for data, since the last call."""
        now = time.monotonic()
        if self._last_step is None:  # the first interval holds the compilation
            self._last_step, self._last_time, self._last_wait = step, now, wait_seconds
            return {}
        elapsed, steps = max(now - self._last_time, 1e-9), step - self._last_step
        rates = {
            "steps_per_second": steps / elapsed,
            "images_per_second": steps * self.batch_size * self.views / elapsed,
            "data_wait_share": min(max(wait_seconds - self._last_wait, 0.0) / elapsed, 1.0),
        }
        self._last_step, self._last_time, self._last_wait = step, now, wait_seconds
        return rates

    def line(self, step: int, values: Mapping[str, float], rates: Mapping[str, float]) -> str:
        """`step 100/1400  7% | loss 9.1 ... | 830 images/s | data wait 1% | ETA 2:35`."""
        parts = [f"step {step:>{len(str(self.total_steps))}}/{self.total_steps} {step / self.total_steps:4.0%}"]
        parts.append("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if rates:
            left = (self.total_steps - step) / max(rates["steps_per_second"], 1e-9)
            parts.append(f"{rates['images_per_second']:.0f} images/s")
            parts.append(f"data wait {rates['data_wait_share']:.0%}")
            parts.append(f"ETA {clock(left)}")
        return " | ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Console:
    """Prints on process 0, to the terminal and to `log.txt` of the run."""

    def __init__(self, workdir: str | Path, *, write: bool = True):
        self._file = (Path(workdir) / "log.txt").open("a", encoding="utf-8") if write else None

    def __call__(self, text: str = "") -> None:
        if self._file is not None:
            print(text, file=sys.stdout, flush=True)
            self._file.write(text + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
