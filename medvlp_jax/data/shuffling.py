"""Records written in the order of TensorFlow Datasets, sorted on disk instead of in memory.

TFDS orders the records of a split by a hash of their keys. Its own `Shuffler` holds up to 1,000 MiB of them, and beyond
that writes buckets through TensorFlow, which need not be installed. This one holds `BUFFER` bytes; the order, and so
the bytes of the files, are the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

BUFFER = 16 << 20
"""Bytes of records that wait in memory; with fewer, nothing goes to disk before its time."""
BUCKETS = 1024
"""Files that the records are spread over by their hashes, read and sorted one after another."""
_HEAD = struct.Struct(">QQQ")  # hash (128 bits), size
_OF_RECORD = 150  # bytes of memory of a record besides its own


class Shuffler:
    """Stands in for `tensorflow_datasets.core.shuffle.Shuffler`; see `bounded`.

    Args: dirpath: where a folder of buckets may be made. hash_salt: as of TFDS, the name of the split.
    Raises: ValueError for the options of TFDS that our builders do not use.
    """

    def __init__(
        self,
        dirpath: os.PathLike[str] | str,
        hash_salt: str | bytes,
        disable_shuffling: bool = False,
        ignore_duplicates: bool = False,
    ):
        from tensorflow_datasets.core import hashing

        if disable_shuffling or ignore_duplicates:
            raise ValueError("Builds of this package neither disable shuffling nor ignore repeated keys.")
        self._folder = Path(dirpath) / f"buckets.{uuid.uuid4().hex}"
        self._hasher = hashing.Hasher(hash_salt)
        self._waiting: dict[int, list[tuple[int, bytes]]] = {}
        self._waiting_bytes = 0
        self.size = 0
        """Bytes of all records."""
        self.num_examples = 0

    @property
    def bucket_lengths(self) -> list[int]:
        """Records of what TFDS takes for one bucket."""
        return [self.num_examples]

    def add(self, key: int | str | bytes, data: bytes) -> None:
        """Adds a serialized record. Raises: OSError when the disk is full."""
        number = self._hasher.hash_key(key)
        self._waiting.setdefault(number * BUCKETS >> 128, []).append((number, data))
        self.size += len(data)
        self.num_examples += 1
        self._waiting_bytes += len(data) + _OF_RECORD
        if self._waiting_bytes > BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for bucket, records in self._waiting.items():
            with open(self._folder / str(bucket), "ab") as file:
                for number, data in records:
                    file.write(_HEAD.pack(number >> 64, number & 2**64 - 1, len(data)) + data)
        self._waiting.clear()
        self._waiting_bytes = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yields (hash, record), in order. Raises: the DuplicatedKeysError of TFDS when two keys are equal."""
        from tensorflow_datasets.core import shuffle

        before: tuple[int, bytes] | None = None
        for bucket in range(BUCKETS):
            for record in sorted([*self._read(self._folder / str(bucket)), *self._waiting.pop(bucket, ())]):
                if before is not None and record[0] == before[0]:
                    raise shuffle.DuplicatedKeysError(record[1], before[1])
                yield record
                before = record
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _read(path: Path) -> Iterator[tuple[int, bytes]]:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            while head := file.read(_HEAD.size):
                high, low, size = _HEAD.unpack(head)
                yield high << 64 | low, file.read(size)
            path.unlink()  # the records that are written take its place on the disk


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Inside, TFDS shuffles with the class above."""
    from tensorflow_datasets.core import shuffle

    original = shuffle.Shuffler
    shuffle.Shuffler = Shuffler
    try:
        yield
    finally:
        shuffle.Shuffler = original
