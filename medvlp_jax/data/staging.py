"""Resumable builds: work items become examples in chunks, each chunk one checksummed file that a later run reuses.

A builder module under `tfds_builders/` has three public things:

* `plan(config) -> Plan` (or just a dict): the work items of every split, and the rows refused while planning;
* `make_examples(item, config) -> [(key, example), ...]`: pure and at the top level of its module, so that worker
  processes can import it; an item that cannot be used is a `Rejection`, returned, raised, or put in the list;
* a `tfds.core.GeneratorBasedBuilder` with the class attribute `staging = None`, whose `_split_generators` returns
  `split_generators(self, plan(self.builder_config), make_examples)`.

Killed at any moment, a rerun redoes only the unfinished chunks, and the built files are the same bytes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from medvlp_jax.data import beam_chunks
from medvlp_jax.data.packed import Packed, decode_array, encode_array, pack, unpack
from medvlp_jax.data.records import SOURCE

FORMAT = 1
_TFDS_CONFIG_FIELDS = ("release_notes", "supported_versions", "tags", "version", "description")

Example = tuple[str | int, dict[str, Any]]
MakeExamples = Callable[[Any, Any], "Sequence[Example | Rejection] | Rejection"]


class Rejection(Exception):
    """An input that cannot become a record. `reason` is a short slug that is counted; none of the fields holds
    report text.

    Args: reason: e.g. "missing_file". row: line of the manifest, where there is one. item: an id or path. detail:
    more words.
    """

    def __init__(self, reason: str, *, row: int = -1, item: str = "", detail: str = ""):
        super().__init__(reason, row, item, detail)
        self.reason, self.row, self.item, self.detail = reason, row, item, detail

    def __str__(self) -> str:
        return f"{self.reason} (row {self.row}, {self.item}): {self.detail}"


@dataclasses.dataclass
class Plan:
    """What a build will do.

    splits: split name -> work items (JSON-able values), a list or a `Packed`. rejections: rows refused before any work.
    provenance: JSON-able facts about the inputs (manifest checksum, counts), stored in `provenance.json`.
    """

    splits: Mapping[str, Sequence[Any]]
    rejections: Sequence[Rejection] = ()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


class Staging:
    """Where chunks are kept and how they are made; after a build it holds the rejections and the raw-id rows.

    Args: directory: folder for the chunk files; None keeps nothing and runs in this process. workers: processes,
      default one per core. chunk: work items per file. progress: show a bar. beam: options of an Apache Beam pipeline
      that makes the chunks instead; None for processes of our own.
    Raises: ValueError for numbers below 1, and for `beam` without Apache Beam.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        workers: int | None = None,
        chunk: int = 64,
        progress: bool = False,
        beam: str | None = None,
    ):
        if chunk < 1 or (workers is not None and workers < 1):
            raise ValueError(f"chunk={chunk} and workers={workers} must be at least 1.")
        if beam is not None:
            beam_chunks.check(beam)
        self.beam = beam
        self.directory = Path(directory) if directory is not None else None
        self.workers = workers or os.cpu_count() or 1
        self.chunk, self.progress = chunk, progress
        self.rejections: list[Rejection] = []
        self.sources = Packed()
        self.provenance: dict[str, Any] = {}
        self.facts: collections.Counter[str] = collections.Counter()
        self.reused = self.made = 0

    def remove(self) -> None:
        """Delete the chunk files."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def split_generators(
    builder: Any, plan: Plan | Mapping[str, Sequence[Any]], make_examples: MakeExamples
) -> dict[str, Iterator[Example]]:
    """For `_split_generators`: stages every split, then returns split -> iterator of examples; empty splits are left
    out.

    Reads `builder.staging` (a `Staging`, or None for a build without chunk files) and `builder.builder_config`.
    Raises: ValueError when no split has a single example.
    """
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    staging = getattr(builder, "staging", None) or Staging()
    staging.rejections.extend(plan.rejections)
    staging.provenance.update(plan.provenance)
    splits = dict(plan.splits)
    del plan  # where its items are a list, they take ten times as much memory as the jobs made of them
    jobs = {
        split: _jobs(split, splits.pop(split), make_examples, builder.builder_config, staging) for split in list(splits)
    }
    _finish([job for of_split in jobs.values() for job in of_split], make_examples, builder.builder_config, staging)
    generators = {}
    for split, of_split in jobs.items():
        examples = _examples(split, of_split, make_examples, builder.builder_config, staging)
        first = next(examples, None)
        if first is not None:
            generators[split] = _chain(first, examples)
    if not generators:
        raise ValueError(f"No record can be built. Rejected: {count_reasons(staging.rejections) or 'nothing'}.")
    return generators


def _chain(first: Example, rest: Iterator[Example]) -> Iterator[Example]:
    yield first
    yield from rest


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Rejections per reason, most frequent first."""
    counts: dict[str, int] = {}
    for rejection in rejections:
        counts[rejection.reason] = counts.get(rejection.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def staged_examples(
    split: str, items: Sequence[Any], make_examples: MakeExamples, config: Any, staging: Staging
) -> Iterator[Example]:
    """Yields the examples of `items` in order. All chunks are finished before the first example comes out.

    Rejections and raw-id rows are appended to `staging` while the examples are read.
    Raises: RuntimeError when a worker process dies, and what `make_examples` raises; finished chunks stay.
    """
    jobs = _jobs(split, items, make_examples, config, staging)
    _finish(jobs, make_examples, config, staging)
    yield from _examples(split, jobs, make_examples, config, staging)


@dataclasses.dataclass
class _Job:
    """One chunk of work items, where it goes, and the fingerprint of everything that decides its content.

    Once its file is made, `_finish` lets the items go.
    """

    path: Path
    fingerprint: str
    count: int
    packed: bytes

    @property
    def items(self) -> list[Any]:
        """The work items."""
        return unpack(self.packed)


def _jobs(split: str, items: Sequence[Any], make_examples: MakeExamples, config: Any, staging: Staging) -> list[_Job]:
    base = json.dumps([FORMAT, config_dict(config), code_digest(make_examples)], sort_keys=True, default=str)
    jobs = []
    rest = items.drain() if isinstance(items, Packed) else iter(items)
    for number, chunk in enumerate(iter(lambda: list(itertools.islice(rest, staging.chunk)), [])):
        content = base + json.dumps(chunk, sort_keys=True, default=str)
        path = (staging.directory or Path()) / f"{split}-{number:06d}.msgpack"
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        jobs.append(_Job(path, fingerprint, len(chunk), pack(chunk)))
    return jobs


def _finish(jobs: list[_Job], make_examples: MakeExamples, config: Any, staging: Staging) -> None:
    """Makes every chunk file that is not there yet, of all splits at once."""
    from tqdm import tqdm

    if staging.directory is None:
        return
    staging.directory.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs if _read(job) is None]
    staging.reused += len(jobs) - len(todo)
    staging.made += len(todo)
    total, left = (sum(job.count for job in some) for some in (jobs, todo))
    with tqdm(total=total, initial=total - left, unit="item", disable=not staging.progress, leave=False) as bar:
        if staging.beam is None:
            sizes = _run(todo, make_examples, config, staging.workers)
        else:
            work = functools.partial(_stage_chunk, make_examples=make_examples, config=config)
            sizes = beam_chunks.run(todo, work, staging.beam)
        for size in sizes:
            bar.update(size)
    for job in jobs:
        job.packed = b""


def _examples(
    split: str, jobs: list[_Job], make_examples: MakeExamples, config: Any, staging: Staging
) -> Iterator[Example]:
    for job in jobs:
        payload = _make(job.items, make_examples, config) if staging.directory is None else _read(job)
        if payload is None:
            raise RuntimeError(
                f"The staged file {job.path} changed while it was being used. Run the same command again."
            )
        staging.rejections.extend(
            Rejection(reason, row=row, item=item, detail=detail) for reason, row, item, detail in payload["rejections"]
        )
        for key, example in payload["examples"]:
            source = example.pop(SOURCE, None)
            if source is not None:
                staging.facts.update(source.pop("facts", ()))
                staging.sources.append({"split": split, **source})
            yield key, example


def _run(jobs: list[_Job], make_examples: MakeExamples, config: Any, workers: int) -> Iterator[int]:
    work = functools.partial(_stage_chunk, make_examples=make_examples, config=config)
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield work(job)
        return
    context = multiprocessing.get_context("spawn")  # JAX and OpenCV threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RuntimeError(
                "A worker process died: most likely killed for memory, or the main script starts work without an "
                "`if __name__ == '__main__':` guard. Finished chunks are kept: run the same command again, with fewer "
                "workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)

    def leave_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # a parent killed with SIGKILL cannot tell its workers

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _stage_chunk(job: _Job, *, make_examples: MakeExamples, config: Any) -> int:
    _write(job.path, {"fingerprint": job.fingerprint, **_make(job.items, make_examples, config)})
    return job.count


def _make(chunk: list[Any], make_examples: MakeExamples, config: Any) -> dict[str, Any]:
    examples, rejections = [], []
    for item in chunk:
        try:
            made = make_examples(item, config)
        except Rejection as rejection:
            made = rejection
        for result in [made] if isinstance(made, Rejection) else made:
            if isinstance(result, Rejection):
                rejections.append([result.reason, result.row, result.item, result.detail])
            else:
                examples.append(result)
    return {"examples": examples, "rejections": rejections}


def config_dict(config: Any) -> dict[str, Any]:
    """A builder config's own fields, JSON-able: what decides the content of a build."""
    if not dataclasses.is_dataclass(config):
        return {"config": config}
    fields = dataclasses.asdict(config)  # type: ignore[arg-type]
    own = {name: value for name, value in fields.items() if name not in _TFDS_CONFIG_FIELDS}
    return json.loads(json.dumps(own, sort_keys=True, default=str))


def code_digest(make_examples: Callable[..., Any]) -> str:
    """Digest of the Python files beside `make_examples`, of those it shares with its neighbours one folder up, and of
    this package, so that edited code never meets stale chunks."""
    while isinstance(make_examples, functools.partial):
        make_examples = make_examples.func
    module = importlib.import_module(make_examples.__module__)
    folders = {Path(__file__).parent}
    if getattr(module, "__file__", None):
        folder = Path(module.__file__).parent  # type: ignore[arg-type]
        folders |= {folder, folder.parent} if (folder / "__init__.py").exists() else {folder}
    digest = hashlib.sha256()
    for folder in sorted(folders):
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("test_"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, payload: dict[str, Any]) -> None:
    body = msgpack.packb(payload, default=encode_array, use_bin_type=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(job: _Job) -> dict[str, Any] | None:
    """The chunk, or None when it is absent, damaged, or was made from other inputs."""
    try:
        data = job.path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    payload = msgpack.unpackb(data[32:], ext_hook=decode_array, raw=False, strict_map_key=False)
    return payload if payload["fingerprint"] == job.fingerprint else None
