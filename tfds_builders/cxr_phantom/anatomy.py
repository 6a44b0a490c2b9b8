"""Geometry of a chest: which curves bound the thorax, lungs, heart, ribs, spine and clavicles.

Everything lives in the *patient frame*, which knows nothing of pixels: x is 0 on the midline and negative on the
patient's right (image left, the radiological convention), y runs from 0 (top of the film) to 1 (bottom), and one unit
is about 400 mm. Rendering maps it to pixels (`canvas.py`), so the same chest has the same shape at every image size.
"""

import dataclasses
import functools
import math

import numpy as np

MM_PER_UNIT = 400.0
SIDES = {"right": -1.0, "left": 1.0}  # sign of x in the patient frame
RIB_COUNT = 10


def stream(seed: int, *key: int) -> np.random.Generator:
    """A random stream that depends on the seed and the key alone, never on what was drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


@dataclasses.dataclass(frozen=True)
class Body:
    """What stays the same in all images of a patient. Factors are around 1, other fields in patient-frame units."""

    sex: str
    age: int
    habitus: float  # -1 thin .. 1 heavy
    width: float
    height: float
    heart: float
    heart_turn: float  # vertical (-1) to horizontal (1) heart
    knob: float
    mediastinum: float
    scoliosis: float
    rib_slope: float
    rib_phase: float
    bone: float
    vessels: float
    breast: float
    clavicle: float
    dome_gap: float
    vessel_seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Body":
        sex = "woman" if rng.random() < 0.48 else "man"
        age = int(np.clip(rng.normal(60, 17), 19, 94))
        habitus = float(np.clip(rng.normal(0, 0.5), -1, 1))
        elderly = (age - 50) / 45
        return cls(
            sex=sex,
            age=age,
            habitus=habitus,
            width=float(np.clip(rng.normal(0.97 - 0.03 * (sex == "woman"), 0.055), 0.82, 1.08)),
            height=float(np.clip(rng.normal(1, 0.06), 0.86, 1.13)),
            heart=float(np.clip(rng.normal(0.95 + 0.03 * habitus, 0.08), 0.76, 1.10)),
            heart_turn=float(np.clip(rng.normal(0.5 * habitus, 0.4), -1, 1)),
            knob=float(np.clip(rng.normal(1 + 0.25 * elderly, 0.2), 0.6, 1.6)),
            mediastinum=float(np.clip(rng.normal(1 + 0.12 * habitus, 0.16), 0.7, 1.32)),
            scoliosis=float(rng.normal(0, 0.012)),
            rib_slope=float(np.clip(rng.normal(1, 0.18), 0.6, 1.5)),
            rib_phase=float(rng.uniform(-0.025, 0.025)),
            bone=float(np.clip(rng.normal(1 - 0.12 * elderly, 0.15), 0.6, 1.4)),
            vessels=float(np.clip(rng.normal(0.95, 0.25), 0.45, 1.5)),
            breast=float(rng.uniform(0.3, 1.0) if sex == "woman" else max(0, habitus) * rng.uniform(0, 0.3)),
            clavicle=float(rng.normal(0, 0.018)),
            dome_gap=float(rng.normal(0.02, 0.012)),
            vessel_seed=int(rng.integers(2**31)),
        )


@dataclasses.dataclass(frozen=True)
class Pose:
    """How one image was taken: projection, positioning, inspiration, exposure, collimation."""

    view: str  # "PA" or "AP"
    angle: float  # degrees in the film plane
    yaw: float  # axial rotation of the patient, -1 .. 1
    zoom: float
    shift: tuple[float, float]
    inspiration: float  # -1 poor .. 1 deep
    exposure: float
    scatter: float
    noise: float
    heel: tuple[float, float]  # exposure gradient across the film
    window: tuple[float, float]  # display black level and gain
    collimation: tuple[float, float, float, float]  # left, top, right, bottom margins
    marker: tuple[float, float, float]  # distance from the midline, y, size
    image_seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, view: str) -> "Pose":
        bedside = view == "AP"
        margins = np.where(rng.random(4) < 0.45, rng.uniform(0.005, 0.05, 4), 0.0)
        return cls(
            view=view,
            angle=float(np.clip(rng.normal(0, 4.0 if bedside else 3.0), -10, 10)),
            yaw=float(np.clip(rng.normal(0, 0.45 if bedside else 0.28), -1, 1)),
            zoom=float(np.clip(rng.normal(1.02 if bedside else 0.98, 0.07), 0.84, 1.18)),
            shift=(float(np.clip(rng.normal(0, 0.03), -0.07, 0.07)), float(np.clip(rng.normal(0, 0.03), -0.07, 0.07))),
            inspiration=float(np.clip(rng.normal(-0.35 if bedside else 0.15, 0.5), -1.2, 1.2)),
            exposure=float(np.exp(rng.normal(0, 0.20))),
            scatter=float(np.clip(rng.normal(0.10 if bedside else 0.06, 0.035), 0.0, 0.2)),
            noise=float(rng.uniform(0.6, 1.6) * (1.25 if bedside else 1.0)),
            heel=(float(rng.normal(0, 0.07)), float(rng.normal(0, 0.06))),
            window=(float(rng.uniform(-0.02, 0.06)), float(rng.uniform(0.9, 1.12))),
            collimation=tuple(float(m) for m in margins),
            marker=(float(rng.uniform(0.36, 0.43)), float(rng.uniform(0.05, 0.13)), float(rng.uniform(0.03, 0.045))),
            image_seed=int(rng.integers(2**31)),
        )


@dataclasses.dataclass(frozen=True)
class RibBreak:
    """A fracture of one posterior rib: where along the rib (0 spine .. 1 wall), and its displacement."""

    side: str
    index: int
    at: float
    offset: float


@functools.lru_cache
def ticks(start: float, stop: float, count: int) -> np.ndarray:
    """`np.linspace`, once for each line of numbers that every chest needs anew; read-only."""
    line = np.linspace(start, stop, count)
    line.flags.writeable = False
    return line


def within(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """`np.clip`, which takes three times as long over short lines."""
    return np.minimum(np.maximum(x, low), high)


def xy(x, y) -> np.ndarray:
    """Coordinates [...] each -> float64 [..., 2]."""
    out = np.empty((*np.broadcast(x, y).shape, 2))
    out[..., 0], out[..., 1] = x, y
    return out


@functools.lru_cache
def _catmull_rom(samples: int) -> np.ndarray:
    """Weights [samples, 4] of the four neighbouring points along one segment."""
    t = np.linspace(0, 1, samples, endpoint=False)
    powers = np.stack([t**0, t, t**2, t**3], -1)
    return powers @ (0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]))


@functools.lru_cache
def _windows(count: int) -> np.ndarray:
    """Four neighbours of each of `count` segments, as indices [count, 4]."""
    return np.arange(count)[:, None] + np.arange(4)


def spline(points, samples: int = 8, *, closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through the points: float64 [points * samples, 2] (closed) or with both ends kept (open)."""
    p = np.asarray(points, np.float64)
    ends = (p[-1:], p, p[:2]) if closed else (p[:1], p, p[-1:])
    padded = np.concatenate(ends)
    count = len(p) if closed else len(p) - 1
    curve = (_catmull_rom(samples) @ padded[_windows(count)]).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def ribbon(path_Nx2: np.ndarray, half_width) -> np.ndarray:
    """Outline [..., 2N, 2] of a band along the path(s) [..., N, 2]; `half_width` is a scalar or [..., N]."""
    count = path_Nx2.shape[-2]
    tangent = np.empty(path_Nx2.shape)
    np.subtract(path_Nx2[..., 2:, :], path_Nx2[..., :-2, :], out=tangent[..., 1:-1, :])
    tangent[..., 0, :] = path_Nx2[..., 1, :] - path_Nx2[..., 0, :]
    tangent[..., -1, :] = path_Nx2[..., -1, :] - path_Nx2[..., -2, :]
    tangent *= (half_width / (np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-9))[..., None]
    outline = np.empty((*path_Nx2.shape[:-2], 2 * count, 2))
    there, back = outline[..., :count, :], outline[..., : count - 1 : -1, :]
    for axis, across in ((0, tangent[..., 1]), (1, -tangent[..., 0])):
        np.subtract(path_Nx2[..., axis], across, out=there[..., axis])
        np.add(path_Nx2[..., axis], across, out=back[..., axis])
    return outline


def ellipse(center, radii, angle: float = 0.0, *, wobble=None, samples: int = 40) -> np.ndarray:
    """Outline [samples, 2]; `wobble` holds amplitudes of the harmonics 2, 3, ... that make the outline irregular."""
    t, cosine, sine = _circle(samples)
    r = 1.0
    for k, (amplitude, phase) in enumerate(wobble or (), start=2):
        r = r + amplitude * np.cos(k * t + 2 * np.pi * phase)
    x, y = r * radii[0] * cosine, r * radii[1] * sine
    c, s = math.cos(angle), math.sin(angle)
    out = np.empty((samples, 2))
    out[:, 0], out[:, 1] = center[0] + c * x - s * y, center[1] + s * x + c * y
    return out


@functools.lru_cache
def _circle(samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    t = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return t, np.cos(t), np.sin(t)


class Anatomy:
    """The curves of one chest in one pose. `heart`, `mediastinum` scale those organs; `lift` raises a hemidiaphragm."""

    def __init__(self, body: Body, pose: Pose, *, heart=1.0, mediastinum=1.0, lift=None, rib_breaks=()):
        self.body, self.pose = body, pose
        self.heart_scale = heart * body.heart * (1.05 if pose.view == "AP" else 1.0) * (1 - 0.03 * pose.inspiration)
        self.mediastinum_scale = mediastinum * body.mediastinum * (1.08 if pose.view == "AP" else 1.0)
        self.lift = {"right": 0.0, "left": 0.0, **(lift or {})}
        self.rib_breaks = rib_breaks
        self._ribs: dict[str, np.ndarray] = {}  # posterior ones by side; the anterior ones begin at their ends
        self.apex_y = 0.105 - 0.01 * pose.inspiration
        self.lung_height = 0.625 * body.height * (1 + 0.075 * pose.inspiration)

    def half_width(self, side: str) -> float:
        return 0.405 * self.body.width * (1 - 0.07 * SIDES[side] * self.pose.yaw)

    def wall(self, side: str, y) -> np.ndarray:
        """Distance of the lateral lung border from the midline at height y."""
        t = within((np.asarray(y) - self.apex_y) / (self.lung_height * 1.15), 0, 1)
        return 0.12 + (self.half_width(side) - 0.12) * (1 - (1 - t) ** 2.5) ** 0.62

    def dome(self, side: str, u) -> np.ndarray:
        """Height y of the hemidiaphragm; u is 0 at the heart and 1 at the lateral wall."""
        u = np.asarray(u, np.float64)
        top = self.apex_y + self.lung_height - self.lift[side] + (self.body.dome_gap if side == "left" else 0.0)
        inner = np.maximum(0, 0.42 - u) / 0.42
        outer = np.maximum(0, u - 0.42) / 0.58
        depth = 0.115 + 0.035 * self.pose.inspiration + 0.5 * self.lift[side]
        return top + 0.035 * inner**2 + depth * outer**2.3

    def lung_point(self, side: str, u, v) -> np.ndarray:
        """Patient-frame points [..., 2] for u (0 medial .. 1 lateral) and v (0 apex .. 1 diaphragm)."""
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
        y = self.apex_y + v * (self.dome(side, u) - self.apex_y)
        medial = 0.042 + 0.075 * np.maximum(0, 1 - v / 0.16) ** 2
        x = medial + u * (self.wall(side, y) - medial)
        return xy(SIDES[side] * x, y)

    def lung(self, side: str) -> np.ndarray:
        up, along = ticks(0, 1, 22), ticks(1, 0, 18)
        u = np.concatenate([np.ones(22), along, np.zeros(22)])  # up the wall, along the diaphragm, up the middle
        return self.lung_point(side, u, np.concatenate([up, np.ones(18), up[::-1]]))

    def torso(self) -> np.ndarray:
        b = self.body
        flank = self.half_width("left") + 0.045 + 0.035 * (b.habitus + 0.6)
        neck = 0.105 + 0.02 * b.habitus
        shoulder = 0.085 - 0.02 * b.habitus
        half = np.array([
            (neck, -0.25), (neck + 0.005, 0.0), (neck + 0.06, 0.035), (0.30, shoulder), (0.42, shoulder + 0.045),
            (0.54, 0.16), (0.56, 0.36), (0.49, 0.44), (flank + 0.02, 0.5), (flank, 0.62), (flank + 0.005, 0.8),
            (flank + 0.01 * b.habitus, 1.25),
        ])  # fmt: skip
        return spline(np.concatenate([half, half[::-1] * (-1, 1)]), 4)

    def heart(self) -> np.ndarray:
        s = self.heart_scale
        turn = 0.03 * self.body.heart_turn
        points = np.array([
            (-0.040, 0.400), (-0.078, 0.490), (-0.108, 0.590), (-0.100, 0.690), (-0.050, 0.765), (0.060, 0.785),
            (0.155, 0.775), (0.222 + turn, 0.735 - turn), (0.228 + turn, 0.670 - turn), (0.192, 0.590),
            (0.132, 0.505), (0.075, 0.430), (0.035, 0.395),
        ])  # fmt: skip
        lower = max(0.0, s - 1.0)  # an enlarged heart grows to the left and down more than to the right
        points[:, 0] = points[:, 0] * s + np.where(points[:, 0] > 0.05, 0.03 * lower, 0.0)
        floor = float(self.dome("left", 0.1)) + 0.045
        points[:, 1] = floor + (points[:, 1] - 0.785) * (0.94 + 0.3 * (s - 0.94)) * self.lung_height / 0.625
        points[:, 0] += 0.022 * self.pose.yaw
        return spline(points, 5)

    def great_vessels(self) -> np.ndarray:
        """Outline of the mediastinum with the superior vena cava on the right and the aortic knob on the left."""
        k, w = 0.026 * self.body.knob, self.mediastinum_scale
        left = [(0.036, 0.0), (0.036, 0.10), (0.040, 0.20), (0.044 + 0.6 * k, 0.245), (0.048 + k, 0.285)]
        left += [(0.046 + k, 0.325), (0.046 + 0.3 * k, 0.365), (0.055, 0.41), (0.050, 0.60), (0.036, 1.3)]
        right = [(-0.030, 1.3), (-0.040, 0.60), (-0.056, 0.42), (-0.056, 0.30), (-0.050, 0.20), (-0.036, 0.10)]
        points = np.array([*left, *right, (-0.036, 0.0)])
        widen = np.exp(-(((points[:, 1] - 0.28) / 0.12) ** 2))
        points[:, 0] *= 1 + (w - 1) * (0.25 + widen)
        points[:, 0] += 0.012 * self.pose.yaw
        return spline(points, 4)

    def spine(self) -> np.ndarray:
        y = ticks(-0.05, 1.05, 24)
        x = self.body.scoliosis * np.sin((y - 0.1) * 3.6) - 0.014 * self.pose.yaw
        return xy(x, y)

    def airway(self) -> list[tuple[np.ndarray, float]]:
        """Trachea and main bronchi as (path, half width)."""
        x, y0 = 0.018 * self.pose.yaw + 0.006, 0.315
        trachea = np.array([(x * 0.4, -0.05), (x * 0.7, 0.1), (x, 0.2), (x - 0.004, y0)])
        right = np.array([(x - 0.004, y0 - 0.01), (x - 0.035, y0 + 0.04), (x - 0.065, y0 + 0.095)])
        left = np.array([(x - 0.004, y0 - 0.01), (x + 0.045, y0 + 0.045), (x + 0.09, y0 + 0.075)])
        return [(spline(trachea, 4, closed=False), 0.0185), (right, 0.0115), (left, 0.0095)]

    def clavicle(self, side: str) -> np.ndarray:
        s = SIDES[side]
        tilt = self.body.clavicle + (-0.02 if self.pose.view == "AP" else 0.0)
        inner = 0.030 - 0.022 * s * self.pose.yaw
        points = [(inner, 0.212), (0.10, 0.190 + 0.4 * tilt), (0.20, 0.148 + tilt), (0.29, 0.122 + tilt)]
        return spline([(s * x, y) for x, y in [*points, (0.40, 0.125 + tilt)]], 5, closed=False)

    def scapula(self, side: str) -> np.ndarray:
        s, shift = SIDES[side], (-0.045 if self.pose.view == "AP" else 0.02)
        points = [(0.34, 0.135), (0.45, 0.16), (0.47, 0.24), (0.42, 0.33), (0.37, 0.47), (0.345, 0.45), (0.33, 0.27)]
        return spline([(s * (x + shift), y) for x, y in points], 4)

    def posterior_ribs(self, side: str) -> np.ndarray:
        """Paths [RIB_COUNT, 25, 2] from the spine to the lateral wall; read-only."""
        if side in self._ribs:
            return self._ribs[side]
        t = ticks(0, 1, 25)[None]
        i = np.arange(RIB_COUNT)[:, None]
        start = 0.085 + self.body.rib_phase + (0.0585 + 0.0012 * i) * i * (0.6 + 0.4 * self.lung_height / 0.625)
        drop = (0.075 + 0.0105 * i) * self.body.rib_slope * (0.6 + 0.4 * np.minimum(1, (i + 1) / 3))
        y = start - 0.016 * np.sin(np.pi * np.minimum(1, 1.4 * t)) + drop * (1 - np.cos(t * np.pi / 2)) ** 1.15
        reach = self.wall(side, y[:, -1:]) + 0.006
        x = 0.03 + (reach - 0.03) * np.sin(t * np.pi / 2) ** 0.95
        paths = xy(SIDES[side] * x + 0.5 * self.body.scoliosis * (1 - t), y)
        for fracture in self.rib_breaks:
            if fracture.side == side:
                beyond = np.maximum(0, t[0] - fracture.at) / (1 - fracture.at)
                paths[fracture.index, :, 1] += fracture.offset * (beyond > 0) * (1 - 0.7 * beyond)
        paths.flags.writeable = False
        self._ribs[side] = paths
        return paths

    def anterior_ribs(self, side: str) -> np.ndarray:
        """Paths [7, 17, 2] from the lateral wall forward and down to the costal cartilage."""
        ends = self.posterior_ribs(side)[:7, -1]
        t = ticks(0, 1, 17)[None]
        i = np.arange(7)[:, None]
        x = np.abs(ends[:, :1])
        inner = (0.13 + 0.016 * i) * self.body.width
        path_x = x - (x - inner) * (1 - np.cos(t * np.pi / 2)) ** 0.9
        path_y = ends[:, 1:] + (0.095 + 0.008 * i) * np.sin(t * np.pi / 2) ** 1.1 - 0.012 * t**3
        return xy(SIDES[side] * path_x, path_y)

    def vessel_tree(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Arteries and veins fanning out from the hilum: paths [P, 7, 2] and their widths [P] at the hilum end."""
        u, v, width = _vessels_of(self.body.vessel_seed, side)
        return self.lung_point(side, u, v), width


@functools.lru_cache(maxsize=8)
def _vessels_of(seed: int, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vessels of a lung, the same in every pose: u and v [P, 7] of `lung_point`, widths [P]; read-only."""
    rng = stream(seed, 1 if side == "right" else 2)
    trunks, twigs = 14, 5
    angle = ticks(-1.3, 1.45, trunks) + rng.normal(0, 0.10, trunks)
    length, width = rng.uniform(0.5, 0.95, trunks), rng.uniform(0.008, 0.0135, trunks)
    parent = np.repeat(np.arange(trunks), twigs)
    at = rng.uniform(0.2, 0.85, trunks * twigs) * length[parent]
    u = np.concatenate([np.full(trunks, 0.08), 0.08 + at * np.cos(angle[parent])])
    v = np.concatenate([np.full(trunks, 0.47), 0.47 + at * np.sin(angle[parent]) * 0.62])
    turn = rng.choice([-1, 1], trunks * twigs) * rng.uniform(0.3, 0.85, trunks * twigs)
    angle = np.concatenate([angle, angle[parent] + turn])[:, None]
    length = np.concatenate([length, rng.uniform(0.12, 0.36, trunks * twigs)])[:, None]
    width = np.concatenate([width, 0.5 * width[parent]])
    t = ticks(0, 1, 7)
    bend = rng.normal(0, 0.07, length.shape) * t**2 + rng.normal(0, 0.010, (len(length), 7)) * t
    u = u[:, None] + length * t * np.cos(angle) - bend * np.sin(angle)
    v = v[:, None] + length * t * np.sin(angle) * 0.62 + bend * np.cos(angle)
    found = within(u, 0.01, 0.97), within(v, 0.03, 0.97), width
    for array in found:
        array.flags.writeable = False
    return found
