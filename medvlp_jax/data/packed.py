"""Many plain values in little memory: what a build must remember of every record until it ends."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np


def pack(values: list[Any]) -> bytes:
    """Numbers, text, bytes, lists, dicts and numeric arrays -> bytes. Raises: TypeError naming another type."""
    return zlib.compress(msgpack.packb(values, default=encode_array), 1)


def unpack(data: bytes) -> list[Any]:
    """The values that `pack` was given; tuples come back as lists."""
    return msgpack.unpackb(zlib.decompress(data), ext_hook=decode_array, strict_map_key=False)


def encode_array(value: Any) -> msgpack.ExtType:
    """For `default` of msgpack: numeric arrays and scalars. Raises: TypeError naming another type."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        return msgpack.ExtType(1, msgpack.packb([array.dtype.str, list(array.shape), array.tobytes()]))
    raise TypeError(
        f"An example holds a {type(value).__name__}; use numbers, str, bytes, lists, dicts or numeric arrays."
    )


def decode_array(code: int, data: bytes) -> Any:
    """For `ext_hook` of msgpack: what `encode_array` made."""
    if code != 1:
        return msgpack.ExtType(code, data)
    dtype, shape, raw = msgpack.unpackb(data)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return array if shape else array[()]


class Packed(Sequence[Any]):
    """A list that is only appended to and read in order, in blocks that are packed as soon as they are full.

    A row of `ids.csv` takes about 100 bytes in it instead of 800 as a dict of its own, and a work item 150, not 1,600.
    What is read are copies: see `edit`.
    """

    BLOCK = 256

    def __init__(self, values: Iterable[Any] = ()):
        self._blocks: list[bytes] = []
        self._open: list[Any] = []
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        """Adds a value that `pack` takes; it may be changed afterwards only by who does not need it here."""
        self._open.append(value)
        if len(self._open) == self.BLOCK:
            self._blocks.append(pack(self._open))
            self._open = []

    def edit(self) -> Iterator[Any]:
        """Every value in turn, to be changed in place before the next one is asked for."""
        for place, block in enumerate(self._blocks):
            values = unpack(block)
            yield from values
            self._blocks[place] = pack(values)
        yield from self._open

    def drain(self) -> Iterator[Any]:
        """Every value in turn; the list is empty afterwards, and its memory is given back on the way."""
        blocks, self._blocks = self._blocks[::-1], []
        rest, self._open = self._open, []
        while blocks:
            yield from unpack(blocks.pop())
        yield from rest

    def __getitem__(self, place: Any) -> Any:
        """One value, by its place. (Slices would unpack blocks again and again: iterate.)"""
        place = range(len(self))[operator.index(place)]
        block, inside = divmod(place, self.BLOCK)
        return self._open[inside] if block == len(self._blocks) else unpack(self._blocks[block])[inside]

    def __len__(self) -> int:
        return len(self._blocks) * self.BLOCK + len(self._open)

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks:
            yield from unpack(block)
        yield from self._open
