"""Looks for what must not leave a data folder: raw ids, report text, names, record numbers, dates.

Only file, line and kind of a find are told, never the words.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

WINDOW = 8
"""Words in a row that count as report text."""
COMMON = 3
"""In this many studies and more, such words are a common phrase."""
TEXT_FILES = {
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".txt",
    ".log",
    ".md",
    ".html",
    ".htm",
    ".xml",
    ".yaml",
    ".yml",
    ".py",
    ".tex",
}
LARGEST = 256 * 2**20

PATTERNS: dict[str, re.Pattern[str]] = {
    "record number": re.compile(
        r"\b(?:MRN|medical record (?:number|no)|accession (?:number|no)|patient id)\b\W{0,4}\d{4,}", re.I
    ),
    "date of birth": re.compile(r"\b(?:DOB|date of birth|born(?: on)?)\b\W{0,4}\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", re.I),
    "date": re.compile(
        r"\b(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])/(?:19|20|21)\d{2}\b"
        r"|\b2[12]\d{2}-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])\b"
    ),
    "name": re.compile(
        r"\b(?:[Pp]atient(?:'s)?|PATIENT) (?:[Nn]ame|NAME)\W{1,4}[A-Z][A-Za-z]+"
        r"|\b(?:Mr|Mrs|Ms|Miss|Dr)\.? [A-Z][a-z]{2,}|\b[A-Z][A-Za-z]+\^[A-Z][A-Za-z]*"
    ),
}
"""Kind -> pattern. Dates are those of reports: month/day/year, and the years 2100 to 2299 of shifted ones; the date of
a log line is none."""

_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"[A-Za-z0-9][\w.-]*")


class Find(NamedTuple):
    """file: relative to the folder that was searched. line: from 1. kind: what was found."""

    file: str
    line: int
    kind: str


class Sensitive:
    """The raw ids and texts of records that are not public, gathered record by record.

    Ids shorter than five characters or without a digit are left out, and last parts of paths that several ids end in
    ("study1"): they are found everywhere.
    """

    def __init__(self) -> None:
        self._id_of: dict[str, str] = {}  # name -> the raw id it belongs to, "" when there are several
        self._windows: list[np.ndarray] = []
        self._studies: set[int] = set()
        self._rare: np.ndarray | None = None

    def add(self, record: Mapping[str, Any], raw: Sequence[str] | None) -> None:
        """Args: raw: patient, study and image id, when known."""
        if record["public"]:
            return
        for value in raw or ():
            last = PurePosixPath(value).name
            for name in {value, last, last.rsplit(".", 1)[0]}:
                if len(name) >= 5 and re.search(r"\d", name) and self._id_of.setdefault(name, value) != value:
                    self._id_of[name] = ""
        study = int(record["study_id"])
        if study in self._studies:  # the images of a study share its text
            return
        self._studies.add(study)
        texts = [_WORD.findall(str(record[name]).lower()) for name in ("findings", "impression", "report")]
        windows = [_windows(words) for words in texts if len(words) >= WINDOW]
        if windows:
            self._windows.append(np.unique(np.concatenate(windows)))
            self._rare = None

    def is_id(self, name: str) -> bool:
        """Does it name one patient, study or image?"""
        return bool(self._id_of.get(name))

    @property
    def rare(self) -> np.ndarray:
        """Sorted hashes of word windows that fewer than `COMMON` studies have."""
        if self._rare is None:
            every = np.concatenate(self._windows) if self._windows else np.zeros(0, np.int64)
            values, counts = np.unique(every, return_counts=True)
            self._rare = values[counts < COMMON]
        return self._rare


def _windows(words: Sequence[str]) -> np.ndarray:
    """Hashes of every `WINDOW` words in a row, int64; the same within one process only."""
    starts = range(len(words) - WINDOW + 1)
    return np.fromiter((hash(tuple(words[start : start + WINDOW])) for start in starts), np.int64)


def read_planted(path: str | os.PathLike[str]) -> list[str]:
    """Words or phrases that must appear nowhere, one a line; lines that start with # are comments.

    Raises: ValueError when there are none.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    planted = [line for line in lines if line and not line.startswith("#")]
    if not planted:
        raise ValueError(f"{os.fspath(path)} holds no word to look for.")
    return planted


def files_under(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file itself, or all files under a folder, in order. Raises: FileNotFoundError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No output at {path}.")
    yield from [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def search(
    files: Iterable[Path],
    sensitive: Sensitive,
    planted: Sequence[str] = (),
    *,
    ids: bool = True,
    base: Path | None = None,
) -> tuple[list[Find], dict[str, int]]:
    """Finds in text files, one per line and kind, and the number of files read and of those left out by reason.

    Args: ids: look for raw ids too. base: folder that names of files are given from.
    """
    found: dict[Find, None] = {}
    counts = {"read": 0, "not a text file": 0, "too large": 0}
    phrase = re.compile("|".join(re.escape(word) for word in planted), re.IGNORECASE) if planted else None
    for path in files:
        if path.suffix.lower() not in TEXT_FILES:
            counts["not a text file"] += 1
            continue
        if path.stat().st_size > LARGEST:
            counts["too large"] += 1
            continue
        counts["read"] += 1
        name = str(path.relative_to(base)) if base else path.name
        for find in _in_text(path.read_text(encoding="utf-8", errors="replace"), name, sensitive, phrase, ids):
            found[find] = None
    return list(found), {reason: count for reason, count in counts.items() if count}


def _in_text(text: str, name: str, sensitive: Sensitive, phrase: re.Pattern[str] | None, ids: bool) -> Iterator[Find]:
    words: list[str] = []
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"[A-Za-z0-9+/=]{200,}", " ", line)  # pictures in base64
        plain = html.unescape(re.sub(r"<[^<>]{0,200}>", " ", re.sub(r"\\[nrt\"]", " ", line)))
        for kind, pattern in PATTERNS.items():
            if pattern.search(plain):
                yield Find(name, number, kind)
        if phrase is not None and phrase.search(plain):
            yield Find(name, number, "planted word")
        if ids and any(sensitive.is_id(token) for token in _tokens(plain)):
            yield Find(name, number, "raw id")
        fresh = _WORD.findall(plain.lower())
        words += fresh
        lines += [number] * len(fresh)
    if len(words) >= WINDOW and len(sensitive.rare):
        for start in np.flatnonzero(np.isin(_windows(words), sensitive.rare)):
            yield Find(name, lines[int(start)], "report text")


def _tokens(line: str) -> Iterator[str]:
    for match in _TOKEN.finditer(line):
        token = match.group().rstrip(".-_")
        yield token
        yield token.rsplit(".", 1)[0]
