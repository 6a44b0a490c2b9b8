"""What is in a prepared data set?

    python -m medvlp_jax.stats cxr_phantom [--data_dir data] [--json out.json] [--html out.html] [--tokenizer phantom]

Prints tables: records, views, sexes, ages, labels, section lengths per split. `--json` keeps all numbers, `--html`
writes one page that needs no network; pictures and texts are in it only for records that are marked public.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import tokenizer
from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.data.records import SPLITS, RecordSource, prepared_folder
from medvlp_jax.data.side_tables import write_json
from medvlp_jax.data.statistics import SECTIONS, describe

OWN_LABELS = 30  # printed


def sources_of(data_dir: str | Path, name: str) -> dict[str, RecordSource]:
    """Every split of a prepared data set, train first. Raises: FileNotFoundError naming the prepare command."""
    info = json.loads((prepared_folder(data_dir, name) / "dataset_info.json").read_text(encoding="utf-8"))
    found = [split["name"] for split in info["splits"] if any(int(n) for n in split.get("shardLengths", []))]
    order = sorted(found, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: RecordSource(data_dir, name, split) for split in order}


def readable(source: RecordSource, *, progress: bool, what: str) -> Iterator[dict[str, Any] | None]:
    """Records in order; None for one that cannot be read, whatever the reason."""
    from tqdm import tqdm

    for index in tqdm(
        range(len(source)), desc=f"{what} {source.split}", unit="record", disable=not progress, leave=False
    ):
        try:
            yield source[index]
        except Exception:  # a damaged record must not hide the others; callers count it
            yield None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def tables(splits: Mapping[str, Mapping[str, Any]], vocabulary: str) -> list[str]:
    """The statistics of all splits as lines of text."""
    fields = ("records", "studies", "patients", "has_findings", "has_impression", "with_boxes", "with_masks")
    fields += ("with_lung_mask", "public", "unreadable", "unreadable_image")
    rows = [["", *splits]]
    rows += [[field, *(f"{found[field]:,}" for found in splits.values())] for field in fields]
    for field in ("distinct", "repeated"):
        rows.append([f"texts {field}", *(f"{found['texts'][field]:,}" for found in splits.values())])
    views = dict.fromkeys(view for found in splits.values() for view in found["views"])
    rows += [[f"view {view}", *(f"{found['views'].get(view, 0):,}" for found in splits.values())] for view in views]
    for field, word in (("sexes", "sex"), ("decades", "age")):
        counts = [found["ages"]["decades"] if field == "decades" else found[field] for found in splits.values()]
        names = dict.fromkeys(name for of_split in counts for name in of_split)
        if set(names) - {"not known"}:
            order = sorted(names, key=lambda name: (name == "not known", name))
            rows += [[f"{word} {name}", *(f"{of_split.get(name, 0):,}" for of_split in counts)] for name in order]
    lines = aligned(rows)
    named = [
        n
        for n in CHEXPERT_LABELS
        if any(sum(f["labels"][n].values()) - f["labels"][n]["not_mentioned"] for f in splits.values())
    ]
    if named:
        cells = [["present (absent, uncertain)", *splits]]
        for name in named:
            states = [found["labels"][name] for found in splits.values()]
            cells.append([name, *(f"{s['present']:,} ({s['absent']:,}, {s['uncertain']:,})" for s in states)])
        lines += ["", *aligned(cells)]
    own: collections.Counter[str] = collections.Counter()
    for found in splits.values():
        own.update({name: states.get("present", 0) for name, states in found["own_labels"].items()})
    if own:
        cells = [["present, in the set's own words", *splits]]
        for name, _ in own.most_common(OWN_LABELS):
            cells.append([name, *(f"{f['own_labels'].get(name, {}).get('present', 0):,}" for f in splits.values())])
        lines += ["", *aligned(cells)]
        if len(own) > OWN_LABELS:
            lines.append(f"({len(own) - OWN_LABELS} more in --json and --html)")
    cells = [["lengths", "present", "words, median", "p95", "tokens, median", "p95", "max"]]
    for split, found in splits.items():
        for name in SECTIONS:
            section = found["sections"][name]
            if section["present"]:
                words, tokens = section["words"]["summary"], section["tokens"]["summary"]
                numbers = (words["median"], words["p95"], tokens["median"], tokens["p95"], tokens["max"])
                cells.append([f"{split} {name}", f"{section['present']:,}", *(f"{number:g}" for number in numbers)])
    if len(cells) > 1:
        lines += ["", *aligned(cells), f"(tokens of {vocabulary!r}, special ones included)"]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.stats", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", help="data set, or data set/config")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets (default: data)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--html", type=Path, help="write one self-contained page to this file")
    parser.add_argument(
        "--tokenizer", default=tokenizer.PHANTOM, help="text weights whose tokens are counted (default: phantom)"
    )
    chosen = parser.parse_args(argv)
    try:
        sources = sources_of(chosen.data_dir, chosen.name)
        length = tokenizer.load(chosen.tokenizer).length
        progress = sys.stderr.isatty()
        splits = {
            split: describe(readable(source, progress=progress, what="reading"), length)
            for split, source in sources.items()
        }
        print("\n".join(tables(splits, chosen.tokenizer)))
        if chosen.json:
            try:
                write_json(chosen.json, {"data": chosen.name, "tokenizer": chosen.tokenizer, "splits": splits})
            except OSError as error:
                raise ValueError(f"{chosen.json} cannot be written: {error.strerror}. Choose another --json.") from None
            print(chosen.json)
        if chosen.html:
            print(_page(chosen.html, chosen.name, sources, splits, chosen.tokenizer))
    except (ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _page(
    path: Path, name: str, sources: Mapping[str, RecordSource], splits: Mapping[str, Any], vocabulary: str
) -> Path:
    from medvlp_jax.report import data_page

    chosen = []
    for split, source in sources.items():
        if splits[split]["public"] and not chosen:
            rows = np.unique(np.linspace(0, len(source) - 1, data_page.SAMPLES).astype(int))
            chosen = [record for record in (_one(source, row) for row in rows) if record is not None]
    return data_page.write_data_page(path, name, splits, data_page.samples(chosen), vocabulary)


def _one(source: RecordSource, row: int) -> dict[str, Any] | None:
    try:
        return source[int(row)]
    except Exception:  # counted already
        return None


if __name__ == "__main__":
    sys.exit(main())
