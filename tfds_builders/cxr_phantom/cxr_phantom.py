"""Rendered chest X-rays with reports, labels, boxes and masks: everything runs without anyone's data.

    python -m medvlp_jax.prepare cxr_phantom --data_dir ~/data
    python -m tfds_builders.cxr_phantom.preview --out phantom.png

Image i of a study depends on (seed, patient, study, i) alone. See README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data import images, records, staging
from medvlp_jax.data.labels import CHEXPERT_LABELS, PRESENT, UNCERTAIN
from tfds_builders.cxr_phantom.anatomy import stream
from tfds_builders.cxr_phantom.baseline import linear_baseline, pixels
from tfds_builders.cxr_phantom.findings import RENDERED_LABELS
from tfds_builders.cxr_phantom.picture import box_of, render
from tfds_builders.cxr_phantom.report import write_report
from tfds_builders.cxr_phantom.study import patient_body, sample_study, study_count

PATIENTS_PER_SPLIT = 3_000_000  # each split numbers its patients from its own multiple of this
SIZES = (32, 2048)
BASELINE_IMAGES = {"train": 3000, "test": 1000}


@dataclasses.dataclass(eq=False)
class PhantomConfig(tfds.core.BuilderConfig):
    """Settings of one phantom data set; each is a command-line option of `medvlp_jax.prepare`."""

    size: int = 96
    """Pixels of an image side. The same seed shows the same chests at every size."""
    train_studies: int = 6000
    """Studies of the split; each has an image or two."""
    validation_studies: int = 500
    """Studies of the split."""
    test_studies: int = 500
    """Studies of the split."""
    seed: int = 0
    """Another seed shows other patients."""


class CxrPhantom(tfds.core.GeneratorBasedBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare cxr_phantom`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS reads this attribute of the class
        PhantomConfig(name="default"),
        PhantomConfig(name="size128", size=128),
        PhantomConfig(name="size256", size=256),
    ]
    staging: staging.Staging | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(self, "Rendered chest X-rays with reports, labels, boxes and masks.")

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[staging.Example]]:
        del dl_manager  # nothing is downloaded
        return staging.split_generators(self, plan(self.builder_config), make_examples)

    def _generate_examples(self, examples: Iterator[staging.Example]) -> Iterator[staging.Example]:
        yield from examples


def plan(config: PhantomConfig) -> staging.Plan:
    """Work items [patient, study] per split. Patients never cross splits; only the last of a split may be cut short.

    Raises: ValueError for a size or a count out of range.
    """
    if not SIZES[0] <= config.size <= SIZES[1]:
        raise ValueError(f"size={config.size} is not between {SIZES[0]} and {SIZES[1]} pixels.")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} must not be negative.")
    splits = {}
    for number, split in enumerate(records.SPLITS):
        count = getattr(config, f"{split}_studies")
        if not 0 <= count <= PATIENTS_PER_SPLIT:
            raise ValueError(f"{split}_studies={count} is not between 0 and {PATIENTS_PER_SPLIT}.")
        items: list[list[int]] = []
        patient = number * PATIENTS_PER_SPLIT
        while len(items) < count:
            items += [[patient, study] for study in range(study_count(config.seed, patient))]
            patient += 1
        splits[split] = items[:count]
    return staging.Plan({split: items for split, items in splits.items() if items})


def make_examples(item: Sequence[int], config: PhantomConfig) -> list[staging.Example]:
    """The records of one study, one per image."""
    patient, number = item
    study = sample_study(config.seed, patient, number)
    body = patient_body(config.seed, patient)
    report = write_report(stream(config.seed, patient, 1, number, 2), study, body)
    sentence_of = report.sentence_of
    examples = []
    for image in range(len(study.views)):
        picture = render(body, study.pose(config.seed, image), study.findings, config.size)
        boxes, masks = [], []
        for finding, mask in zip(study.findings, picture.masks, strict=True):
            box = box_of(mask)
            if box is not None:
                boxes.append({"box": box, "finding": finding.label, "sentence": sentence_of.get(finding.kind, -1)})
                masks.append({"mask": images.encode_png(mask), "finding": finding.label})
        example = records.example(
            image=images.encode_png(picture.film),
            patient_id=study.patient_id,
            study_id=study.study_id,
            image_id=study.image_id(image),
            findings=report.findings_text,
            impression=report.impression_text,
            report=report.text,
            sentences=[s.text for s in report.findings],
            labels=report.labels,
            view=study.views[image],
            boxes=boxes,
            masks=masks,
            lung_mask=images.encode_png(picture.lungs),
            public=True,
        )
        examples.append((study.image_id(image), example))
    return examples


def describe(sources: Mapping[str, records.RecordSource]) -> list[str]:
    """Lines that `prepare` prints after a build: label prevalence, and the linear baseline that a model must beat."""
    lines, parts = [], {}
    for split, source in sources.items():
        limit = min(len(source), BASELINE_IMAGES.get(split, 0))
        chosen = np.linspace(0, len(source) - 1, limit).round().astype(int) if limit else []
        taken = [source[i] for i in chosen]
        if taken:
            parts[split] = pixels(r["image"] for r in taken), np.stack([r["labels"] for r in taken])
    if "train" in parts:
        labels = parts["train"][1]
        lines.append(f"Labels of {len(labels)} train images, present / uncertain:")
        for column, name in enumerate(CHEXPERT_LABELS):
            shares = (np.mean(labels[:, column] == state) for state in (PRESENT, UNCERTAIN))
            lines.append("  {:<28}{:6.1%} / {:.1%}".format(name, *shares))
    if "train" in parts and "test" in parts:
        lines += linear_baseline(*parts["train"], *parts["test"], RENDERED_LABELS).lines()
    return lines
