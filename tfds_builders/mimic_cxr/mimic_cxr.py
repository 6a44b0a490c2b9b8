"""MIMIC-CXR and MIMIC-CXR-JPG as PhysioNet serves them: images, sectioned reports, 14 labels, the official split.

    python -m medvlp_jax.prepare mimic_cxr --root /data/mimic-cxr-jpg/2.1.0 --reports /data/mimic-cxr-reports.zip

Access, counts, settings and reasons: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.data import archives, film_records, label_files, records, sections, splits, staging
from medvlp_jax.data.label_files import read_label_file
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional
from tfds_builders import common
from tfds_builders.mimic_cxr import derived

WHAT = (
    "the MIMIC-CXR-JPG folder of PhysioNet, with mimic-cxr-2.0.0-split.csv.gz, mimic-cxr-2.0.0-metadata.csv.gz and "
    "files/ (https://physionet.org/content/mimic-cxr-jpg/)"
)
SPLIT_NAMES = {"train": "train", "validate": "validation", "test": "test"}
EXTENSIONS = {"auto": (".jpg", ".dcm", ".png"), "jpg": (".jpg",), "dcm": (".dcm",), "png": (".png",)}
LABELERS = ("chexpert", "negbio", "none")
SECTIONED = ("impression", "findings", "last_paragraph")
REPORT_PATHS = ("files/{tree}.txt", "{tree}.txt", "mimic-cxr-reports/files/{tree}.txt")


@dataclasses.dataclass(eq=False)
class MimicConfig(common.LocalConfig):
    """Settings of MIMIC-CXR; the defaults are what most published methods train on."""

    reports: str = ""
    """Folder or .zip with files/p10/p10000032/s50414267.txt, or a table of sections; default: --root."""
    tables: str = ""
    """Folder of the split, metadata and label tables; default: --root."""
    images: str = "auto"
    """Kind of file: jpg, dcm, png (a smaller copy of yours in the same tree), or auto, the first of these there is."""
    only_frontal: bool = True
    """ViewPosition PA or AP."""
    labeler: str = "chexpert"
    """Published label table: chexpert, negbio or none. --label_table takes any other."""
    expert_test: bool = False
    """Labels of the test split from the radiologist's table of 2.1.0 (687 studies); images without are left out."""
    sections: str = "mimic"
    """How reports are cut; see `sections.MODES`."""
    last_paragraph: bool = False
    """Use the last paragraph as findings when a report has neither findings nor impression."""
    section_lists: str = ""
    """Hand-made lists for reports that no rule can cut: section_parser.py of MIT-LCP/mimic-cxr, or JSON."""
    patients: str = ""
    """patients.csv of MIMIC-IV: sex, and age in the year of the study."""
    per_class: int = 0
    """Frontal training images of each of five classes that become the split test_5x200, one per patient, by the labels
    of --labeler or --label_table (`splits.five_by_200`); their patients leave train. 0: none."""
    min_words: int = 3
    """Words that findings and impression must have together."""
    official_split: bool = True
    """False draws splits by patient (--fractions, --seed)."""
    exclude: str = ""
    """Tables, comma separated, whose patients are left out of train and validation: any CSV with a column dicom_id,
    study_id, subject_id or patient_id, such as that of MS-CXR."""


CONFIG = MimicConfig(name="default")


def plan(config: MimicConfig) -> Plan:
    """Joins the tables: one work item per image. Reports are read later, by the workers.

    Raises: ValueError for a table, column or folder that is not there, naming it.
    """
    root = common.root_of(config, WHAT)
    for setting, choices in (("images", tuple(EXTENSIONS)), ("labeler", LABELERS), ("sections", sections.MODES)):
        if getattr(config, setting) not in choices:
            raise ValueError(f"{setting}={getattr(config, setting)!r}; choices: {', '.join(choices)}.")
    tables_root = Path(config.tables).expanduser() if config.tables else root
    reports = config.reports or str(root)
    if not Path(reports).expanduser().exists():
        raise ValueError(f"--reports {reports!r} does not exist: a folder or .zip of reports, or a sectioned .csv.")
    metadata = _metadata(tables_root)
    used = [metadata]
    split_of = {}
    if config.official_split:
        table = Table(_table(tables_root, "split"), ("dicom_id", "split"))
        split_of = {row["dicom_id"]: SPLIT_NAMES.get(row["split"].strip(), "") for _, row in table}
        used.append(table)
    expert = None
    if config.expert_test:
        path = find_file(tables_root, ("mimic-cxr-*-test-set-labeled.csv*",), "expert label table")
        expert = read_label_file(path, complete=True)
        used.append(expert.table)
    people: dict[str, derived.Person] = {}
    if config.patients:
        people, table = derived.read_patients(Path(config.patients).expanduser())
        used.append(table)
    has_views = "ViewPosition" in metadata.columns
    find_image = image_finder(root, EXTENSIONS[config.images])
    items, rejections = Packed(), []
    for number, row in metadata:
        study, subject, dicom = row["study_id"].strip().removeprefix("s"), row["subject_id"].strip(), row["dicom_id"]
        tree = f"p{subject[:2]}/p{subject}/s{study}"
        split = split_of.get(dicom, "")
        if config.official_split and not split:
            rejections.append(Rejection("not_in_split_table", row=number, item=f"{tree}/{dicom}"))
            continue
        by_expert = expert is not None and split == "test"
        if by_expert and study not in expert.states:
            rejections.append(Rejection("no_expert_label", row=number, item=f"{tree}/{dicom}"))
            continue
        word = row.get("ViewPosition", "").strip()
        items.append(
            {
                "row": number,
                "image": f"{tree}/{dicom}",
                "tree": tree,
                "reports": reports,
                "image_id": dicom,
                "study_id": study,
                "patient_id": subject,
                "split": split,
                "view": common.view_name(word),
                "view_from_header": not has_views,
                **derived.person_at(people.get(subject), row.get("StudyDate", "")),
                "labels": expert.states[study] if by_expert else {},
                "keep_labels": by_expert,
                "facts": [f"ViewPosition {word or 'blank'}"] if has_views else [],
            }
        )
    del split_of, expert  # joined
    if config.exclude:
        items, out = _excluded(items, config.exclude)
        rejections += out
    provenance: dict[str, Any] = {}
    if config.label_table or config.labeler != "none":
        path = Path(config.label_table).expanduser() if config.label_table else _table(tables_root, config.labeler)
        file = read_label_file(path, complete=not config.label_table)
        used.append(file.table)
        provenance["label_files"] = {file.table.path.name: label_files.attach(items, file)}
        del file
    provenance |= _expect_reports(items, reports, config)
    rule = "official" if config.official_split else ""
    if config.per_class:
        if not (has_views and config.official_split and provenance.get("label_files")):
            raise ValueError("--per_class needs the official split, a label table and a table with ViewPosition.")
        items, out = splits.take_five_by_200(items, config.per_class, config.seed)
        rejections += out
        rule += f"; {splits.FIVE_BY_200} drawn with seed {config.seed}"
    config = dataclasses.replace(config, label_table="")  # read above
    return common.finish_plan(
        items, rejections, config, tables=used, split_rule=rule, provenance=provenance, locate=find_image
    )


def _expect_reports(items: Packed, reports: str, config: MimicConfig) -> dict[str, Any]:
    """What is known of the reports before any is read, for provenance; items of hand-made lists get their entry.

    Raises: ValueError when none of some studies has a report: the folder is the wrong one, and the build would take
      hours to say so; and for a table or lists of another form.
    """
    path = Path(reports).expanduser()
    if path.suffix != ".zip":
        archives.refuse(path, "--reports")
    lists = derived.read_section_lists(Path(config.section_lists).expanduser()) if config.section_lists else {}
    if _is_table(path):
        if lists:
            raise ValueError("--section_lists speaks of report files; with a table as --reports there are none.")
        found = derived.read_sectioned(path)
        return {"sectioned": {path.name: {"sha256": found.sha256, **derived.sectioned_facts(found, items)}}}
    some = list(itertools.islice(items, 0, None, max(1, len(items) // 64)))
    there = any(_report(path, item["tree"]) is not None for item in some)
    if some and not there:
        raise ValueError(
            f"No report under {reports!r}: looked for {', '.join(REPORT_PATHS)} of {len(some)} studies, {{tree}} being "
            "p10/p10000032/s50414267. Reports belong to MIMIC-CXR: give their folder or .zip with --reports."
        )
    if not lists:
        return {}
    for item in items.edit():
        if item["study_id"] in lists:
            item["section_list"] = lists[item["study_id"]]
    return {"section_lists": derived.section_list_facts(lists, items)}


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix != ".zip"


def _table(root: Path, kind: str) -> Path:
    hint = " or add --official_split false" if kind == "split" else " or add --labeler none" if kind in LABELERS else ""
    try:
        return find_file(root, (f"mimic-cxr-2*-{kind}.csv.gz", f"mimic-cxr-2*-{kind}.csv"), f"{kind} table")
    except ValueError as error:
        raise ValueError(f"{error} It belongs to MIMIC-CXR-JPG; give its folder with --tables{hint}.") from None


def _metadata(root: Path) -> Table:
    """The metadata table of MIMIC-CXR-JPG, or the record list of the DICOM project, which has no views."""
    ids = ("dicom_id", "subject_id", "study_id")
    record_list = find_optional(root, ("cxr-record-list.csv.gz", "cxr-record-list.csv"))
    if record_list and not find_optional(root, ("mimic-cxr-2*-metadata.csv*",)):
        return Table(record_list, ids)
    return Table(_table(root, "metadata"), (*ids, "ViewPosition"), ("StudyDate",))


def mimic_images(path: str) -> Path:
    """The folder of the images that another set speaks of. Raises: ValueError when it is none."""
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise ValueError(
            f"--images_root {path!r} is no folder. This set has no images of its own: give the folder of MIMIC-CXR-JPG."
        )
    return folder


def image_finder(root: Path, extensions: tuple[str, ...]) -> Callable[[dict[str, Any]], str]:
    """Work item with its tree and image_id -> path of the image. The folder and extension of the last hit go first."""
    bases = [base for base in ("files", "") if base == "" or (root / base).is_dir()]
    order = [(base, extension) for base in bases for extension in extensions]

    def find(item: dict[str, Any]) -> str:
        paths = [os.path.join(root, base, item["tree"], item["image_id"] + ext) for base, ext in order]
        for place, path in enumerate(paths):
            if os.path.exists(path):
                order.insert(0, order.pop(place))
                return path
        return paths[0]

    return find


def _excluded(items: Packed, paths: str) -> tuple[Packed, list[Rejection]]:
    """Without the patients of the tables, in train and validation."""
    keys = {"subject_id": "patient_id", "patient_id": "patient_id", "study_id": "study_id", "dicom_id": "image_id"}
    patients: set[str] = set()
    for path in filter(None, (part.strip() for part in paths.split(","))):
        table = Table(Path(path).expanduser(), ())
        column = next((name for name in keys if name in table.columns), None)
        if column is None:
            raise ValueError(f"--exclude {path} has none of the columns {', '.join(keys)}.")
        named = {row[column].strip().lstrip("ps") for _, row in Table(table.path, (column,))}
        patients |= {item["patient_id"] for item in items if item[keys[column]] in named}
    kept, rejections = Packed(), []
    for item in items.drain():
        if item["patient_id"] in patients and item["split"] != "test":
            rejections.append(Rejection("excluded_patient", row=item["row"], item=item["image"]))
        else:
            kept.append(item)
    return kept, rejections


def make_examples(item: dict[str, Any], config: MimicConfig) -> list[staging.Example]:
    """Reads the report and the image of one row. Raises: Rejection."""
    report, both, facts = _text(item, config)
    words = len(both["findings"].split()) + len(both["impression"].split())
    if not words:
        reason = "no_findings_or_impression" if report.strip() else "empty_report"
        raise Rejection(reason, row=item["row"], item=item["image"])
    if words < config.min_words:
        raise Rejection("too_few_words", row=item["row"], item=item["image"], detail=f"{words} words")
    text = {"findings": both["findings"], "impression": both["impression"], "report": report}
    return film_records.make_record({**item, **text, "facts": [*item["facts"], *facts]}, config)


def _text(item: dict[str, Any], config: MimicConfig) -> tuple[str, dict[str, Any], list[str]]:
    """(whole report, its two sections, how they were found)."""
    policy = "last_paragraph" if config.last_paragraph else "mask"
    path = Path(item["reports"]).expanduser()
    if _is_table(path):
        row = derived.read_sectioned(path).of(item)
        if row is None:
            raise Rejection("missing_report_file", row=item["row"], item=item["image"], detail="not in the table")
        last = row.get("last_paragraph", "")
        both = sections.apply_policy(row["findings"], row["impression"], policy, last_paragraph=last)
        return " ".join(row[name] for name in SECTIONED if row.get(name)), both, _found(both)
    try:
        report = _report(path, item["tree"])
    except ValueError as error:
        raise Rejection("damaged_report_file", row=item["row"], item=item["image"], detail=str(error)) from None
    if report is None:
        raise Rejection("missing_report_file", row=item["row"], item=item["image"])
    entry = item.get("section_list")
    if entry is not None:
        both = sections.apply_policy(derived.listed_text(report, entry, item), "", "mask")
        kind = "by name" if isinstance(entry, str) else "by place"
        return report, both, [f"text: hand-made section list, {kind}"]
    parsed = sections.parse_sections(report, config.sections)
    both = sections.choose(parsed, policy)
    return report, both, _found(both)


def _found(both: dict[str, Any]) -> list[str]:
    names = [name for name in ("findings", "impression") if both[f"has_{name}"]]
    return ["text: " + " and ".join(names)]


def _report(path: Path, tree: str) -> str | None:
    """The text of a study from a folder or a .zip; None when it has none. Raises: ValueError for a damaged .zip."""
    names = [pattern.format(tree=tree) for pattern in REPORT_PATHS]
    if path.is_dir():
        found = next((path / name for name in names if (path / name).is_file()), None)
        return None if found is None else found.read_text("utf-8", errors="replace")
    archive, members = _archive(path)
    found = next((name for name in names if name in members), None)
    if found is None:
        return None
    with _LOCK:
        return archives.read_member(archive, found).decode("utf-8", errors="replace")


_LOCK = threading.Lock()


@functools.lru_cache(maxsize=2)  # opened once by each worker process
def _archive(path: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
    archive = archives.open_zip(path)
    return archive, frozenset(archive.namelist())


def describe(sources: Mapping[str, records.RecordSource]) -> list[str]:
    """Lines printed after a build: as of every local set, and what the user's own files held."""
    provenance = common.provenance_of(sources)
    lines = common.describe(sources)
    for name, facts in provenance.get("sectioned", {}).items():
        parts = [f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in facts.items() if k != "sha256"]
        lines.append(f"Sections of {name}: {'; '.join(parts)}")
    if provenance.get("section_lists"):
        facts = ", ".join(f"{name}: {number}" for name, number in provenance["section_lists"].items())
        lines.append(f"Hand-made section lists: {facts}")
    return lines


class MimicCxr(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare mimic_cxr`."""

    ABOUT = "MIMIC-CXR images with sectioned reports and 14 labels."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
