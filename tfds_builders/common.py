"""What every builder of downloaded images shares: settings, the shape of a builder, and the end of its plan."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from medvlp_jax.data import archives, film_records, label_files, records, splits, staging
from medvlp_jax.data.checksums import Checksums
from medvlp_jax.data.film_records import FRONTAL, VIEW_NAMES
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import IMAGE_COLUMNS, ImageIndex, Table


@dataclasses.dataclass(eq=False)
class LocalConfig(tfds.core.BuilderConfig):
    """Settings of a set whose files lie on this machine; each is a command-line option of `medvlp_jax.prepare`."""

    root: str = ""
    """Folder that was downloaded."""
    size: int = 256
    """Pixels, 0 for the original size; see `images.resize_keep_aspect`."""
    fit: str = "pad"
    """"pad" to a square, resize the "shorter" side, or "squash"."""
    crop_border: bool = False
    """Cut dark edges first."""
    depth: int = 8
    """Bits per stored pixel, 8 or 16 (16 keeps what 16-bit files and DICOM hold)."""
    encoding: str = "auto"
    """"png", "jpeg", or "auto": JPEG where the source is JPEG, otherwise PNG."""
    frame: int = -1
    """Frame of multi-frame DICOM files; -1 rejects them."""
    only_frontal: bool = False
    """Leave out laterals and images of unknown view."""
    splits: str = ""
    """Splits to build, e.g. "train,test"; all when empty."""
    fractions: str = "0.8,0.1,0.1"
    """Shares of patients for train, validation and test where splits are drawn."""
    seed: int = 0
    """Of drawn splits; a patient keeps its split when others are added."""
    split_conflict: str = "error"
    """A patient in two splits: "error", "drop" all its images, or keep those of the "first" split it occurs in."""
    checksums: str = ""
    """SHA256SUMS.txt of the download, as PhysioNet has one: images that differ are refused, tables stop the build."""
    split_table: str = ""
    """CSV with an image column (image_id, dicom_id, Image Index, ...) and `split`: its split instead of the set's own;
    images that it lacks are left out. An ids.csv of another build is such a table."""
    label_table: str = ""
    """CSV of another labeler (study_id or an image column, and CheXpert names) whose labels replace the set's own."""
    labels: str = "own"
    """The fourteen: the set's "own", by "rules" from findings and impression, or "fill": rules where it has none."""
    sentences: str = "simple"
    """Sentence rule; see `sentences.RULES`."""
    cleaning: str = "none"
    """Rule for findings, impression and sentences, after these are split; see `cleaning.RULES`."""
    deid: str = "keep"
    """Marks of removed words (`___`, `XXXX`): "keep", "drop", or "unify" to one `___` a run."""
    film_check: bool = True
    """Count pictures that look inverted, empty or unlike a chest (`film_check`): kept, and named in ids.csv."""
    age_and_sex: bool = True
    """Keep age in years (90 for 90 and more) and sex where tables or DICOM headers tell them."""
    blank_burned_in: bool = False
    """Paint over what looks like letters near the border (`burned_in`): counted, as is what DICOM headers say."""
    public: bool = False
    """May text and pixels of these records be shown in reports and logs?"""
    limit: int = 0
    """Images of each split, the first whose files are there; 0 for all."""


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder made of two functions of its module, `plan` and `make_examples`; see `data/staging.py`."""

    VERSION = tfds.core.Version("1.0.0")
    ABOUT: ClassVar[str] = ""
    plan: ClassVar[Callable[[Any], Plan]]
    make_examples: ClassVar[staging.MakeExamples]
    staging: staging.Staging | None = None

    def __init_subclass__(cls, **kwargs: Any):
        # TFDS knows data sets of its own by some of these names; ours are found by their module.
        super().__init_subclass__(**{**kwargs, "skip_registration": True})

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(self, self.ABOUT)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[staging.Example]]:
        del dl_manager  # nothing is downloaded
        cls = type(self)
        return staging.split_generators(self, cls.plan(self.builder_config), cls.make_examples)

    def _generate_examples(self, examples: Iterator[staging.Example]) -> Iterator[staging.Example]:
        yield from examples


def root_of(config: LocalConfig, what: str) -> Path:
    """The folder that --root names. Args: what: what to download, and where to ask for it. Raises: ValueError."""
    check_settings(config)
    if not config.root:
        raise ValueError(f"No folder. Give the downloaded one with --root: {what}.")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        archives.refuse(root, "--root")
        raise ValueError(f"--root {config.root!r} is no folder. It should be {what}.")
    return root


def check_settings(config: LocalConfig) -> None:
    """Raises ValueError for a setting that has no such value."""
    film_records.check_settings(config)
    splits.thresholds(config.fractions)
    if config.split_conflict not in splits.CONFLICTS:
        raise ValueError(f"split_conflict={config.split_conflict!r}; choices: {', '.join(splits.CONFLICTS)}.")
    if config.limit < 0:
        raise ValueError(f"limit={config.limit} must be 0 (all) or a number of images.")


def view_name(word: str) -> str:
    """A projection as a data set writes it -> PA, AP, FRONTAL, LATERAL, or "" when it is none of these."""
    return VIEW_NAMES.get(word.strip().upper(), "")


def finish_plan(
    items: Sequence[dict[str, Any]],
    rejections: Sequence[Rejection],
    config: LocalConfig,
    *,
    tables: Sequence[Table] = (),
    split_rule: str = "",
    provenance: Mapping[str, Any] | None = None,
    locate: Callable[[dict[str, Any]], str] | None = None,
    anywhere: bool = False,
) -> Plan:
    """The end of every plan: views, repeated ids, splits, missing files, limit; whatever goes is a rejection.

    A path that a table leads out of the downloaded folders (an absolute one, or with `..`) is never opened.

    Args: items: see `film_records`; a `Packed`, emptied here, where there may be many. A split of "" is drawn by
      patient. tables: their checksums go to provenance. split_rule: in words, for items that came with a split.
      locate: the path of an item that has none yet; asked only as far as --limit goes, because a slow disk takes
      minutes to look for every file of a large set. anywhere: the table is the user's own, and may name files outside
      --root.
    Raises: ValueError for a patient in two splits (see `split_conflict`), or an unknown name in --splits.
    """
    tables, provenance = list(tables), dict(provenance or {})
    if config.label_table:
        file = label_files.read_label_file(Path(config.label_table).expanduser())
        tables.append(file.table)
        found = provenance.setdefault("label_files", {})
        found[file.table.path.name] = label_files.attach(items, file)
        del file
    listed = None
    if config.split_table:
        listed = _Listed(Path(config.split_table).expanduser())
        tables.append(listed.table)
        split_rule = f"table {listed.table.path.name}"
    sums = Checksums(Path(config.checksums).expanduser()) if config.checksums else None
    if sums is not None:
        for table in tables:
            sums.check_table(table)
        sums.listed = sums.unlisted = 0
    rejected = [*rejections, *(rejection for table in tables for rejection in table.rejections)]
    bounds = splits.thresholds(config.fractions)
    kept, seen, drawn = Packed(), set(), 0
    for item in items.drain() if isinstance(items, Packed) else items:
        reason = ""
        if config.only_frontal and item["view"] not in FRONTAL and not item.get("view_from_header"):
            reason = "not_frontal" if item["view"] else "view_unknown"
        elif item["image_id"] in seen:
            reason = "duplicate_image_id"
        else:
            seen.add(item["image_id"])
            if listed is not None:
                split = listed.split_of(item["image_id"])
                reason = "" if split else "not_in_split_table"
                item = {**item, "split": split}
        if reason:
            rejected.append(Rejection(reason, row=item["row"], item=item["image"]))
            continue
        if not item["split"]:
            drawn += 1
            item["split"] = splits.drawn_split(item["patient_id"], config.seed, bounds)
        kept.append(item)
    del seen, listed
    one_split = splits.splits_of_patients(kept, config.split_conflict)
    wanted = _wanted(kept, config.splits)
    planned: dict[str, Packed] = {split: Packed() for split in wanted}
    roots = [folder for folder in (config.root, getattr(config, "images_root", "")) if folder]
    beyond = in_other_splits = 0
    for item in kept.drain():
        split, reason = item["split"], ""
        if one_split[item["patient_id"]] != split:
            reason = "patient_in_two_splits"
        elif split not in planned:
            in_other_splits += 1
            continue
        elif config.limit and len(planned[split]) == config.limit:
            beyond += 1
            continue
        else:
            path = item["path"] if locate is None else locate(item)
            reason = "" if anywhere or _inside(path, roots) else "path_outside_root"
        if not reason:
            try:
                state = os.stat(path)
            except (OSError, ValueError):
                reason = "missing_file"
        if reason:
            rejected.append(Rejection(reason, row=item["row"], item=item["image"]))
            continue
        item.update(path=path, bytes=state.st_size, modified=state.st_mtime_ns)
        if sums is not None and (digest := sums.of(path)):
            item["sha256"] = digest
        planned[split].append(item)
    if sums is not None:
        provenance["checksums"] = {"images listed": sums.listed, "images not listed": sums.unlisted}
    facts = {
        "tables": {table.path.name: table.sha256 for table in tables},
        "split": split_rule if not drawn else f"drawn by patient, {config.fractions}, seed {config.seed}",
        "beyond_limit": beyond,
        "in_other_splits": in_other_splits,
        **provenance,
    }
    return Plan({split: there for split, there in planned.items() if there}, rejected, facts)


def _inside(path: str, roots: Sequence[str]) -> bool:
    """Is a path one below a folder, as it is written? Links may lead elsewhere: they are the user's own."""
    for root in roots:
        start = os.path.join(Path(root).expanduser(), "")
        rest = path if start == "./" else path.removeprefix(start)
        if (rest != path or start == "./") and not leads_out(rest):
            return True
    return False


def leads_out(path: str) -> bool:
    """Does a path of a table, joined to a folder, lead out of it: is it absolute, or goes it up somewhere?"""
    return path.startswith("/") or ".." in path.split("/")


class _Listed:
    """The splits of a table; ids compare as `ImageIndex` says.

    Raises: ValueError for a table without the columns, or with a split of another name.
    """

    def __init__(self, path: Path):
        columns = Table(path, ()).columns
        column = next((name for name in IMAGE_COLUMNS if name in columns), None)
        if column is None or "split" not in columns:
            raise ValueError(
                f"--split_table {path} needs a column split and one of {', '.join(IMAGE_COLUMNS)}. "
                f"Its columns: {', '.join(columns)}."
            )
        self.table = Table(path, (column, "split"))
        self._split_of: dict[str, str] = {}
        for number, row in self.table:
            split = splits.SPLIT_NAMES.get(row["split"].strip().lower(), row["split"].strip())
            if not split.isidentifier():
                raise ValueError(f"--split_table {path}, row {number}: the split {split!r} is no name.")
            self._split_of[row[column]] = split
        self._index = ImageIndex(self._split_of)

    def split_of(self, image: str) -> str:
        """Its split, or "" when it is not listed."""
        found = self._index.find(image)
        return "" if found is None else self._split_of[found]


def _wanted(items: Iterable[dict[str, Any]], names: str) -> list[str]:
    """The splits to build, the usual ones first. Raises: ValueError for one that no item is in."""
    known = list(dict.fromkeys((*records.SPLITS, *(item["split"] for item in items))))
    if not names:
        return known
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--splits names {', '.join(map(repr, unknown))}. Splits here: {', '.join(known)}.")
    return wanted


def provenance_of(sources: Mapping[str, records.RecordSource]) -> dict[str, Any]:
    """The content of the provenance.json of a built set."""
    folder = next(iter(sources.values())).folder
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def describe(sources: Mapping[str, records.RecordSource]) -> list[str]:
    """Lines printed after a build: how splits came about, and what was counted."""
    provenance = provenance_of(sources)
    lines = [f"Split: {provenance['split']}"]
    if provenance.get("beyond_limit"):
        lines.append(f"Not looked at because of --limit: {provenance['beyond_limit']} images")
    if provenance.get("in_other_splits"):
        lines.append(f"Not looked at because of --splits: {provenance['in_other_splits']} images")
    if "checksums" in provenance:
        lines.append("Checksums: " + ", ".join(f"{what} {n}" for what, n in provenance["checksums"].items()))
    lines += label_files.lines(provenance.get("label_files", {}))
    if provenance.get("facts"):
        lines.append("Counted: " + ", ".join(f"{fact}: {n}" for fact, n in provenance["facts"].items()))
    return lines
