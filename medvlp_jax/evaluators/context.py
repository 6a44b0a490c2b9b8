"""What an evaluator sees of a run: features of whole splits, embedded texts, records; never the model."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.methods.embeddings import default_section


class Features(NamedTuple):
    """A split in the towers' spaces, NumPy, in record order, padding cut off: N images, computed once and shared.

    image, text: per text section N×D vectors of images (one evaluation view) and of their own texts, any scale; texts
      of the scored split, of others perhaps.
    pooled_NxC: trunk features before any projection. pixels_NxP: the view itself, small and flattened, 0..1.
    regions: per section M×h×w×D vectors of the image regions of the M records that have boxes. boxed_M: their rows.
    fields: batch fields that are neither pixels nor tokens: `labels` N×14, `has_findings`, `impression_hash`,
      `patient_hash`, `index`, ...
    """

    image: dict[str, NDArray]
    text: dict[str, NDArray]
    pooled_NxC: NDArray
    pixels_NxP: NDArray
    regions: dict[str, NDArray]
    boxed_M: NDArray[np.int64]
    fields: dict[str, NDArray]

    @property
    def patient_N(self) -> NDArray:
        """Patient of each image; without patients each image stands for itself."""
        return self.fields.get("patient_hash", np.arange(len(self.fields["index"])))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to judge: the fields of `config.evaluation` that evaluators read.

    section: text section whose space zero-shot and grounding use; "" for the one that has regions, else the last.
    prompts: `plain`, `ensemble` or the path of a JSON file. findings: CheXpert names that means are taken over; () for
    all but No Finding. uncertain: `drop`, `positive` or `negative` labels.
    fractions: percent of training patients for probes. seeds: subsets per fraction below 100. resamples: bootstrap.
    """

    section: str = ""
    prompts: str = "ensemble"
    findings: Sequence[str] = ()
    uncertain: str = "drop"
    fractions: Sequence[float] = (1.0, 10.0, 100.0)
    seeds: int = 5
    resamples: int = 1000


@dataclasses.dataclass(frozen=True)
class Context:
    """A model over the splits of a data set.

    features(split), terms(split): features of a split; per batch of augmented views the loss terms in evaluation mode
    with the number of real examples. Both give the same values on every process and are computed once.
    embed_texts(texts): per section N×D vectors of any texts. record(split, i): a record, for texts and boxes.
    local_scores(split, texts): the method's own local score of every image with every text, float32 N×T; None for a
      method without.
    view_mask(mask_HxW): a mask in the frame of a record's image, taken through the evaluation view: bool S×S.
    split: what is scored. validation_split: where thresholds and strengths are chosen. train_split: for probes.
    baselines: also score raw pixels where that makes sense.
    """

    features: Callable[[str], Features]
    terms: Callable[[str], Iterator[tuple[dict[str, float], int]]]
    embed_texts: Callable[[Sequence[str]], Mapping[str, NDArray]]
    record: Callable[[str, int], Mapping[str, Any]]
    view_mask: Callable[[NDArray], NDArray]
    split: str = "test"
    validation_split: str = "validation"
    train_split: str = "train"
    settings: Settings = Settings()
    baselines: bool = False
    local_scores: Callable[[str, Sequence[str]], NDArray | None] = lambda split, texts: None

    def section(self, features: Features) -> str:
        """The section of `settings`. Raises: ValueError listing the sections when it is none of them."""
        wanted = self.settings.section
        if wanted and wanted not in features.image:
            raise ValueError(f"evaluation.section={wanted!r} is unknown. Choose one of {', '.join(features.image)}.")
        return wanted or default_section(features.regions, features.image)
