"""What lies beside the records of a built data set: counts, rejected rows, raw ids."""

from __future__ import annotations

import array
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import whole_files
from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, PRESENT, UNCERTAIN
from medvlp_jax.data.records import RecordSource, hashed_id
from medvlp_jax.data.staging import Staging, count_reasons

OWN_LABELS_SHOWN = 30


def write_rejected_and_ids(folder: Path, staging: Staging) -> None:
    """`rejected.csv` (row, reason, item, detail) and `ids.csv` (raw ids, hashes, file, checksum) of a finished build.

    Raises: ValueError when two raw ids have the same hash.
    """
    with open(folder / "rejected.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "reason", "item", "detail"])
        for rejection in sorted(staging.rejections, key=lambda r: (r.row, r.item, r.reason)):
            row = "" if rejection.row < 0 else rejection.row
            writer.writerow([row, rejection.reason, rejection.item, rejection.detail])
    kinds = ("patient_id", "study_id", "image_id")
    hashed: dict[str, array.array[int]] = {kind: array.array("q") for kind in kinds}
    checks: dict[str, array.array[int]] = {kind: array.array("q") for kind in kinds}
    with open(folder / "ids.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", *kinds, *(f"{kind}_hash" for kind in kinds), "file", "sha256", "doubts"])
        for split in sorted({source["split"] for source in staging.sources}):
            for source in staging.sources:
                if source["split"] != split:
                    continue
                raw = [source[kind] for kind in kinds]
                for kind, value in zip(kinds, raw, strict=True):
                    hashed[kind].append(hashed_id(value))
                    checks[kind].append(hash(value))
                more = [source.get(name, "") for name in ("file", "sha256", "doubts")]
                writer.writerow([split, *raw, *(hashed[kind][-1] for kind in kinds), *more])
    for kind in kinds:
        if (twice := _of_two_values(hashed[kind], checks[kind])) is not None:
            raise ValueError(f"Two different {kind} values hash to {twice}; rename one of them.")


def _of_two_values(hashed: Sequence[int], checks: Sequence[int]) -> int | None:
    """A hash that two different values have, told apart by another hash of theirs."""
    hashed_N, check_N = np.asarray(hashed, np.int64), np.asarray(checks, np.int64)
    order_N = np.lexsort((check_N, hashed_N))
    hashed_N, check_N = hashed_N[order_N], check_N[order_N]
    twice = np.flatnonzero((hashed_N[1:] == hashed_N[:-1]) & (check_N[1:] != check_N[:-1]))
    return int(hashed_N[twice[0]]) if len(twice) else None


def json_text(value: Any) -> str:
    """Sorted, indented JSON."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`json_text`, put in place in one step."""
    whole_files.write_text(path, json_text(value))


def count_split(source: Any, split: str, progress: bool) -> dict[str, Any]:
    """The numbers of a split, and under "_patients" its hashed patient ids, each once.

    Args: source: a `RecordSource`, or a sequence like it that gives None for a record to be left out.
    """
    from tqdm import tqdm

    studies, patients = array.array("q"), array.array("q")
    totals = dict.fromkeys(("has_findings", "has_impression", "with_boxes", "with_masks", "public"), 0)
    words = {PRESENT: "present", ABSENT: "absent", UNCERTAIN: "uncertain"}
    labels = {name: dict.fromkeys(words.values(), 0) for name in CHEXPERT_LABELS}
    own: dict[str, dict[str, int]] = {}
    order = tqdm(range(len(source)), desc=f"checking {split}", unit="record", disable=not progress, leave=False)
    read = 0
    for record in (source[index] for index in order):
        if record is None:
            continue
        read += 1
        studies.append(int(record["study_id"]))
        patients.append(int(record["patient_id"]))
        totals["has_findings"] += bool(record["has_findings"])
        totals["has_impression"] += bool(record["has_impression"])
        totals["with_boxes"] += len(record["boxes"]["finding"]) > 0
        totals["with_masks"] += len(record["masks"]["finding"]) > 0
        totals["public"] += bool(record["public"])
        for name, state in zip(CHEXPERT_LABELS, record["labels"], strict=True):
            if int(state) in words:
                labels[name][words[int(state)]] += 1
        for name, state in zip(record["own_labels"]["name"], record["own_labels"]["state"], strict=True):
            own.setdefault(name, dict.fromkeys(words.values(), 0))[words[int(state)]] += 1
    return {
        "records": read,
        "studies": len(np.unique(studies)),
        "patients": len(each_once := np.unique(patients)),
        **totals,
        "labels": labels,
        "own_labels": own,
        "_patients": each_once,
    }


def shared_patients(splits: dict[str, dict[str, Any]]) -> int:
    """Patients in more than one split; takes "_patients" out of the numbers of `count_split`."""
    patients = [counts.pop("_patients") for counts in splits.values()]
    in_splits = np.unique(np.concatenate(patients), return_counts=True)[1] if patients else np.zeros(0)
    return int((in_splits > 1).sum())


def table(counts: Mapping[str, Any]) -> str:
    """The content of a `counts.json` as an aligned text table."""
    splits = counts["splits"]
    rows = [["", *splits]]
    for name in (
        "records",
        "studies",
        "patients",
        "has_findings",
        "has_impression",
        "with_boxes",
        "with_masks",
        "public",
    ):
        rows.append([name, *(str(split[name]) for split in splits.values())])
    for label in CHEXPERT_LABELS:
        states = [split["labels"][label] for split in splits.values()]
        if any(sum(state.values()) for state in states):
            rows.append([label, *(f"{s['present']} +  {s['absent']} -  {s['uncertain']} ?" for s in states)])
    none = dict.fromkeys(("present", "absent", "uncertain"), 0)
    own: dict[str, int] = {}
    for split in splits.values():
        for name, state in split["own_labels"].items():
            own[name] = own.get(name, 0) + state["present"]
    shown = sorted(own, key=lambda name: (-own[name], name))[:OWN_LABELS_SHOWN]
    for name in shown:
        states = [split["own_labels"].get(name, none) for split in splits.values()]
        rows.append([f"own: {name}", *(f"{s['present']} +  {s['absent']} -  {s['uncertain']} ?" for s in states)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    if len(rows) > 9:
        lines.append("(labels: present +, absent -, uncertain ?; the rest is not mentioned)")
    if len(own) > len(shown):
        lines.append(f"(own: the set's own words; {len(own) - len(shown)} rarer ones are in counts.json)")
    rejected = counts["rejected"]
    lines.append(
        f"Rejected: {sum(rejected.values())}" + "".join(f"\n  {reason}: {n}" for reason, n in rejected.items())
    )
    if counts["patients_in_two_splits"]:
        lines.append(f"WARNING: {counts['patients_in_two_splits']} patients occur in more than one split.")
    if counts["identical_files"]:
        lines.append(f"Files that repeat another byte for byte: {counts['identical_files']} (sha256 in ids.csv)")
    if counts["identical_files_in_two_splits"]:
        lines.append(f"WARNING: {counts['identical_files_in_two_splits']} files occur in more than one split.")
    return "\n".join(lines)


def count_all(sources: Mapping[str, RecordSource], staging: Staging, progress: bool = False) -> dict[str, Any]:
    """The content of `counts.json`; reads every record back.

    Returns: {"splits": {split: numbers}, "rejected": {reason: number}, "patients_in_two_splits": number,
      "identical_files": number, "identical_files_in_two_splits": number}.
    """
    splits = {split: count_split(source, split, progress) for split, source in sources.items()}
    shared = shared_patients(splits)
    repeated, apart = identical_files(staging.sources)
    return {
        "splits": splits,
        "rejected": count_reasons(staging.rejections),
        "patients_in_two_splits": shared,
        "identical_files": repeated,
        "identical_files_in_two_splits": apart,
    }


def identical_files(sources: Iterable[Mapping[str, str]]) -> tuple[int, int]:
    """(files that repeat another one byte for byte, contents that occur in more than one split)."""
    digests, splits, names = array.array("Q"), array.array("B"), {}
    for source in sources:
        if source.get("sha256"):
            digests.append(int(source["sha256"][:16], 16))
            splits.append(names.setdefault(source["split"], len(names)))
    pairs = np.empty(len(digests), [("digest", np.uint64), ("split", np.uint8)])
    pairs["digest"], pairs["split"] = digests, splits
    contents = np.unique(pairs["digest"])
    in_splits = np.unique(np.unique(pairs)["digest"], return_counts=True)[1]
    return len(pairs) - len(contents), int((in_splits > 1).sum())
