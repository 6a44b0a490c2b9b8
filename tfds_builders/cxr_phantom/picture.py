"""One finished picture: the film, a mask per finding, the lungs, and boxes around masks."""

import dataclasses

import cv2
import numpy as np

from tfds_builders.cxr_phantom.anatomy import Body, Pose
from tfds_builders.cxr_phantom.chest import Chest
from tfds_builders.cxr_phantom.findings import KINDS, Finding, anatomy_of


@dataclasses.dataclass
class Picture:
    """film uint8 [S, S]; one mask uint8 [S, S] in {0, 255} per finding; lungs uint8 (1 left, 2 right, 0 elsewhere)."""

    film: np.ndarray
    masks: list[np.ndarray]
    lungs: np.ndarray


def render(body: Body, pose: Pose, findings: tuple[Finding, ...], size: int) -> Picture:
    """Draws a chest with its findings; small films are drawn twice as large and averaged, so thin lines survive."""
    drawn = size * 2 if size < 192 else size
    chest = Chest(anatomy_of(body, pose, findings), drawn)
    masks = [KINDS[f.kind].draw(chest, f) for f in findings]
    film, sides = chest.expose(), chest.lung_masks
    if drawn != size:
        film, *masks = (cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in (film, *masks))
        sides = {s: cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for s, p in sides.items()}
    lungs = cv2.threshold(sides["right"], 127, 2, cv2.THRESH_BINARY)[1]
    lungs[sides["left"] > 127] = 1
    return Picture(film, [cv2.threshold(mask, 100, 255, cv2.THRESH_BINARY)[1] for mask in masks], lungs)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """[ymin, xmin, ymax, xmax] in 0..1 around the mask's pixels, or None when there are none."""
    if not mask.any():
        return None
    x, y, width, height = cv2.boundingRect(mask)
    size = mask.shape[0]
    return y / size, x / size, (y + height) / size, (x + width) / size
