"""Is a prepared data set still what was built? Checksums of its files, and all that can be seen by reading it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.data import images, side_tables
from medvlp_jax.data.records import RecordSource, split_order

SUMS = "SHA256SUMS"
"""Lines of `sha256sum`: digest, two blanks, name."""
SHOWN = 10
"""Records of a split that are named; the others are counted."""


def write_sums(folder: Path, later: Mapping[str, str]) -> None:
    """Records the checksum of every file of a built folder, and of the texts of files that are written after it."""
    sums = {path.name: _sha256(path) for path in folder.iterdir() if path.name != SUMS}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in later.items()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify(data_dir: Path, name: str, folder: Path, progress: bool = False) -> dict[str, Any]:
    """Looks at files, records, counts and patients of a prepared set.

    Args: name: data set, or data set/config; folder: where it lies.
    Returns: {"folder", "files", "bytes", "records": {split: number read}, "problems": [sentence]}; a sentence names
      files, splits and places of records, never an id or a text.
    """
    problems, files, size = _files(folder)
    splits: dict[str, dict[str, Any]] = {}
    hashes: set[int] = set()
    for split, expected in _expected(folder, problems).items():
        try:
            source = RecordSource(data_dir, name, split)
        except Exception as error:  # of the ArrayRecord library, for a damaged or missing shard
            problems.append(f"split {split} cannot be opened ({type(error).__name__})")
            continue
        bad: list[str] = []
        splits[split] = found = side_tables.count_split(_checked(source, bad, hashes), split, progress)
        problems += [f"split {split}, record {what}" for what in bad[:SHOWN]]
        if len(bad) > SHOWN:
            problems.append(f"split {split}: {len(bad) - SHOWN} more records cannot be read")
        for field, value in expected.items():
            if found.get(field) != value:
                numbers = f": {found.get(field)}, not {value}" if isinstance(value, int) else ""
                problems.append(f"split {split}: {field} differs from counts.json{numbers}")
    records = {split: found["records"] for split, found in splits.items()}
    shared = side_tables.shared_patients(splits)
    if shared:
        problems.append(f"{shared} patients are in more than one split")
    listed = _listed(folder)
    if splits and listed is not None and listed != hashes:
        problems.append(
            f"ids.csv lists {len(listed - hashes)} images without a record and lacks {len(hashes - listed)}"
        )
    return {"folder": str(folder), "files": files, "bytes": size, "records": records, "problems": problems}


def _files(folder: Path) -> tuple[list[str], int, int]:
    """(problems, files looked at, their bytes)."""
    present = {path.name: path for path in sorted(folder.iterdir()) if path.name != SUMS}
    size = sum(path.stat().st_size for path in present.values())
    if not (folder / SUMS).exists():
        return [f"{SUMS} is not there: built by an earlier version, or removed; no checksum was compared"], 0, 0
    recorded = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        recorded[name] = digest
    problems = [f"{name} is not there" for name in recorded if name not in present]
    for name, path in present.items():
        if name not in recorded:
            problems.append(f"{name} was not built here")
        elif _sha256(path) != recorded[name]:
            problems.append(f"{name} differs from what was built")
    return problems, len(present), size


def _expected(folder: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Split -> what counts.json says of it."""
    try:
        splits = json.loads((folder / "counts.json").read_text(encoding="utf-8"))["splits"]
        return {split: dict(splits[split]) for split in split_order(splits)}
    except (OSError, ValueError, KeyError, TypeError):
        problems.append("counts.json cannot be read: the build was not finished, or the file is damaged")
        return {}


class _checked:
    """A source whose records are looked at on the way; those that cannot be read are left out and told."""

    def __init__(self, source: RecordSource, bad: list[str], hashes: set[int]):
        self.source, self.bad, self.hashes = source, bad, hashes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        try:
            record = self.source[index]
        except Exception as error:  # of the ArrayRecord library or of TFDS
            self.bad.append(f"{index} cannot be read ({type(error).__name__})")
            return None
        self.hashes.add(int(record["image_id"]))
        try:
            images.check_complete(record["image"], images.sniff(record["image"]))
        except images.ImageError as error:
            self.bad.append(f"{index} has an image that cannot be decoded ({error.reason})")
        return record


def _listed(folder: Path) -> set[int] | None:
    """The hashed image ids of ids.csv; None without the file."""
    try:
        with open(folder / "ids.csv", newline="", encoding="utf-8") as file:
            return {int(row["image_id_hash"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
