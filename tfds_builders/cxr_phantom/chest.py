"""The picture: absorption of a normal chest summed organ by organ, then exposed like a film.

X-rays obey Beer's law, so organs add their line integrals of absorption. `Chest.absorption` is that sum; findings add
theirs (`findings.py`); `Chest.expose` turns it into grey levels with scatter, saturation, grain and collimation.
"""

import functools

import cv2
import numpy as np

from tfds_builders.cxr_phantom.anatomy import SIDES, Anatomy, Pose, ellipse, ribbon, stream, ticks, xy
from tfds_builders.cxr_phantom.canvas import Canvas, grain, soften


class Chest:
    """A rendered chest: `absorption` float32 [S, S] (0 in air, about 0.3 in lung, 1.7 in the mediastinum)."""

    def __init__(self, anatomy: Anatomy, size: int):
        self.anatomy, self.canvas = anatomy, Canvas(size, anatomy.pose)
        self.lung_masks = {side: self.canvas.mask(anatomy.lung(side)) for side in SIDES}
        self.torso_mask = self.canvas.mask(anatomy.torso())
        self.rng = stream(anatomy.pose.image_seed, 1)
        self.vessels = self._vessels()
        self.absorption = self._soft_tissue()
        self.absorption += self._bones()
        self.absorption += self.vessels

    @functools.cached_property
    def lungs(self) -> np.ndarray:
        """Both lungs, uint8 0/255."""
        return cv2.max(self.lung_masks["right"], self.lung_masks["left"])

    @functools.cached_property
    def lung_edge(self) -> np.ndarray:
        """Both lungs with a narrow penumbra, float32 in 0..1."""
        return soften(self.lungs, 0.005 * self.canvas.size).astype(np.float32) * (1 / 255)

    def _soft_tissue(self) -> np.ndarray:
        a, c, body = self.anatomy, self.canvas, self.anatomy.body
        size = c.size
        heavy = 1 + 0.16 * body.habitus
        # Large smooth organs: drawn at a quarter of the size.
        torso = cv2.resize(self.torso_mask, (max(32, size // 4),) * 2, interpolation=cv2.INTER_AREA)
        rim = soften(torso, 0.05 * torso.shape[0]).astype(np.float32) / 255
        body_plane = torso.astype(np.float32) * (1 / 255) * (0.42 + 0.62 * np.clip(2 * rim - 1, 0, 1)) * heavy
        small = Canvas(torso.shape[0], a.pose)
        chest_wall = [ellipse((s * 0.47, 0.17), (0.11, 0.12)) for s in (-1, 1)]
        body_plane += 0.22 * heavy * small.soft(*chest_wall, blur=0.05)
        for side, s in SIDES.items():  # breasts hang over the lower zones, and hide or mimic what lies there
            if body.breast > 0.05:
                width, y = 0.13 + 0.03 * body.breast, a.apex_y + a.lung_height * (0.84 + 0.08 * body.habitus)
                x = s * 0.235 * body.width
                tissue = ellipse((x, y), (width, 0.10 + 0.035 * body.breast), s * 0.25)
                body_plane += 0.26 * body.breast * small.soft(tissue, blur=0.022)
            top = a.lung_point(side, ticks(-0.1, 1.02, 12), 1.0)
            abdomen = np.concatenate([top, [(s * 0.6, 1.3), (0, 1.3)]])
            body_plane += (0.24 if side == "right" else 0.18) * small.soft(abdomen, blur=0.012)
        bubble = ellipse((0.16 + 0.03 * body.heart_turn, float(a.dome("left", 0.45)) + 0.065), (0.055, 0.033), 0.2)
        body_plane -= 0.2 * small.soft(bubble, blur=0.008)
        plane = c.enlarge(body_plane)

        edge = self.lung_edge
        deep = c.enlarge(
            soften(cv2.resize(self.lungs, torso.shape, interpolation=cv2.INTER_AREA), torso.shape[0] * 0.04)
        )
        # Inside the lungs most of the path is air; towards their rim the path through the chest wall grows.
        inside = edge * 0.56
        plane *= np.subtract(1, inside, out=inside)
        wall = edge * 0.13
        wall *= deep
        plane -= wall
        heart = a.heart()
        _add(plane, 0.52, c.soft(heart, blur=0.007))
        _add(plane, 0.18, c.soft(heart, blur=0.03))
        _add(plane, 0.33, c.soft(a.great_vessels(), blur=0.006))
        _add(plane, 0.10, c.soft(ribbon(a.spine(), 0.05), blur=0.02))
        air = c.plane()
        for path, half_width in a.airway():
            c.band(air, path, half_width)
        air = soften(air, 0.0035 * size).astype(np.float32)
        air *= 0.30
        air *= 1 / 255
        plane -= air
        return np.maximum(plane, 0, out=plane)

    def _vessels(self) -> np.ndarray:
        a, c = self.anatomy, self.canvas
        plane = c.plane()
        trees = [a.vessel_tree(side) for side in SIDES]
        paths, widths = np.concatenate([t[0] for t in trees]), np.concatenate([t[1] for t in trees])
        for part, scale, level in ((slice(4, 7), 0.35, 105), (slice(2, 5), 0.62, 130), (slice(0, 3), 1.0, 150)):
            c.lines(plane, paths[:, part], scale * widths, np.full(len(paths), level))
        for side, s in SIDES.items():
            outline = ellipse(a.lung_point(side, 0.1, 0.5), (0.030, 0.062), s * 0.25, wobble=[(0.15, 0.2), (0.12, 0.7)])
            c.fill(plane, outline, 120)
        plane = soften(plane, 0.0026 * c.size).astype(np.float32)
        plane *= self.lung_edge
        plane *= 0.40 / 255 * a.body.vessels
        return plane

    def _bones(self) -> np.ndarray:
        """Ribs, clavicles, scapulae and vertebrae: each a band with a dense rim."""
        a, c = self.anatomy, self.canvas
        density = a.body.bone
        front, back, other = c.plane(), c.plane(), c.plane()
        # The curves of both sides and both widths are made in one go, which takes less than their parts.
        posterior, anterior, clavicles = (
            np.stack([curve(side) for side in SIDES]) for curve in (a.posterior_ribs, a.anterior_ribs, a.clavicle)
        )
        half = (0.0105 + 0.00012 * np.arange(posterior.shape[1]))[:, None] + np.zeros(posterior.shape[2])
        fade = ticks(1, 0.8, anterior.shape[2]) * 0.0125
        posterior_bands = c.fixed(_bands(posterior, half, 0.62 * half))
        anterior_bands = c.fixed(ribbon(anterior, fade)), c.fixed(ribbon(anterior[:, :, :-1], 0.7 * fade[:-1]))
        count = clavicles.shape[1]
        clavicle_bands = c.fixed(_bands(clavicles, ticks(0.0175, 0.0125, count), ticks(0.0115, 0.007, count)))
        for s, side in enumerate(SIDES):
            broken = {b.index: b.at for b in a.rib_breaks if b.side == side}
            whole = [i for i in range(posterior.shape[1]) if i not in broken]
            for bands, level in zip(posterior_bands, (80, 45), strict=True):
                c.fill_fixed(back, bands[s, whole], level)
            for index, at in broken.items():
                for piece in _fragments(posterior[s, index], at):
                    c.band(back, piece, half[index, 0], 80)
                    c.band(back, piece, 0.62 * half[index, 0], 45)
            for bands, level in zip(anterior_bands, (95, 62), strict=True):
                c.fill_fixed(front, bands[s], level)
            for bands, level in zip(clavicle_bands, (108, 70), strict=True):
                c.fill_fixed(other, bands[s : s + 1], level)
            c.fill(front, a.scapula(side), 70)
            head = ellipse((SIDES[side] * 0.475, 0.155), (0.045, 0.05))
            c.fill(front, head, 150)
        spine = a.spine()
        c.band(other, spine, 0.031, 22)
        height = 0.040 + 0.0011 * np.arange(20)
        top = 0.02 + np.concatenate([[0], np.cumsum(height + 0.0085)[:-1]])
        middle = xy(np.interp(top, spine[:, 1], spine[:, 0]), top + height / 2)
        half = xy(0.030 + 0.0004 * np.arange(20), height / 2)
        corners = middle[:, None] + half[:, None] * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        c.lines(other, corners, np.full(20, 0.007), np.full(20, 65), closed=True)
        pedicle = ellipse((0, 0), (0.0065, 0.0085), samples=12)
        for x in (-0.6, 0.6):
            c.fill_many(other, (middle + half * (x, -0.3))[:, None] + pedicle, 75)
        sigma = 0.0022 * c.size
        bones = soften(cv2.add(other, back), sigma).astype(np.float32)
        bones *= 0.84 / 255
        _add(bones, 0.36 / 255, soften(front, 2.0 * sigma).astype(np.float32))
        bones *= density
        return bones

    def expose(self) -> np.ndarray:
        """The film, uint8 [S, S]: brighter where more was absorbed, 1 - exp(-1.25 x) so that dense organs saturate."""
        c, pose, size = self.canvas, self.anatomy.pose, self.canvas.size
        x = self.absorption
        uneven = c.clouds(self.rng, (6, 0.05), (22, 0.028))
        uneven += 1
        x *= uneven
        if pose.scatter > 0.01:
            small = cv2.resize(x, (32, 32), interpolation=cv2.INTER_AREA)
            x *= 1 - pose.scatter
            _add(x, pose.scatter, c.enlarge(soften(small, 5.0)))
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        gain = 1 + pose.heel[0] * ramp[None] + pose.heel[1] * ramp[:, None]
        gain *= pose.exposure
        gain *= -1.25
        x *= gain
        film = cv2.exp(x)
        np.subtract(1, film, out=film)
        # Grain is finer than a pixel of a small image, so averaging makes small images less noisy.
        strength = 0.024 * pose.noise * min(1.0, size / 256) ** 0.5
        speckle = strength * grain(self.rng, size)
        rough = 0.6 * film
        speckle *= np.subtract(1.2, rough, out=rough)
        film += speckle
        black, contrast = pose.window
        film -= black
        film *= contrast
        self._collimate(film)
        np.clip(film, 0, 1, out=film)
        film *= 255
        return film.astype(np.uint8)

    def _collimate(self, film: np.ndarray) -> None:
        pose, size = self.anatomy.pose, self.canvas.size
        left, top, right, bottom = (round(m * size) for m in pose.collimation)
        for border in (film[:top], film[size - bottom :], film[:, :left], film[:, size - right :]):
            border *= 0.12
        (top, left, bottom, right), letter = marker(pose, size)
        window = film[top:bottom, left:right]
        np.maximum(window, letter.astype(np.float32) * (0.97 / 255), out=window)


def _bands(paths: np.ndarray, *half_widths: np.ndarray) -> np.ndarray:
    """`ribbon` of all paths [S, ..., N, 2] with each half width [..., N]: [widths, S, ..., 2N, 2]."""
    return ribbon(np.stack([paths] * len(half_widths)), np.stack(half_widths)[:, None])


def _add(plane: np.ndarray, weight: float, layer: np.ndarray) -> None:
    """`plane += weight * layer` without a third array; the layer is used up."""
    layer *= weight
    plane += layer


def marker(pose: Pose, size: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """The lead letter of a film: its box (top, left, bottom, right in pixels, ends exclusive), and it, uint8."""
    x, y, height = pose.marker
    at = -x if pose.image_seed % 2 else x
    pixels = max(5, round(height * size * 1.4))
    row, column = round(y * size), round((0.5 + at) * size) - pixels // 2
    row, column = (min(max(v, 0), size - pixels) for v in (row, column))
    letter = cv2.resize(_glyph("R" if pose.image_seed % 2 else "L"), (pixels, pixels), interpolation=cv2.INTER_AREA)
    return (row, column, row + pixels, column + pixels), letter


def _fragments(rib: np.ndarray, at: float) -> list[np.ndarray]:
    """The two parts of a broken rib with a small gap between them: the fracture line."""
    cut = max(2, min(len(rib) - 3, round(at * (len(rib) - 1))))
    before, after = rib[: cut + 1].copy(), rib[cut:].copy()
    before[-1] += 0.18 * (before[-2] - before[-1])
    after[0] += 0.18 * (after[1] - after[0])
    return [before, after]


@functools.lru_cache
def _glyph(letter: str) -> np.ndarray:
    """A lead letter, uint8 [48, 48]."""
    plane = np.zeros((48, 48), np.uint8)
    return cv2.putText(plane, letter, (8, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 5, cv2.LINE_AA)
