"""How each finding looks: what it changes in the anatomy, what it adds to the absorption, and where it is.

A `Finding` is resolution-free; `draw` adds it to a `Chest` and returns its mask. Severity runs from 0 (just visible)
to 1 (obvious); `traits` are uniform numbers that fix the shape, so that a finding followed over several studies keeps
its place while its severity changes.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from tfds_builders.cxr_phantom.anatomy import SIDES, Anatomy, Body, Pose, RibBreak, ellipse, spline, stream, ticks, xy
from tfds_builders.cxr_phantom.canvas import soften
from tfds_builders.cxr_phantom.chest import Chest

ZONE_HEIGHT = {"upper": (0.14, 0.34), "mid": (0.40, 0.60), "lower": (0.66, 0.88)}  # in lung_point's v
DEVICES = ("pacemaker", "central line", "endotracheal tube", "enteric tube", "sternotomy wires", "chest tube")


@dataclasses.dataclass(frozen=True)
class Finding:
    kind: str  # a key of KINDS
    side: str  # "right", "left", or "" on the midline or on both sides
    zone: str  # "upper", "mid", "lower" or ""
    severity: float  # 0..1
    variant: str  # the device, or "apical" / "lateral" pleural thickening
    traits: tuple[float, ...]  # 12 uniform numbers in 0..1

    def trait(self, index: int, low: float, high: float) -> float:
        return low + (high - low) * self.traits[index]

    def rng(self) -> np.random.Generator:
        return stream(int(self.traits[11] * 2**31), 3)

    @property
    def label(self) -> str:
        """The CheXpert name that boxes and masks carry."""
        return KINDS[self.kind].label


def anatomy_of(body: Body, pose: Pose, findings: tuple[Finding, ...]) -> Anatomy:
    """The chest as these findings deform it, before anything is added to it."""
    heart = mediastinum = 1.0
    lift: dict[str, float] = {}
    breaks = []
    for f in findings:
        if f.kind == "cardiomegaly":
            heart = 1.14 + 0.26 * f.severity
        elif f.kind == "mediastinum":
            mediastinum = 1.50 + 0.60 * f.severity
        elif f.kind == "atelectasis":
            lift[f.side] = 0.02 + 0.05 * f.severity * f.traits[4]
        elif f.kind == "fracture":
            breaks.append(RibBreak(f.side, _rib(f), f.trait(1, 0.5, 0.86), _displacement(f)))
    return Anatomy(body, pose, heart=heart, mediastinum=mediastinum, lift=lift, rib_breaks=tuple(breaks))


def rib_number(f: Finding) -> int:
    """The broken rib, counted from 1 at the top."""
    return _rib(f) + 1


def _rib(f: Finding) -> int:
    low = {"upper": 1, "mid": 3, "lower": 5}[f.zone]
    return low + int(f.traits[0] * 1.999)


def _displacement(f: Finding) -> float:
    return (1 if f.traits[2] < 0.6 else -1) * (0.026 + 0.016 * f.severity)


def _place(chest: Chest, f: Finding, low: float = 0.25, high: float = 0.85) -> np.ndarray:
    return chest.anatomy.lung_point(f.side, f.trait(0, low, high), f.trait(1, *ZONE_HEIGHT[f.zone]))


def effusion(chest: Chest, f: Finding) -> np.ndarray:
    """Fluid at the base with a meniscus that climbs the lateral wall; severity raises it."""
    s = f.severity
    inner = float(np.clip(0.74 - 0.75 * s + f.trait(0, -0.06, 0.06), 0, 0.8))
    u = np.linspace(inner, 1.0, 16)
    height = 0.075 + (0.34 + f.trait(1, 0, 0.1)) * s
    climb = ((u - inner) / (1 - inner)) ** f.trait(2, 1.3, 2.2)
    level = 1 - height * (climb + 0.35 * s * (1 - climb))
    a = chest.anatomy
    outline = np.concatenate([a.lung_point(f.side, u, level), a.lung_point(f.side, u[::-1] * 1.03, 1.02)])
    chest.absorption += (0.36 + 0.14 * min(1, 1.6 * s)) * chest.canvas.soft(outline, blur=0.007)
    if a.pose.view == "AP":  # supine fluid also spreads behind the lung as a veil
        veil = chest.lung_masks[f.side].astype(np.float32)
        chest.absorption += veil * (
            (0.02 + 0.07 * s) / 255 * np.linspace(0, 1.4, chest.canvas.size, dtype=np.float32)[:, None]
        )
    return cv2.bitwise_and(chest.canvas.mask(outline), chest.canvas.mask(a.lung(f.side)))


def pneumothorax(chest: Chest, f: Finding) -> np.ndarray:
    """Air above and beside the lung: no vessels, slightly darker, bounded by the thin visceral pleura."""
    a, c, s = chest.anatomy, chest.canvas, f.severity
    depth, reach = 0.16 + 0.32 * s, f.trait(0, 0.45, 0.7) + 0.35 * s
    t = ticks(0, 1, 16)
    gap = depth * (1 - t) ** f.trait(1, 0.5, 0.9)
    top = np.linspace(0.0, 1 - depth, 8)
    apex = a.lung_point(f.side, top, 0.62 * depth + 0.02 * np.sin(np.pi * top))
    side = a.lung_point(f.side, 1 - gap, 0.62 * depth * (1 - t) ** 2 + t * reach)
    pleura = spline(np.concatenate([apex, side]), 2, closed=False)
    outer = np.concatenate([a.lung_point(f.side, 1.0, t[::-1] * reach), a.lung_point(f.side, top[::-1], 0.0)])
    outline = np.concatenate([pleura, outer])
    mask = cv2.bitwise_and(c.mask(outline), chest.lung_masks[f.side])
    inside = soften(mask, 0.003 * c.size).astype(np.float32) * (1 / 255)
    chest.absorption -= inside * (0.98 * chest.vessels + 0.20 + 0.06 * f.traits[2])
    line = c.line(c.plane(), pleura, 0.010)
    chest.absorption += soften(line, 0.0012 * c.size).astype(np.float32) * ((0.30 + 0.10 * s) / 255)
    return mask


def consolidation(chest: Chest, f: Finding) -> np.ndarray:
    """A patchy airspace opacity with an irregular border and air bronchograms."""
    c, s = chest.canvas, f.severity
    radius = 0.066 + 0.050 * s + f.trait(2, 0, 0.02)
    wobble = [(f.traits[4] * 0.22, f.traits[5]), (0.14, f.traits[6]), (0.10, f.traits[7]), (0.07, f.traits[8])]
    center = _place(chest, f, 0.22, 0.80)
    outline = ellipse(center, (radius * f.trait(3, 0.8, 1.3), radius), f.trait(9, -0.8, 0.8), wobble=wobble)
    cloud = c.soft(outline, blur=0.016)
    lung = chest.lung_masks[f.side]
    rng = f.rng()
    patches = np.clip(0.8 + c.clouds(rng, (26, 0.35)), 0.25, 1.5)
    airways = c.plane()
    for _ in range(3):
        end = center + rng.normal(0, radius, 2)
        c.line(airways, np.stack([center + rng.normal(0, 0.3 * radius, 2), (center + end) / 2, end]), 0.006)
    patches -= soften(airways, 0.002 * c.size).astype(np.float32) * (0.35 / 255)
    amount = 0.48 + 0.22 * s + 0.06 * f.traits[10]
    chest.absorption += amount * cloud * patches * (lung.astype(np.float32) * (1 / 255))
    return cv2.bitwise_and(c.mask(outline), lung)


def atelectasis(chest: Chest, f: Finding) -> np.ndarray:
    """Plate-like bands of airless lung, usually at a base, with a raised hemidiaphragm."""
    c, s = chest.canvas, f.severity
    center = _place(chest, f, 0.30, 0.72)
    tilt = SIDES[f.side] * f.trait(2, -0.1, 0.55)
    length = 0.055 + 0.05 * s + f.trait(3, 0, 0.025)
    mask, bands = c.plane(), c.plane()
    for k in range(1 + int(s * 1.2 + f.traits[5])):
        middle = center + np.array([0.012 * (f.traits[6] - 0.5), 0.026]) * k
        t = ticks(-1, 1, 9)
        path = xy(t * length, 0.010 * f.trait(7, -1, 1) * (1 - t**2))
        cos, sin = np.cos(tilt), np.sin(tilt)
        path = middle + path @ np.array([[cos, sin], [-sin, cos]])
        half = (0.006 + 0.004 * s) * np.sqrt(np.maximum(0.1, 1 - t**2))
        c.band(bands, path, half)
        c.band(mask, path, half + 0.009)
    chest.absorption += soften(bands, 0.0028 * c.size).astype(np.float32) * ((0.55 + 0.14 * s) / 255)
    haze = ellipse(center, (1.1 * length, 0.04))
    chest.absorption += (0.10 + 0.07 * s) * c.soft(haze, blur=0.025)
    return cv2.bitwise_and(mask, chest.lungs)


def cardiomegaly(chest: Chest, f: Finding) -> np.ndarray:
    return chest.canvas.mask(chest.anatomy.heart())


def mediastinum(chest: Chest, f: Finding) -> np.ndarray:
    outline = chest.anatomy.great_vessels()
    return chest.canvas.mask(np.clip(outline, (-1, 0.16), (1, 0.43)))


def edema(chest: Chest, f: Finding) -> np.ndarray:
    """Bat-wing haze around the hila, fuller vessels, and short septal lines at the bases."""
    a, c, s = chest.anatomy, chest.canvas, f.severity
    rng = f.rng()
    wings, septa = [], c.plane()
    for side, sign in SIDES.items():
        middle = a.lung_point(side, f.trait(0, 0.28, 0.42), f.trait(1, 0.48, 0.62))
        wings.append(ellipse(middle, (0.085 + 0.03 * s, 0.14 + 0.03 * s), sign * 0.2, wobble=[(0.1, f.traits[2])]))
        for _ in range(4 + int(6 * s)):
            start = a.lung_point(side, 0.97, rng.uniform(0.62, 0.95))
            c.line(septa, np.stack([start, start - (sign * rng.uniform(0.02, 0.04), rng.normal(0, 0.003))]), 0.0035)
    lungs = chest.lungs.astype(np.float32) * (1 / 255)
    grain = np.clip(1 + c.clouds(rng, (30, 0.4)), 0.2, 2.0)
    chest.absorption += (0.035 + 0.10 * s) * c.soft(*wings, blur=0.04) * lungs * grain
    chest.absorption += (0.12 + 0.40 * s) * chest.vessels
    chest.absorption += soften(septa, 0.001 * c.size).astype(np.float32) * ((0.10 + 0.08 * s) / 255)
    return cv2.bitwise_and(c.mask(*wings), chest.lungs)


def nodule(chest: Chest, f: Finding) -> np.ndarray:
    """A round opacity below 30 mm."""
    radius = nodule_radius(f)
    outline = ellipse(_place(chest, f), (radius, radius * f.trait(3, 0.88, 1.1)), wobble=[(0.05, f.traits[4])])
    chest.absorption += (0.85 + 0.16 * f.traits[5]) * chest.canvas.soft(outline, blur=0.0045)
    return chest.canvas.mask(outline)


def nodule_radius(f: Finding) -> float:
    """Radius of a nodule (12 to 15 mm) or a mass (21 to 34 mm) in patient-frame units."""
    return 0.031 + 0.006 * f.severity if f.kind == "nodule" else 0.052 + 0.034 * f.severity


def mass(chest: Chest, f: Finding) -> np.ndarray:
    """A lobulated, sometimes spiculated opacity above 30 mm."""
    c, radius = chest.canvas, nodule_radius(f)
    center = _place(chest, f, 0.25, 0.78)
    wobble = [(0.10, f.traits[3]), (0.08, f.traits[4]), (0.05, f.traits[5]), (0.05, f.traits[6])]
    outline = ellipse(center, (radius * f.trait(7, 0.85, 1.1), radius), wobble=wobble)
    chest.absorption += (0.70 + 0.14 * f.traits[8]) * c.soft(outline, blur=0.007)
    if f.traits[9] < 0.5:
        spikes = c.plane()
        for angle in np.linspace(0, 2 * np.pi, 13)[:-1] + f.traits[10]:
            ray = np.array([np.cos(angle), np.sin(angle)])
            c.line(spikes, center + np.array([[0.9], [1.45]]) * radius * ray, 0.004)
        chest.absorption += soften(spikes, 0.0015 * c.size).astype(np.float32) * (0.12 / 255)
    return c.mask(outline)


def fracture(chest: Chest, f: Finding) -> np.ndarray:
    """The rib is already broken by `anatomy_of`; this adds overlap or callus and the swelling around it."""
    a, c = chest.anatomy, chest.canvas
    rib = a.posterior_ribs(f.side)[_rib(f)]
    at = max(2, min(len(rib) - 3, round(f.trait(1, 0.5, 0.86) * (len(rib) - 1))))
    center = rib[at] - np.array([0, 0.4 * _displacement(f)])
    callus = ellipse(center, (0.030 + 0.008 * f.severity, 0.024), wobble=[(0.15, f.traits[3]), (0.1, f.traits[4])])
    chest.absorption += (0.75 + 0.2 * f.severity) * c.soft(callus, blur=0.005)
    swelling = ellipse(center, (0.060, 0.048))
    chest.absorption += (0.22 + 0.05 * f.traits[5]) * c.soft(swelling, blur=0.014)
    return c.mask(swelling)


def thickening(chest: Chest, f: Finding) -> np.ndarray:
    """An irregular soft-tissue rim along the chest wall, or a cap over the apex."""
    a, c, s = chest.anatomy, chest.canvas, f.severity
    t = ticks(0, 1, 20)
    profile = np.sin(np.pi * t) ** 0.6 * (1 + 0.3 * np.sin(2 * np.pi * (2.5 * t + f.traits[2])))
    if f.variant == "apical":
        u, depth = 1.0 - t, (0.19 + 0.08 * s) * profile
        outline = np.concatenate([a.lung_point(f.side, u, depth), a.lung_point(f.side, u[::-1], -0.01)])
    else:
        start = {"upper": 0.15, "mid": 0.35, "lower": 0.58}[f.zone]
        v = start + f.trait(0, 0.32, 0.44) * t
        depth = (0.25 + 0.12 * s) * profile
        outline = np.concatenate([a.lung_point(f.side, 1 - depth, v), a.lung_point(f.side, 1.01, v[::-1])])
    chest.absorption += (0.95 + 0.16 * s) * c.soft(outline, blur=0.005)
    return cv2.bitwise_and(c.mask(outline), chest.torso_mask)


def device(chest: Chest, f: Finding) -> np.ndarray:
    """Pacemaker, central line, endotracheal, enteric or chest tube, or sternotomy wires."""
    c = chest.canvas
    mask, metal = c.plane(), c.plane()
    for path, width, level in _device_paths(chest.anatomy, f):
        c.line(metal, path, width, level)
        c.line(mask, path, max(0.018, width + 0.006))
    if f.variant == "pacemaker":
        s = SIDES[f.side]
        x, y = s * f.trait(0, 0.25, 0.30), f.trait(1, 0.20, 0.25)
        case = ellipse((x, y), (0.042, 0.036), s * 0.3, wobble=[(0.0, 0.0), (0.0, 0.0), (0.06, 0.5)])
        c.fill(metal, case, 235)
        c.fill(mask, case)
    chest.absorption += soften(metal, 0.0012 * c.size).astype(np.float32) * (1.6 / 255)
    return cv2.bitwise_and(mask, chest.torso_mask)


def _device_paths(a: Anatomy, f: Finding) -> list[tuple[np.ndarray, float, int]]:
    """Curves of the device in the patient frame as (path, width, level)."""
    s = SIDES.get(f.side, 1.0)
    vena_cava = (-0.040, f.trait(4, 0.34, 0.46))
    if f.variant == "pacemaker":
        x, y = s * f.trait(0, 0.25, 0.30), f.trait(1, 0.20, 0.25)
        floor = float(a.dome("left", 0.1))
        route = [(x, y), (s * 0.20, 0.165), (s * 0.08, 0.22), (-0.03, 0.30), (-0.048, 0.45)]
        leads = [spline([*route, (-0.03, floor - 0.06), (0.06, floor + 0.01), (0.15, floor - 0.01)], 6, closed=False)]
        if f.traits[5] < 0.6:
            leads.append(spline([*route, (-0.05, floor - 0.10), (-0.075, floor - 0.13)], 6, closed=False))
        return [(lead, 0.021, 250) for lead in leads]
    if f.variant == "central line":
        if f.traits[6] < 0.5:  # jugular
            points = [(s * 0.075, -0.05), (s * 0.06, 0.10), (s * 0.045, 0.20), (-0.035, 0.28), vena_cava]
        else:  # peripherally inserted, along the axillary vein
            points = [(s * 0.50, 0.30), (s * 0.42, 0.22), (s * 0.28, 0.165), (s * 0.10, 0.20), (-0.03, 0.27), vena_cava]
        return [(spline(points, 6, closed=False), 0.022, 250)]
    if f.variant == "endotracheal tube":
        (trachea, _), *_ = a.airway()
        tip = f.trait(1, 0.19, 0.28)
        path = trachea[trachea[:, 1] <= tip]
        return [(path + np.array([dx, 0]), 0.011, 245) for dx in (-0.015, 0.015)] + [(path, 0.030, 150)]
    if f.variant == "enteric tube":
        floor = float(a.dome("left", 0.3))
        points = [
            (0.005, -0.05),
            (0.012, 0.20),
            (0.015, 0.45),
            (0.02, floor),
            (0.07, floor + 0.06),
            (0.13, floor + 0.09),
        ]
        return [(spline(points, 6, closed=False), 0.025, 250)]
    if f.variant == "sternotomy wires":
        x = 0.02 * a.pose.yaw
        loops = [
            ellipse((x, y), (0.017, 0.009), f.trait(2, -0.3, 0.3), samples=14) for y in np.arange(0.27, 0.62, 0.065)
        ]
        return [(np.concatenate([loop, loop[:1]]), 0.013, 250) for loop in loops]
    bottom, top = a.lung_point(f.side, 1.03, f.trait(0, 0.62, 0.8)), a.lung_point(f.side, f.trait(1, 0.4, 0.65), 0.16)
    outside = bottom + np.array([s * 0.035, 0.03])
    middle = a.lung_point(f.side, f.trait(2, 0.75, 0.92), 0.45)
    return [(spline([outside, bottom, middle, top], 6, closed=False), 0.027, 250)]


@dataclasses.dataclass(frozen=True)
class Kind:
    label: str
    draw: Callable[[Chest, Finding], np.ndarray]


KINDS: dict[str, Kind] = {
    "effusion": Kind("Pleural Effusion", effusion),
    "pneumothorax": Kind("Pneumothorax", pneumothorax),
    "consolidation": Kind("Consolidation", consolidation),
    "atelectasis": Kind("Atelectasis", atelectasis),
    "cardiomegaly": Kind("Cardiomegaly", cardiomegaly),
    "edema": Kind("Edema", edema),
    "nodule": Kind("Lung Lesion", nodule),
    "mass": Kind("Lung Lesion", mass),
    "fracture": Kind("Fracture", fracture),
    "device": Kind("Support Devices", device),
    "thickening": Kind("Pleural Other", thickening),
    "mediastinum": Kind("Enlarged Cardiomediastinum", mediastinum),
}
RENDERED_LABELS: tuple[str, ...] = tuple(dict.fromkeys(kind.label for kind in KINDS.values()))
