"""The ids of a split's records, read once: what a split hash and a check for shared patients need."""

import contextlib
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.records import RecordSource

FIELDS = ("patient_id", "study_id", "image_id")


def record_ids(source: RecordSource) -> dict[str, NDArray[np.int64]]:
    """Hashed `patient_id`, `study_id`, `image_id` in record order; kept beside the records where possible."""
    kept = Path(source.folder) / "record_ids" / f"{hashlib.blake2b(source.split.encode()).hexdigest()[:12]}.npz"
    if kept.exists():
        with (
            contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile),
            np.load(kept, allow_pickle=False) as stored,
        ):
            ids = {name: stored[name] for name in FIELDS}
            if len(ids["image_id"]) == len(source):
                return ids
    rows = np.empty((len(source), len(FIELDS)), np.int64)
    for i in range(len(source)):
        record = source[i]
        rows[i] = [record[name] for name in FIELDS]
    ids = {name: rows[:, column] for column, name in enumerate(FIELDS)}
    with contextlib.suppress(OSError):  # a read-only data folder costs a second read, nothing else
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_suffix(".tmp.npz")
        np.savez(part, **ids)
        part.replace(kept)
    return ids


def split_hash(image_id_N: NDArray[np.int64]) -> str:
    """Twelve hex digits that name a set of images, whatever their order."""
    return hashlib.blake2b(np.sort(image_id_N).tobytes()).hexdigest()[:12]


def check_disjoint(train: RecordSource, scored: RecordSource, *, allow: bool = False) -> int:
    """Number of patients that are in both. Raises: ValueError when there are any, unless allowed."""
    shared = np.intersect1d(record_ids(train)["patient_id"], record_ids(scored)["patient_id"])
    if len(shared) and not allow:
        raise ValueError(
            f"{len(shared)} patients of the evaluation split {scored.split!r} of {scored.name!r} are also in the "
            f"training split {train.split!r} of {train.name!r}: scores would be too good. Choose another "
            "data.test_split, prepare the training data without them, or allow it with "
            "--config.evaluation.allow_patient_overlap=True."
        )
    return len(shared)
