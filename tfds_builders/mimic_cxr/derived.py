"""Files that others derived from the MIMIC-CXR reports, read where they lie: tables of sections, lists made by hand.

Nothing of them is part of this project.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from medvlp_jax.data import demographics, sections
from medvlp_jax.data.label_files import plain_study
from medvlp_jax.data.staging import Rejection
from medvlp_jax.data.tables import Table

KEYS = ("study", "study_id", "dicom_id")
OPTIONAL = ("last_paragraph", "comparison")
PLACEHOLDER = "dumb"
"""What the tables of IMITATE hold where a report has no findings."""


@dataclasses.dataclass
class Sectioned:
    """A table of sections. rows: study or image -> {section: text, "" when missing}. key: the column with the ids.

    repeated: further rows of an id with another text (the first counts). placeholders: cells "dumb" taken as missing.
    """

    key: str
    rows: dict[str, dict[str, str]]
    sha256: str
    unread: list[str]
    repeated: int
    placeholders: int

    def of(self, item: dict[str, Any]) -> dict[str, str] | None:
        """The sections of a work item, or None."""
        return self.rows.get(item["image_id"] if self.key == "dicom_id" else item["study_id"])


@functools.lru_cache(maxsize=2)  # read once by each worker process
def read_sectioned(path: Path) -> Sectioned:
    """Reads mimic_cxr_sectioned.csv, or a table like it: one of `KEYS`, `findings` and `impression`, in any case.

    So the master tables of MGCA and IMITATE can be given too: a section that is one blank, or `dumb`, is missing.
    Raises: ValueError for a file without a header or without these columns.
    """
    columns = Table(path, ()).columns
    lower = {name.lower(): name for name in reversed(columns)}
    key = next((name for name in KEYS if name in lower), None)
    if key is None or not {"findings", "impression"} <= set(lower):
        advice = ""
        if len(columns) == 2:
            advice = (
                ". It seems to have no header, as the files with one text for each study (mimic_cxr_00.csv); give "
                "mimic_cxr_sectioned.csv, which keeps the sections apart."
            )
        raise ValueError(
            f"--reports {path} needs the columns findings, impression and one of {', '.join(KEYS)}. It has "
            f"{len(columns)} columns{advice or ': ' + ', '.join(columns) + '.'}"
        )
    names = ("impression", "findings", *(name for name in OPTIONAL if name in lower))
    table = Table(path, (lower[key], *(lower[name] for name in names)))
    rows: dict[str, dict[str, str]] = {}
    repeated = placeholders = 0
    for _, row in table:
        texts = {name: row[lower[name]] for name in names}
        placeholders += sum(text.strip() == PLACEHOLDER for text in texts.values())
        texts = {
            name: "" if sections.is_missing(text) or text.strip() == PLACEHOLDER else text
            for name, text in texts.items()
        }
        identity = plain_study(row[lower[key]]) if key != "dicom_id" else row[lower[key]].strip()
        repeated += rows.setdefault(identity, texts) != texts
    unread = [name for name in columns if name.lower() not in (key, *names)]
    return Sectioned(key, rows, table.sha256, unread, repeated, placeholders)


def sectioned_facts(found: Sectioned, items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What of a table of sections was not used, for provenance; zeros left out."""
    ids = {item["image_id"] if found.key == "dicom_id" else item["study_id"] for item in items}
    facts = {
        "by": found.key,
        "rows": len(found.rows),
        "columns not read": found.unread,
        "repeated rows with another text": found.repeated,
        f'cells "{PLACEHOLDER}" taken as missing': found.placeholders,
        "rows of nothing here": len(set(found.rows) - ids),
        "ids without a row": len(ids - set(found.rows)),
    }
    return {name: value for name, value in facts.items() if value}


def read_section_lists(path: Path) -> dict[str, str | tuple[int, int]]:
    """Study -> the name of the section that holds its text, or (start, end) of the text in its file.

    Args: path: section_parser.py of MIT-LCP/mimic-cxr as it was published (it is read, never run: its dicts
      `custom_section_names` and `custom_indices`), or a JSON file with objects of these names.
    Raises: ValueError saying what is wrong with the file or an entry of it.
    """
    if not path.is_file():
        raise ValueError(
            f"--section_lists {str(path)!r} does not exist: section_parser.py of MIT-LCP/mimic-cxr, or JSON."
        )
    wanted = ("custom_section_names", "custom_indices")
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else _dicts(text, wanted)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"--section_lists {path} cannot be read: {type(error).__name__}.") from None
    if not isinstance(found, dict) or not any(isinstance(found.get(name), dict) for name in wanted):
        raise ValueError(f"--section_lists {path} has neither {' nor '.join(wanted)}, each an object by study.")
    lists: dict[str, str | tuple[int, int]] = {}
    for name in wanted:
        for number, (study, value) in enumerate((found.get(name) or {}).items(), 1):
            lists[plain_study(str(study))] = _entry(value, name, number, path)
    return lists


def _dicts(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The dicts of literals that a Python file assigns to some names."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id in names:
                    found[target.id] = ast.literal_eval(node.value)
    return found


def _entry(value: Any, name: str, number: int, path: Path) -> str | tuple[int, int]:
    if name == "custom_section_names" and isinstance(value, str):
        return value
    if name == "custom_indices" and isinstance(value, list | tuple) and len(value) == 2:
        start, end = value
        if isinstance(start, int) and isinstance(end, int) and 0 <= start <= end:
            return start, end
    form = "a section name" if name == "custom_section_names" else "[start, end] of the text"
    raise ValueError(f"--section_lists {path}: entry {number} of {name} is not {form}.")


class Person(NamedTuple):
    """A row of the patients of MIMIC-IV: age in a (shifted) year."""

    sex: str
    age: int
    year: int


def read_patients(path: Path) -> tuple[dict[str, Person], Table]:
    """Subject -> sex and age of patients.csv (hosp module of MIMIC-IV). Raises: ValueError for a file that is none."""
    if not path.is_file():
        raise ValueError(f"--patients {str(path)!r} does not exist: patients.csv or patients.csv.gz of MIMIC-IV.")
    table = Table(path, ("subject_id", "gender", "anchor_age", "anchor_year"))
    people = {}
    for number, row in table:
        try:
            age, year = int(row["anchor_age"]), int(row["anchor_year"])
        except ValueError:
            raise ValueError(f"{path}, row {number}: anchor_age or anchor_year is no number.") from None
        people[row["subject_id"].strip()] = Person(demographics.parse_sex(row["gender"]), age, year)
    return people, table


def person_at(person: Person | None, date: str) -> dict[str, Any]:
    """`age` and `sex` at a study, {} for a patient who is not in the table.

    MIMIC-IV gives the age in one shifted year; the study date of MIMIC-CXR is taken to be shifted alike. Studies more
    than twenty years apart from it have no age. An age of 91 means 90 and more, whatever the year.
    """
    if person is None:
        return {}
    apart = int(date[:4]) - person.year if date[:4].isdigit() else None
    age = demographics.UNKNOWN_AGE
    if person.age > demographics.OLDEST:
        age = demographics.OLDEST
    elif apart is not None and abs(apart) <= 20:
        age = demographics.capped(person.age + apart)
    return {"age": age, "sex": person.sex}


def section_list_facts(lists: dict[str, str | tuple[int, int]], items: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many studies the lists name, and how many of these are not here."""
    studies = {item["study_id"] for item in items}
    names = sum(isinstance(entry, str) for entry in lists.values())
    return {
        "by name": names,
        "by place": len(lists) - names,
        "without text": sum(not isinstance(entry, str) and entry[0] == entry[1] for entry in lists.values()),
        "studies not here": len(set(lists) - studies),
    }


def listed_text(report: str, entry: str | tuple[int, int], item: dict[str, Any]) -> str:
    """The text that a hand-made entry points at, in the published reading of the report.

    Raises: Rejection: no_text_by_section_list where the list says that there is none, section_list_misfit where the
      report has no such section or place.
    """
    if isinstance(entry, str):
        named = [part.text for part in sections.parse_sections(report, "mimic_official") if part.name == entry]
        text = named[-1] if named else ""
    else:
        text = report.replace("\r\n", "\n").replace("\r", "\n")[entry[0] : entry[1]]
        if entry[0] == entry[1]:
            raise Rejection("no_text_by_section_list", row=item["row"], item=item["image"])
    if not text.strip():
        raise Rejection("section_list_misfit", row=item["row"], item=item["image"])
    return text.strip()
