"""Records in a fixed random order -> batches of this process -> sharded arrays on its devices.

Training position n (0, 1, 2, ...) is epoch n // N and record permutation(seed, epoch)[n % N]. Global batch k holds the
positions k·B .. (k+1)·B - 1, of which process p of P makes the p-th contiguous slice. The random numbers of an example
depend on (seed, epoch, record) alone. So batches are the same for any number of threads, workers and processes, and a
run resumes from one number: how many examples the whole job has consumed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import absl.flags
import cv2
import grain
import jax
import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]
Preprocess = Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]

_ENDLESS = 1 << 60  # length of the training stream, in local examples
_GROUP = 8  # examples that a thread makes in one go, at most; 16 are no faster
_ORDER, _AUGMENT = 0, 1  # second word of the Philox key: what the random numbers are for


class Source(Protocol):
    """Random access to records, such as `records.RecordSource` or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


# ---- order and random numbers -----------------------------------------------------------


@functools.lru_cache(maxsize=2)  # positions move on slowly: the current epoch and the one being prefetched
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Order of the `size` records in one epoch: a permutation that depends on (seed, epoch, size) alone."""
    return _generator(seed, _ORDER, epoch, 0).permutation(size)


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for one record in one epoch; streams of different triples never meet."""
    return _generator(seed, _AUGMENT, epoch, index)


def _generator(seed: int, purpose: int, epoch: int, index: int) -> np.random.Generator:
    # The counter's upper words name the stream; its lower 128 bits count the numbers drawn from it.
    key = np.array([seed, purpose], np.uint64)
    counter = np.array([0, 0, epoch, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclasses.dataclass(frozen=True)
class _Slice:
    """Local example i -> position in the sequence that all processes share."""

    batch_size: int
    process_index: int
    process_count: int

    @property
    def local_size(self) -> int:
        return self.batch_size // self.process_count

    def position(self, i: int) -> int:
        batch, offset = divmod(int(i), self.local_size)
        return batch * self.batch_size + self.process_index * self.local_size + offset


@dataclasses.dataclass(frozen=True)
class _TrainOrder:
    """Local example i -> (epoch, record index)."""

    share: _Slice
    size: int
    seed: int
    start: int
    reshuffle: bool

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, i: int) -> tuple[int, int]:
        epoch, place = divmod(self.start + self.share.position(i), self.size)
        return epoch, int(permutation(self.seed, epoch if self.reshuffle else 0, self.size)[place])


@dataclasses.dataclass(frozen=True)
class _EvalOrder:
    """Local example i -> (0, record index), or (0, -1) for padding."""

    share: _Slice
    size: int

    def __len__(self) -> int:
        return -(-self.size // self.share.batch_size) * self.share.local_size

    def __getitem__(self, i: int) -> tuple[int, int]:
        position = self.share.position(i)
        return 0, position if position < self.size else -1


# ---- one example -----------------------------------------------------------


class RecordError(ValueError):
    """A record that cannot be read or preprocessed; names the split and the index, never the content."""


class _MakeExample:
    def __init__(self, source: Source, preprocess_fn: Preprocess, seed: int):
        self.source, self.preprocess_fn, self.seed = source, preprocess_fn, seed

    def __call__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        try:
            record = {**self.source[index], "index": np.int64(index)}
            return self.preprocess_fn(record, example_rng(self.seed, epoch, index))
        except Exception as error:
            raise RecordError(f"{_describe(self.source)}, record {index}: {type(error).__name__}: {error}") from error


class _MakeEvalExample(_MakeExample):
    """Adds `_mask`; padding is zeros shaped like record 0."""

    def __call__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        example = super().__call__((epoch, max(index, 0)))
        if index < 0:
            example = {name: np.zeros_like(value) for name, value in example.items()}
        return {**example, "_mask": np.bool_(index >= 0)}


@dataclasses.dataclass(frozen=True)
class _Groups:
    """`size` examples in a row as one element, so that Grain does its work per element once for all of them."""

    order: _TrainOrder | _EvalOrder
    make: _MakeExample
    size: int

    def __len__(self) -> int:
        return len(self.order) // self.size

    def __getitem__(self, group: int) -> list[dict[str, Any]]:
        first = int(group) * self.size
        return [self.make(self.order[i]) for i in range(first, first + self.size)]


def _describe(source: Source) -> str:
    name, split = getattr(source, "name", type(source).__name__), getattr(source, "split", None)
    return f"data set {name!r}" + (f", split {split!r}" if split else "")


def _stack(examples: Sequence[Mapping[str, Any]]) -> Batch:
    batch = {}
    for name in examples[0]:
        values = [np.asarray(example[name]) for example in examples]
        if len({value.shape for value in values}) > 1:
            shapes = sorted({value.shape for value in values})
            raise ValueError(
                f"Field {name!r} has different shapes in one batch: {shapes[0]} and {shapes[-1]}. "
                "Bring examples to one shape, with views or center for images and tokenize for text."
            )
        batch[name] = np.stack(values)
    return batch


def _stack_groups(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Batch:
    return _stack([example for group in groups for example in group])


# ---- batches -----------------------------------------------------------


def train_batches(
    source: Source,
    preprocess_fn: Preprocess,
    *,
    batch_size: int,
    seed: int,
    start_example: int = 0,
    reshuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of this process: a dict of arrays with leading axis batch_size / process_count.

    Args:
      source: records; `len(source)` examples make an epoch.
      preprocess_fn: `(record, rng) -> example`, see `preprocess.build`.
      batch_size: global, over all processes.
      seed: of the order and the augmentations, 0 .. 2**64 - 1.
      start_example: how many examples the whole job has consumed before; batches continue from there.
      reshuffle: a new order every epoch; without, every epoch repeats the order of the first.
      num_threads: threads that make examples, in each worker; default: one per core, at most 16.
      prefetch: examples made ahead; default: two local batches, at least 32. Rounded up to what is made in one go:
        up to eight examples, with workers whole batches.
      workers: processes that make whole batches; 0 makes them in threads of this process. Each worker imports the main
        script again, which therefore needs `if __name__ == "__main__":`.

    The iterator has `close()`. Raises ValueError for sizes that do not fit and RecordError (a ValueError) for a record
    that cannot be read.
    """
    share = _share(source, batch_size, process_index, process_count)
    if start_example < 0 or seed < 0:
        raise ValueError(f"start_example={start_example} and seed={seed} must not be negative.")
    order = _TrainOrder(share, len(source), seed, start_example, reshuffle)
    make = _MakeExample(source, preprocess_fn, seed)
    return _batches(order, make, share.local_size, num_threads=num_threads, prefetch=prefetch, workers=workers)


def eval_batches(
    source: Source,
    preprocess_fn: Preprocess,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every record once, in order; ceil(N / batch_size) batches on every process.

    The last batch is filled with zeros; `_mask`, bool [B], is False there. Arguments and errors as `train_batches`.
    """
    share = _share(source, batch_size, process_index, process_count)
    order = _EvalOrder(share, len(source))
    make = _MakeEvalExample(source, preprocess_fn, seed=0)
    return _batches(order, make, share.local_size, num_threads=num_threads, prefetch=prefetch, workers=workers)


def _share(source: Source, batch_size: int, process_index: int, process_count: int) -> _Slice:
    if len(source) < 1:
        raise ValueError(f"{_describe(source)} has no records.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be from 0 to process_count - 1 = {process_count - 1}.")
    if batch_size < 1 or batch_size % process_count:
        below = batch_size // process_count * process_count
        nearest = [str(size) for size in (below, below + process_count) if size > 0]
        raise ValueError(
            f"batch_size={batch_size} does not divide evenly among {process_count} processes. "
            f"Use a multiple of {process_count}: {' or '.join(nearest)}."
        )
    return _Slice(batch_size, process_index, process_count)


def _batches(
    order: _TrainOrder | _EvalOrder,
    make: _MakeExample,
    local_size: int,
    *,
    num_threads: int | None,
    prefetch: int | None,
    workers: int,
) -> Iterator[Batch]:
    num_threads = min(16, os.cpu_count() or 1) if num_threads is None else num_threads
    prefetch = max(32, 2 * local_size) if prefetch is None else prefetch
    if num_threads < 1 or prefetch < 1 or workers < 0:
        raise ValueError(f"{num_threads=}, {prefetch=} and {workers=}: the first two must be positive, workers >= 0.")
    _one_opencv_thread()
    if not workers:
        # Several examples at a time: a thread is handed its work, and the interpreter's lock, less often.
        most = min(_GROUP, prefetch // (2 * max(num_threads, 1)))
        size = max((n for n in range(2, most + 1) if local_size % n == 0), default=1)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=-(-prefetch // size))
        groups = grain.MapDataset.source(_Groups(order, make, size)).to_iter_dataset(options)
        return iter(groups.batch(local_size // size, drop_remainder=True, batch_fn=_stack_groups))
    # Grain deals elements out to workers in turn, so an element must be a whole batch for the order to stay the same.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()  # Grain's workers read flags; a notebook or test never parses any
    ahead = -(-prefetch // (local_size * workers))
    batches = grain.MapDataset.source(_Groups(order, make, local_size)).map(_stack)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    return iter(stream.mp_prefetch(options, worker_init_fn=_one_opencv_thread))


def _one_opencv_thread(*_: int) -> None:
    cv2.setNumThreads(1)  # examples are made in parallel already; OpenCV's own threads would only compete


# ---- onto devices -----------------------------------------------------------


class DevicePrefetch:
    """Iterates over the batches of this process as global arrays, made in a thread, ahead of the consumer.

    Args:
      sharding: of every field, or one per field; the batch axis is normally split over the devices of all processes.
      depth: batches that wait on the devices; one more may be in the making.

    int64 fields become int32 (devices hold no int64). `wait_seconds` adds up how long the consumer waited for data.
    An error in the pipeline is raised by the consumer's next(). Use it as a context manager, or call `close()`.
    """

    def __init__(
        self,
        iterator: Iterator[Batch],
        sharding: jax.sharding.Sharding | Mapping[str, jax.sharding.Sharding],
        depth: int = 2,
    ):
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1.")
        self.wait_seconds = 0.0
        self._iterator, self._sharding = iterator, sharding
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._ended: tuple[str, Any] | None = None
        self._thread = threading.Thread(target=self._work, name="device-prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for batch in self._iterator:
                if self._stop.is_set() or not self._put(("batch", self._to_devices(batch))):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, item: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _to_devices(self, batch: Batch) -> dict[str, jax.Array]:
        arrays = {}
        for name, value in batch.items():
            if value.dtype.kind not in "biuf":
                raise TypeError(
                    f"Field {name!r} of dtype {value.dtype} cannot go to a device; leave it out with keep()."
                )
            sharding = self._sharding[name] if isinstance(self._sharding, Mapping) else self._sharding
            arrays[name] = jax.make_array_from_process_local_data(sharding, _narrow(name, value))
        return arrays

    def __iter__(self) -> DevicePrefetch:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._ended is None:
            start = time.perf_counter()
            kind, value = self._queue.get()
            self.wait_seconds += time.perf_counter() - start
            if kind == "batch":
                return value
            self._ended = (kind, value)
        kind, value = self._ended
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Stops the thread and closes the iterator behind it; safe to call twice."""
        self._stop.set()
        self._thread.join(timeout=30)
        while not self._queue.empty():
            self._queue.get_nowait()
        self._ended = self._ended or ("end", None)
        if hasattr(self._iterator, "close") and not self._thread.is_alive():
            self._iterator.close()

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


device_prefetch = DevicePrefetch


def _narrow(name: str, value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype != np.int64 or jax.config.jax_enable_x64:
        return value
    if value.size and (value.max() > 2**31 - 1 or value.min() < -(2**31)):
        raise ValueError(f"Field {name!r} does not fit into the 32-bit integers of the devices.")
    return value.astype(np.int32)
