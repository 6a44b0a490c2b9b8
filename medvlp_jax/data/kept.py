"""Records that stay in memory once they were read: small data sets are decoded once and not once per epoch."""

from typing import Any

import numpy as np

from medvlp_jax.data.pipeline import Source
from medvlp_jax.data.preprocess import decode_grey

_BESIDE = 8192  # bytes of a record beside its images: texts, ids, Python objects


class KeptSource:
    """A source of the same records with decoded images (grey uint8 [H, W], read-only), of which it keeps what fits.

    Records beyond the budget are read and decoded every time, so any data set works and a small budget only costs time.
    Safe to read from several threads; a copy in another process starts empty.

    Args: source: of records with encoded images. budget_mib: of decoded records, in this process.
    Raises: ValueError for a negative budget; reading a record raises what the source and `decode_grey` raise.
    """

    def __init__(self, source: Source, budget_mib: int):
        if budget_mib < 0:
            raise ValueError(f"data.memory_mib={budget_mib} must be 0 (keep nothing) or more.")
        self.source, self.name, self.split = source, source.name, source.split
        self.budget_mib = budget_mib
        self._left, self._kept = budget_mib * 2**20, {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptSource, (self.source, self.budget_mib)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        record = self.source[index]
        image = np.ascontiguousarray(decode_grey(record["image"]))
        image.flags.writeable = False
        record = {**record, "image": image}
        if (size := _size(record)) <= self._left and self._kept.setdefault(index, record) is record:
            self._left -= size
        return record


def _size(record: dict[str, Any]) -> int:
    return record["image"].nbytes + len(record["lung_mask"]) + sum(map(len, record["masks"]["mask"])) + _BESIDE
