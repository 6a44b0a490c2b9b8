"""What a build will take, before it starts: the plan gives images and bytes, a sample gives seconds and disk."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import numpy as np

from medvlp_jax.data.records import SOURCE
from medvlp_jax.data.staging import MakeExamples, Plan, Rejection, count_reasons

SAMPLE = 48
"""Work items that are made, spread evenly over the plan."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """images: work items per split. source_bytes: of their image files. refused: reasons met while planning.
    sampled, kept: items of the sample, and how many became records. seconds: of one core for an item.
    record_bytes: of a record. sample_refused: reasons met in the sample."""

    images: dict[str, int]
    source_bytes: int
    refused: dict[str, int]
    sampled: int
    kept: int
    seconds: float
    record_bytes: float
    sample_refused: dict[str, int]

    def totals(self, workers: int) -> dict[str, float]:
        """Of the whole plan: "minutes" with `workers` processes, "records", "bytes", and "disk" while building."""
        total = sum(self.images.values())
        records = total * self.kept / max(self.sampled, 1)
        size = records * self.record_bytes
        # Finished chunks wait on the same disk until the records are written.
        return {"minutes": total * self.seconds / workers / 60, "records": records, "bytes": size, "disk": 2 * size}

    def lines(self, workers: int, free_bytes: int) -> list[str]:
        """In words. Args: workers: processes that will share the work. free_bytes: of the disk to build on."""
        minutes, records, size, needed = self.totals(workers).values()
        lines = [
            "Images: " + ", ".join(f"{count} {split}" for split, count in self.images.items()),
            "Refused so far: " + (", ".join(f"{reason}: {n}" for reason, n in self.refused.items()) or "nothing"),
            f"To read: {size_words(self.source_bytes)}",
            f"Sample: {self.sampled} images, {self.kept} kept; {self.seconds:.3f} s each on one core",
        ]
        if self.sample_refused:
            lines.append("Refused of the sample: " + ", ".join(f"{r}: {n}" for r, n in self.sample_refused.items()))
        lines += [
            f"Time: about {minutes:.1f} minutes with {workers} processes for the images, if the disk keeps up; then "
            "every record is written and read back once",
            f"Records: about {records:.0f}, {size_words(size)}; {size_words(needed)} of disk while building, "
            f"{size_words(free_bytes)} free",
        ]
        if needed > free_bytes:
            lines.append("WARNING: the disk is too small. Choose another --data_dir, a smaller --size, or a --limit.")
        return lines


def measure(plan: Plan, make_examples: MakeExamples, config: Any, sample: int = SAMPLE) -> Estimate:
    """Makes a sample of a plan's items in this process and throws the records away.

    Raises: ValueError when the plan holds no item; what `make_examples` raises, but for rejections.
    """
    count = sum(map(len, plan.splits.values()))
    if not count:
        raise ValueError(f"No record can be built. Rejected: {count_reasons(plan.rejections) or 'nothing'}.")
    places = set(np.linspace(0, count - 1, min(sample, count)).round().astype(int).tolist())
    chosen, source_bytes = [], 0
    for place, item in enumerate(itertools.chain.from_iterable(plan.splits.values())):
        chosen += [item] if place in places else []
        source_bytes += item.get("bytes", 0) if isinstance(item, dict) else 0
    kept, written, refused = 0, 0, []
    start = time.perf_counter()
    for item in chosen:
        try:
            made = make_examples(item, config)
        except Rejection as rejection:
            made = rejection
        for result in [made] if isinstance(made, Rejection) else made:
            if isinstance(result, Rejection):
                refused.append(result)
            else:
                kept += 1
                written += _size({name: value for name, value in result[1].items() if name != SOURCE})
    seconds = (time.perf_counter() - start) / len(chosen)
    return Estimate(
        images={split: len(of_split) for split, of_split in plan.splits.items()},
        source_bytes=source_bytes,
        refused=count_reasons(plan.rejections),
        sampled=len(chosen),
        kept=kept,
        seconds=seconds,
        record_bytes=written / max(kept, 1),
        sample_refused=count_reasons(refused),
    )


def _size(value: Any) -> int:
    """Bytes of what a record holds: its arrays, bytes and text, and a few for every number."""
    if isinstance(value, dict):
        return sum(_size(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_size(part) for part in value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def size_words(count: float) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
