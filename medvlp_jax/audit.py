"""Has the test set been seen in training? And does anything leave the data folder that must not?

    python -m medvlp_jax.audit cxr_phantom [more data sets] [--data_dir data] [--json out.json]
    python -m medvlp_jax.audit nih rsna --same_as rsna_to_nih.csv      # images that are in both sets under other names
    python -m medvlp_jax.audit mimic_cxr --outputs runs/demo --planted words.txt

Compares every training split with every other split of all data sets named: patients, studies, images, equal pixels,
look-alike images, equal reports. Looks for raw ids, report text, names, record numbers and dates in the side tables of
the data sets and in --outputs. Counts records that cannot be read. Prints numbers and rows, never ids or text.

Exit code: 0 nothing leaks, 1 something does (a patient, study or image of an evaluation split in training; an
identifier or report text in an output), 2 the audit could not be made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvlp_jax.data import identifiers, overlap
from medvlp_jax.data.side_tables import write_json
from medvlp_jax.stats import aligned, readable, sources_of

TRAINING = "train"
SIDE_TABLES = ("counts.json", "provenance.json", "dataset_info.json", "rejected.csv")
OWN_IDS = {"image_report_folder"}  # each config is a set of its own
SHOWN = 10


class Finding(NamedTuple):
    """level: "leak", "warning" or "note". what: a sentence with numbers. rows: places of examples, for JSON."""

    level: str
    what: str
    rows: list[Any]


def audit(
    names: Sequence[str],
    data_dir: str | Path = "data",
    *,
    images: bool = True,
    near: int = overlap.NEAR,
    aliases: Mapping[str, str] | None = None,
    outputs: Sequence[str | Path] = (),
    planted: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """All checks; see the module.

    Args: names: prepared data sets. images: compare pixels, too. near: bits in which look-alike images may differ.
      aliases: see `overlap.IdRules`. outputs: files or folders that others may see. planted: words to look for.
    Returns: {"splits": {name: numbers}, "pairs": [{"evaluation", "other", numbers}], "findings": [Finding as dict]}.
    Raises: FileNotFoundError or ValueError for data or outputs that are not there.
    """
    if len(set(names)) < len(names):
        raise ValueError("The same data set is named twice.")
    for path in outputs:  # before hours of reading
        next(identifiers.files_under(path), None)
    sensitive = identifiers.Sensitive()
    splits: dict[str, overlap.Rows] = {}
    namespaces: dict[str, str] = {}
    findings: list[Finding] = []
    folders: list[Path] = []
    for name in names:
        sources = sources_of(data_dir, name)
        base = name.split("/")[0]
        for split, source in sources.items():
            if source.folder not in folders:
                folders.append(Path(source.folder))
                raw = overlap.raw_ids(folders[-1])
            namespace = name if base in OWN_IDS else base
            rules = overlap.IdRules(namespace, aliases or {})
            key = f"{name} {split}"
            namespaces[key] = namespace
            records = _gathering(readable(source, progress=progress, what=f"auditing {name}"), sensitive, raw)
            splits[key] = overlap.read_rows(records, raw, rules, images=images)
        if not raw:
            findings.append(Finding("note", f"{name} has no ids.csv: its ids are compared within the set only.", []))
    for key, rows in splits.items():
        findings += _within(key, rows)
    pairs = []
    for a, b in _pairs(list(splits)):
        numbers, found = _compare(a, b, splits[a], splits[b], namespaces[a] == namespaces[b], images, near)
        pairs.append({"evaluation": a, "other": b, **numbers})
        findings += found
    findings += _identifiers(folders, outputs, sensitive, planted)
    order = {"leak": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.level])
    return {
        "splits": {
            key: {
                "records": len(rows.row),
                "patients": len(np.unique(rows.patient)),
                "unreadable": len(rows.unreadable),
                "undecodable": len(rows.undecodable),
                "repeated_pixels": overlap.repeated(rows, "pixels"),
            }
            for key, rows in splits.items()
        },
        "pairs": pairs,
        "findings": [finding._asdict() for finding in findings],
    }


def _gathering(records: Any, sensitive: identifiers.Sensitive, raw: Mapping[int, Any]) -> Any:
    for record in records:
        if record is not None:
            sensitive.add(record, raw.get(int(record["image_id"])))
        yield record


def _is_training(key: str) -> bool:
    return key.rsplit(" ", 1)[1] == TRAINING


def _pairs(keys: Sequence[str]) -> list[tuple[str, str]]:
    """(evaluation split, other split), training splits second; two training splits when their sets differ."""
    found = []
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            found.append((b, a) if _is_training(a) else (a, b))
    return found


def _within(key: str, rows: overlap.Rows) -> list[Finding]:
    found = []
    if rows.unreadable:
        found.append(
            Finding("warning", f"{key}: {len(rows.unreadable)} records cannot be read.", rows.unreadable[:100])
        )
    if rows.undecodable:
        what = f"{key}: {len(rows.undecodable)} images cannot be decoded."
        found.append(Finding("warning", what, rows.undecodable[:100]))
    if twice := overlap.repeated(rows, "pixels"):
        found.append(Finding("note", f"{key}: {twice} records have pixels that another one of the split has too.", []))
    return found


def _compare(
    a: str, b: str, left: overlap.Rows, right: overlap.Rows, same_set: bool, images: bool, near: int
) -> tuple[dict[str, int], list[Finding]]:
    """Numbers of one pair and what they mean: `a` is an evaluation split unless both are for training."""
    level = "note" if _is_training(a) else ("leak" if _is_training(b) else "warning")
    numbers: dict[str, int] = {}
    found = []
    for field, word in (("patient", "patients"), ("study", "studies"), ("image", "images"), ("pixels", "pixels")):
        if field == "pixels" and not images:
            continue
        distinct, records = overlap.shared(left, right, field)
        numbers[word] = distinct
        if distinct:
            what = "images with equal pixels" if field == "pixels" else word
            found.append(
                Finding(level, f"{distinct} {what} of {a} are in {b} ({records.count} records).", records.pairs)
            )
    if images and not (_is_training(a) and _is_training(b)):
        alike = overlap.look_alikes(left, right, near=near)
        numbers["look_alike"] = alike.count
        if alike.count and alike.count > numbers["pixels"]:
            what = f"{alike.count} images of {a} look like one of {b} (at most {near} of 256 bits differ)."
            found.append(Finding("warning", what, alike.pairs))
    texts, records = overlap.shared(left, right, "text", most=len(left.row))
    words = dict(zip(left.row.tolist(), left.words.tolist(), strict=True))
    long_ones = [pair for pair in records.pairs if words[pair[0]] >= overlap.LONG_TEXT]
    numbers["texts"], numbers["long_texts"] = texts, len(long_ones)
    if long_ones:
        what = f"{len(long_ones)} records of {a} have a text of {overlap.LONG_TEXT} words or more that is also in {b}."
        found.append(Finding("note" if _is_training(a) else "warning", what, long_ones[:100]))
    if not same_set:
        by_chance, _ = overlap.shared(left, right, "raw_patient")
        if by_chance and not numbers["patients"]:
            what = (
                f"{by_chance} patient ids are spelt alike in {a} and {b}: the same patients only if the numbering is."
            )
            found.append(Finding("warning", what, []))
    return numbers, found


def _identifiers(
    folders: Sequence[Path], outputs: Sequence[str | Path], sensitive: identifiers.Sensitive, planted: Sequence[str]
) -> list[Finding]:
    found = []

    def tell(where: str, finds: Sequence[identifiers.Find]) -> None:
        for kind in dict.fromkeys(find.kind for find in finds):
            own = [find for find in finds if find.kind == kind]
            places = ", ".join(f"{find.file}:{find.line}" for find in own[:3]) + (", ..." if len(own) > 3 else "")
            what = f"{where} holds what looks like a {kind} in {len(own)} lines ({places})."
            found.append(Finding("leak", what, [[find.file, find.line] for find in own[:100]]))

    for folder in folders:
        tables = [folder / name for name in SIDE_TABLES if (folder / name).exists()]
        # rejected.csv names the files of rejected rows, which is what it is for.
        finds = [
            find
            for table in tables
            for find in identifiers.search([table], sensitive, planted, ids=table.name != "rejected.csv")[0]
        ]
        tell(f"{folder.parent.parent.name}/{folder.parent.name}, side tables:", finds)
    for path in outputs:
        path = Path(path)
        base = path if path.is_dir() else path.parent
        finds, counts = identifiers.search(identifiers.files_under(path), sensitive, planted, base=base)
        tell(f"{path.name}:", finds)
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "no file"
        found.append(Finding("note", f"{path.name}: files searched: {told}.", []))
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as text."""
    cells = [["split", "records", "patients", "unreadable", "undecodable"]]
    for key, numbers in result["splits"].items():
        cells.append([key, *(f"{numbers[name]:,}" for name in ("records", "patients", "unreadable", "undecodable"))])
    out = aligned(cells)
    if result["pairs"]:
        known = dict.fromkeys(name for pair in result["pairs"] for name in pair)
        columns = [name for name in known if name not in ("evaluation", "other")]
        rows = [["shared", *(column.replace("_", " ") for column in columns)]]
        sharing = [pair for pair in result["pairs"] if any(pair[name] for name in columns if name in pair)]
        for pair in sharing:
            cells = (f"{pair[column]:,}" if column in pair else "–" for column in columns)
            rows.append([f"{pair['evaluation']} / {pair['other']}", *cells])
        out += ["", *(aligned(rows) if sharing else ())]
        if alone := len(result["pairs"]) - len(sharing):
            out.append(f"Pairs of splits that share nothing: {alone}.")
    out.append("")
    notes = 0
    for finding in result["findings"]:
        notes += finding["level"] == "note"
        if finding["level"] != "note" or notes <= SHOWN:
            out.append(f"{finding['level'].upper():<8} {finding['what']}")
    leaks = sum(finding["level"] == "leak" for finding in result["findings"])
    out.append(f"{leaks} leaks." if leaks else "No leak found.")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.audit", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="+", metavar="NAME", help="data set, or data set/config")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets (default: data)")
    parser.add_argument("--json", type=Path, help="write the result to this file, with the rows of examples")
    parser.add_argument("--no-images", dest="images", action="store_false", help="compare ids and texts only")
    parser.add_argument(
        "--near", type=int, default=overlap.NEAR, help=f"bits of 256 in which look-alikes may differ ({overlap.NEAR})"
    )
    parser.add_argument("--same_as", type=Path, help="CSV with columns image_id, same_as: one image under two names")
    parser.add_argument("--outputs", nargs="*", default=[], type=Path, help="run folders, reports, exports to search")
    parser.add_argument("--planted", type=Path, help="file with words that must appear nowhere, one a line")
    chosen = parser.parse_args(argv)
    try:
        if not 0 <= chosen.near <= 256:
            raise ValueError(f"--near {chosen.near} must be between 0 and 256 bits.")
        result = audit(
            chosen.names,
            chosen.data_dir,
            images=chosen.images,
            near=chosen.near,
            aliases=overlap.read_aliases(chosen.same_as) if chosen.same_as else None,
            outputs=chosen.outputs,
            planted=identifiers.read_planted(chosen.planted) if chosen.planted else (),
            progress=sys.stderr.isatty(),
        )
        print("\n".join(lines(result)))
        if chosen.json:
            write_json(chosen.json, result)
            print(chosen.json)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 1 if any(finding["level"] == "leak" for finding in result["findings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
