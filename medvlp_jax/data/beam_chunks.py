"""Chunks of a build made by an Apache Beam pipeline instead of worker processes.

The pipeline maps the same function over the same chunks and leaves the same files in the staging folder, which its
workers must share with the machine that started it (a network file system). Everything behind it, from going on after
an interruption to the bytes of the records, is as without Beam.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

INSTALL = "pip install 'apache-beam>=2.70'"


def check(options: str) -> None:
    """Raises ValueError without Apache Beam, naming how to install it, and for options that no pipeline has."""
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError(f"--beam needs Apache Beam, the extra `beam` of this package, which is not here: {INSTALL}.")
    _pipeline_options(options)


def _pipeline_options(options: str) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ValueError(f"--beam_options {options!r}: {error}.") from None
    if loose := [word for word in words if not word.startswith("-")]:
        raise ValueError(f"--beam_options {options!r}: write --option=value; {loose[0]!r} is none.")
    # Without explicit flags, Beam reads the command line of this program.
    return PipelineOptions(flags=words)


def run(jobs: Sequence[Any], work: Callable[[Any], int], options: str) -> Iterator[int]:
    """Runs `work` on every job in a pipeline, then yields what it returned.

    Args: jobs: of `staging`, with a `path` each. work: makes the file of a job and returns its number of items; can be
      pickled by name. options: of the pipeline, as on a command line.
    Raises: RuntimeError when files are missing afterwards; what the pipeline raises.
    """
    import apache_beam as beam

    if not jobs:
        return
    jobs = [dataclasses.replace(job, path=job.path.absolute()) for job in jobs]  # workers start in other folders
    with beam.Pipeline(options=_pipeline_options(options)) as pipeline:
        # Without a reshuffle, runners make all of a created list one bundle, the work of one worker.
        _ = pipeline | beam.Create(jobs, reshuffle=False) | beam.Reshuffle() | beam.Map(_Quietly(work))
    missing = sum(not job.path.exists() for job in jobs)
    if missing:
        raise RuntimeError(
            f"The pipeline ended, but {missing} of {len(jobs)} chunk files are not in {jobs[0].path.parent}. Its "
            "workers must write to the same file system: choose a --data_dir on a network drive that all of them mount."
        )
    for job in jobs:
        yield job.count


@dataclasses.dataclass
class _Quietly:
    """`work` with one thread for OpenCV, as in our own worker processes."""

    work: Callable[[Any], int]

    def __call__(self, job: Any) -> int:
        import cv2

        cv2.setNumThreads(1)
        return self.work(job)
