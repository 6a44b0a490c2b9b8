"""How well the rule-based labels agree with annotations:  python benchmarks/label_rules.py ARCHIVE [--data_dir data]

ARCHIVE is the Open-i report archive `NLMCXR_reports.tgz` of the Indiana University collection (XML; inside the wheel
`torchxrayvision`). Its MeSH headings, given by people who read the reports, are compared with the labels that
`medvlp_jax.data.label_rules` finds in findings and impression. Half of the reports, chosen by a hash of their id,
was looked at while the rules were written; the other half was not. Nothing of the archive is written anywhere.

With --data_dir, the reports of the prepared `cxr_phantom` are compared with the labels they were rendered from.
"""

from __future__ import annotations

import argparse
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from medvlp_jax.data.label_rules import labels_of_sections
from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, NOT_MENTIONED, PRESENT, UNCERTAIN
from medvlp_jax.data.records import RecordSource, hashed_id
from medvlp_jax.data.triplets import triplets_of


class Annotated(NamedTuple):
    """A report and its MeSH headings."""

    uid: str
    findings: str
    impression: str
    headings: tuple[str, ...]


def read_archive(path: str | Path) -> Iterator[Annotated]:
    """The reports of the archive, in its order."""
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.name.endswith(".xml"):
                continue
            tree = ElementTree.parse(archive.extractfile(member))
            text = {node.get("Label", ""): node.text or "" for node in tree.iter("AbstractText")}
            headings = tuple((node.text or "").strip().lower() for node in tree.iter("major"))
            uid = tree.find("uId").get("id")
            yield Annotated(uid, text.get("FINDINGS", ""), text.get("IMPRESSION", ""), headings)


def from_headings(headings: Sequence[str]) -> set[str]:
    """CheXpert names of the observations that MeSH headings such as "Opacity/lung/base/left" state."""
    found = set()
    for heading in headings:
        first, *rest = (part.strip() for part in heading.split("/"))
        site = set(rest)
        if first in SAME:
            found.update(SAME[first])
        elif first == "cardiac shadow" and "enlarged" in site:
            found.add("Cardiomegaly")
        elif first == "mediastinum" and site & {"enlarged", "prominent", "widened"}:
            found.add("Enlarged Cardiomediastinum")
        elif (first in ("opacity", "density") and not site & NOT_LUNG) or (
            first == "markings" and "interstitial" in site
        ):
            found.add("Lung Opacity")
        elif first in ("nodule", "mass") and not site & NOT_LUNG:
            found.add("Lung Lesion")
        elif first in ("thickening", "cicatrix", "calcinosis") and "pleura" in site:
            found.add("Pleural Other")
    return found


SAME: dict[str, tuple[str, ...]] = {
    "normal": ("No Finding",),
    "cardiomegaly": ("Cardiomegaly",),
    "airspace disease": ("Lung Opacity",),
    "infiltrate": ("Lung Opacity",),
    "lung diseases, interstitial": ("Lung Opacity",),
    "pulmonary edema": ("Edema",),
    "pulmonary congestion": ("Edema",),
    "heart failure": ("Edema",),
    "consolidation": ("Consolidation",),
    "pneumonia": ("Pneumonia",),
    "pulmonary atelectasis": ("Atelectasis",),
    "pneumothorax": ("Pneumothorax",),
    "hydropneumothorax": ("Pneumothorax", "Pleural Effusion"),
    "hemopneumothorax": ("Pneumothorax", "Pleural Effusion"),
    "pleural effusion": ("Pleural Effusion",),
    "hemothorax": ("Pleural Effusion",),
    "fractures, bone": ("Fracture",),
    "catheters, indwelling": ("Support Devices",),
    "implanted medical device": ("Support Devices",),
    "medical device": ("Support Devices",),
    "tube, inserted": ("Support Devices",),
    "stents": ("Support Devices",),
    "spinal fusion": ("Support Devices",),
}
NOT_LUNG = {
    "bone and bones",
    "ribs",
    "thoracic vertebrae",
    "spine",
    "humerus",
    "shoulder",
    "clavicle",
    "breast",
    "neck",
}


def f1(predicted_NxF: np.ndarray, true_NxF: np.ndarray) -> tuple[np.ndarray, float]:
    """F1 per column (NaN without positives on either side) and micro-averaged."""
    hits, false, missed = (
        (predicted_NxF & true_NxF).sum(0),
        (predicted_NxF & ~true_NxF).sum(0),
        (~predicted_NxF & true_NxF).sum(0),
    )
    with np.errstate(invalid="ignore"):
        return 2 * hits / (2 * hits + false + missed), float(2 * hits.sum() / (2 * hits + false + missed).sum())


def archive_table(path: str | Path) -> list[str]:
    """Lines of the table over the archive."""
    reports = list(read_archive(path))
    indexed = [report for report in reports if report.headings and report.headings != ("no indexing",)]
    texts = [report for report in indexed if report.findings.strip() or report.impression.strip()]
    start = time.perf_counter()
    labels_Nx14 = np.stack([labels_of_sections(report.findings, report.impression) for report in texts])
    seconds = time.perf_counter() - start
    true_Nx14 = np.array([[name in from_headings(r.headings) for name in CHEXPERT_LABELS] for r in texts])
    seen_N = np.array([hashed_id(report.uid) % 2 == 0 for report in texts])
    lines = [
        f"{len(reports)} reports; {len(reports) - len(indexed)} without headings, "
        f"{len(indexed) - len(texts)} without findings and impression; {len(texts)} compared, "
        f"{len(texts) / seconds:.0f} reports/s",
        f"{'F1':<28}{'half looked at':>22}{'other half':>22}",
        f"{'positive when':<28}" + 2 * f"{'present':>11}{'or unsure':>11}" + f"{'annotated':>11}{'(other)':>9}",
    ]
    columns = []
    for half_N in (seen_N, ~seen_N):
        for states in ((PRESENT,), (PRESENT, UNCERTAIN)):
            columns.append(f1(np.isin(labels_Nx14[half_N], states), true_Nx14[half_N]))
    for f, name in enumerate(CHEXPERT_LABELS):
        cells = "".join(f"{per_class[f]:>11.3f}" for per_class, _ in columns)
        lines.append(f"{name:<28}{cells}{true_Nx14[:, f].sum():>11}{true_Nx14[~seen_N, f].sum():>9}")
    cells = "".join(f"{micro:>11.3f}" for _, micro in columns)
    lines.append(f"{'micro':<28}{cells}{true_Nx14.sum():>11}{true_Nx14[~seen_N].sum():>9}")
    return lines


def places(positions: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """(sides, regions) of positions or of the parts of a heading; both sides for bilateral."""
    sides, regions = set(), set()
    for position in positions:
        for side in SIDES.get(position.split(" ")[0], ()):
            sides.add(side)
        regions.update(region for region in REGIONS if position.endswith(region))
    return frozenset(sides), frozenset(regions)


SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right"), "both": ("left", "right")}
REGIONS = ("upper lobe", "middle lobe", "lower lobe", "lingula", "apex", "base", "hilum", "retrocardiac")
LOCATED = (
    "Lung Opacity",
    "Lung Lesion",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
)


def position_table(path: str | Path) -> list[str]:
    """Lines of the table of places: of the observations that both state, how often sides and regions are the same."""
    counts = {half: {"sides": [0, 0], "regions": [0, 0]} for half in (0, 1)}
    for report in read_archive(path):
        found: dict[str, list[str]] = {}
        for triplet in triplets_of(f"{report.findings}\n\n{report.impression}"):
            if triplet.exists == PRESENT:
                found.setdefault(triplet.entity, []).append(triplet.position)
        half = hashed_id(report.uid) % 2
        for name in LOCATED:
            own = [h for h in report.headings if name in from_headings([h])]
            if not own or name not in found:
                continue
            parts = [part.strip() for heading in own for part in heading.split("/")[1:]]
            for kind, said, annotated in zip(("sides", "regions"), places(found[name]), places(parts), strict=True):
                if annotated:
                    counts[half][kind][0] += said == annotated
                    counts[half][kind][1] += 1
    lines = [f"{'same place':<28}{'half looked at':>22}{'other half':>22}"]
    for kind in ("sides", "regions"):
        cells = (f"{counts[h][kind][0] / counts[h][kind][1]:.3f} of {counts[h][kind][1]}" for h in (0, 1))
        lines.append(f"{kind:<28}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def phantom_table(data_dir: str | Path, name: str = "cxr_phantom") -> list[str]:
    """Lines of the table over the phantom's test split: share of equal states, and F1 of each state."""
    source = RecordSource(data_dir, name, "test")
    records = [source[i] for i in range(len(source))]
    true_Nx14 = np.stack([record["labels"] for record in records])
    found_Nx14 = np.stack([labels_of_sections(r["findings"], r["impression"], other_findings=False) for r in records])
    lines = [f"{len(records)} reports of {name}", f"{'F1':<28}{'present':>10}{'absent':>10}{'unsure':>10}{'equal':>10}"]
    columns = [f1(found_Nx14 == state, true_Nx14 == state) for state in (PRESENT, ABSENT, UNCERTAIN)]
    equal_Nx14 = found_Nx14 == true_Nx14
    for f, label in enumerate(CHEXPERT_LABELS):
        cells = "".join(f"{per_class[f]:>10.3f}" for per_class, _ in columns)
        lines.append(f"{label:<28}{cells}{equal_Nx14[:, f].mean():>10.3f}")
    lines.append(f"{'micro':<28}" + "".join(f"{m:>10.3f}" for _, m in columns) + f"{equal_Nx14.mean():>10.3f}")
    mentioned = (true_Nx14 != NOT_MENTIONED) | (found_Nx14 != NOT_MENTIONED)
    lines.append(f"equal among mentioned: {equal_Nx14[mentioned].mean():.3f} of {mentioned.sum()}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, nargs="?", help="NLMCXR_reports.tgz")
    parser.add_argument("--data_dir", type=Path, help="where the prepared cxr_phantom is")
    chosen = parser.parse_args()
    if chosen.archive is None and chosen.data_dir is None:
        parser.error("give the archive, --data_dir, or both")
    if chosen.archive is not None:
        print("\n".join([*archive_table(chosen.archive), *position_table(chosen.archive)]))
    if chosen.data_dir is not None:
        print("\n".join(phantom_table(chosen.data_dir)))


if __name__ == "__main__":
    main()
