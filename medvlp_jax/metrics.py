"""What a run writes down: JSON lines, TensorBoard events through CLU, and the console.

The only module that imports CLU, and through it TensorFlow when that is installed; without TensorFlow the same events
are written by tensorboardX.
"""

import collections
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax import goodput
from medvlp_jax.data import whole_files


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


class ExampleLog:
    """`examples.jsonl` of a run: `{"step": ..., "index": [...]}`, the records that each step consumed, in batch order.

    Numbers are indices into the training split. As in `metrics.jsonl`, a resumed run first drops the lines after its
    checkpoint: what stays is the history of the parameters, each step once.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int):
        path = Path(workdir) / "examples.jsonl"
        _drop_lines_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, step: int, index_B: np.ndarray) -> None:
        self._file.write(json.dumps({"step": step, "index": index_B.tolist()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in _whole_lines(path) if line["step"] <= step]
    whole_files.write_text(path, "".join(kept))


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
    """CLU's writer. A thread of its own opens it, because TensorFlow's import takes seconds, and calls it in order."""

    def __init__(self, workdir: Path):
        # TensorFlow greets on stderr unless told otherwise before its import.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._waiting = collections.deque([self._thread.submit(self._open, workdir)])

    def _open(self, workdir: Path) -> None:
        from clu import metric_writers  # imports TensorFlow

        self._writer = metric_writers.SummaryWriter(str(workdir))

    def _call(self, name: str, *args: Any) -> None:
        """Has the thread call the writer behind all earlier calls. Raises: what one of those raised."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(lambda: getattr(self._writer, name)(*args)))

    def scalars(self, step, values):
        self._call("write_scalars", step, values)

    def images(self, step, images):
        self._call("write_images", step, images)

    def hyperparameters(self, values):
        self._call("write_hparams", dict(values))

    def close(self):
        self._call("close")
        self._thread.shutdown()
        for call in self._waiting:
            call.result()


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
    """Console lines with rates.

    Args: total_steps, batch_size: of the run. views: images per example.
    """

    def __init__(self, *, total_steps: int, batch_size: int, views: int):
        self.total_steps, self.batch_size, self.views = total_steps, batch_size, views
        self._last: tuple[int, float, float] | None = None

    def rates(self, step: int, seconds: Mapping[str, float]) -> dict[str, float]:
        """images/s (augmented views), steps/s and share of time spent waiting for data, since the last call.

        Args: seconds: spent so far, by use (see `goodput`); compiling, saving and evaluating do not slow the rates.
        """
        last, self._last = self._last, (step, seconds["step"] + seconds["data_wait"], seconds["data_wait"])
        if last is None:  # the first step of an attempt holds the compilation
            return {}
        steps, elapsed, waited = (now - before for now, before in zip(self._last, last, strict=True))
        elapsed = max(elapsed, 1e-9)
        return {
            "steps_per_second": steps / elapsed,
            "images_per_second": steps * self.batch_size * self.views / elapsed,
            "data_wait_share": min(max(waited, 0.0) / elapsed, 1.0),
        }

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


def spent_line(values: Mapping[str, float]) -> str:
    """`62% of 3:20 in 2 attempt(s): steps that stayed 2:04, ...`, from `goodput.Goodput.scalars`."""
    seconds = {use: values[f"goodput/{use}"] for use in goodput.USES}
    shown = ", ".join(f"{goodput.USES[use]} {clock(value)}" for use, value in seconds.items() if value >= 0.5)
    lost = f" ({values['goodput/lost_steps']:.0f} steps lost)" if values["goodput/lost_steps"] else ""
    attempts = f"{values['goodput/attempts']:.0f} attempt(s)"
    return f"{values['goodput/share']:.0%} of {clock(sum(seconds.values()))} in {attempts}{lost}: {shown}"


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
