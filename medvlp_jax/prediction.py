"""What a run says about one image, and its heat maps as pictures."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from medvlp_jax import heat_picture
from medvlp_jax.data.film_check import Doubt

LEAST_SPAN = 0.1  # of a colour scale: smaller differences than that stay pale


class FindingScore(NamedTuple):
    """Cosines with the affirming and the denying texts, and score = sigmoid(positive - negative)."""

    finding: str
    score: float
    positive: float
    negative: float


class TextScore(NamedTuple):
    """Cosine of an image with a text."""

    text: str
    cosine: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says about one image: both lists are sorted, highest first.

    section: the text section whose space scores and maps use. finding_maps, text_maps: h×w over the evaluation view,
    where the method has regions: what each contributes to the cosine with affirming minus denying texts, and with each
    text. picture: the image at display size. view_to_image: see `data.view_geometry`.
    """

    image: str
    section: str
    doubts: list[Doubt]
    findings: list[FindingScore]
    texts: list[TextScore]
    finding_maps: dict[str, Float[np.ndarray, "h w"]]
    text_maps: dict[str, Float[np.ndarray, "h w"]]
    picture: UInt8[np.ndarray, "H W"]
    image_shape: tuple[int, int]
    view_size: int
    view_to_image: Float[np.ndarray, "3 3"]

    def save_maps(self, folder: str | Path, *, top: int = 3, name: str = "") -> list[Path]:
        """Writes `<name>-<finding>.png` for the `top` findings and `<name>-text<n>-<words>.png` for every text.

        Colours mean the same in all finding maps of an image, and in all its text maps. Args: name: default: that of
        the image file. Raises: OSError when the folder cannot be written.
        """
        name, folder = name or Path(self.image).stem, Path(folder)
        shown = [f for f in self.findings if f.finding in self.finding_maps and f.finding != "No Finding"][
            : max(top, 0)
        ]
        # Only what is nearer to the affirming texts is coloured; for a text, the half of all places nearest to it.
        finding_scale = (0.0, _top(0.0, [self.finding_maps[f.finding] for f in shown]))
        middle = float(np.median(list(self.text_maps.values()))) if self.text_maps else 0.0
        text_scale = (middle, _top(middle, self.text_maps.values()))
        jobs = [
            (
                f"{name}-{_slug(f.finding)}.png",
                self.finding_maps[f.finding],
                finding_scale,
                f"{f.finding}: score {f.score:.3f}",
                "Colour: what a place adds to the cosine with the affirming minus the denying texts, where above 0.",
            )
            for f in shown
        ]
        cosines = dict(self.texts)
        jobs += [
            (
                f"{name}-text{n}-{_slug(text)}.png",
                heat_hxw,
                text_scale,
                f"{text}  cosine {cosines[text]:+.3f}",
                "Colour: what a place adds to the cosine with the text, where above the median.",
            )
            for n, (text, heat_hxw) in enumerate(self.text_maps.items(), start=1)
        ]
        if jobs:
            folder.mkdir(parents=True, exist_ok=True)
        place = (self.view_size, self.view_to_image, self.image_shape, self.picture.shape)
        for file, heat_hxw, scale, *caption in jobs:
            heat_HxW = heat_picture.onto_image(heat_hxw, *place)
            heat_picture.save_png(folder / file, heat_picture.draw(self.picture, heat_HxW, *scale, caption))
        return [folder / file for file, *_ in jobs]

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold of it: no maps."""
        return {
            "image": self.image,
            "section": self.section,
            "warnings": [doubt._asdict() for doubt in self.doubts],
            "findings": [finding._asdict() for finding in self.findings],
            "texts": [text._asdict() for text in self.texts],
        }


def _top(low: float, maps: Iterable[Float[np.ndarray, "h w"]]) -> float:
    """The hottest value of maps, at least LEAST_SPAN above `low`."""
    return max(low + LEAST_SPAN, *(float(heat_hxw.max()) for heat_hxw in maps), low)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-") or "text"
