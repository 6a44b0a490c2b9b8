"""What is true: patients, their studies over time, and the findings in each. No pixels and no words yet."""

import dataclasses
import functools

import numpy as np

from tfds_builders.cxr_phantom.anatomy import Body, Pose, stream
from tfds_builders.cxr_phantom.findings import DEVICES, KINDS, Finding

MAX_STUDIES = 3
NORMAL_PATIENTS = 0.42  # at the first study; later studies add findings, so about 35 % of all studies are normal
FREQUENCY = {
    "effusion": 1.2,
    "pneumothorax": 0.9,
    "consolidation": 1.2,
    "atelectasis": 1.1,
    "cardiomegaly": 1.1,
    "edema": 0.9,
    "nodule": 0.75,
    "mass": 0.6,
    "fracture": 0.9,
    "device": 1.2,
    "thickening": 0.75,
    "mediastinum": 0.7,
}
LASTING = {"cardiomegaly", "mediastinum", "thickening", "nodule", "mass", "fracture"}  # these never just resolve
PAIRED = {"effusion": 0.3, "atelectasis": 0.2, "nodule": 0.15, "fracture": 0.1}  # chance of a second one


@dataclasses.dataclass(frozen=True)
class Observed:
    """A finding as one study shows it. `change` since the prior study: "", "new", "unchanged", "worse", "better"."""

    finding: Finding
    change: str


@dataclasses.dataclass(frozen=True)
class Study:
    patient: int
    number: int
    observed: tuple[Observed, ...]
    resolved: tuple[str, ...]  # kinds that the prior study had and this one has not
    views: tuple[str, ...]  # one per image

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(o.finding for o in self.observed)

    @property
    def kinds(self) -> set[str]:
        return {o.finding.kind for o in self.observed}

    @property
    def patient_id(self) -> str:
        return f"p{10_000_000 + self.patient}"

    @property
    def study_id(self) -> str:
        return f"s{50_000_000 + self.patient * MAX_STUDIES + self.number}"

    def image_id(self, image: int) -> str:
        return f"{self.study_id}-{image}"

    def pose(self, seed: int, image: int) -> Pose:
        return Pose.sample(stream(seed, self.patient, 1, self.number, 1, image), self.views[image])


def study_count(seed: int, patient: int) -> int:
    """How many studies a patient has, 1 to MAX_STUDIES."""
    return int(stream(seed, patient, 2).choice(MAX_STUDIES, p=[0.6, 0.27, 0.13])) + 1


@functools.lru_cache(maxsize=8)
def patient_body(seed: int, patient: int) -> Body:
    return Body.sample(stream(seed, patient, 0))


def sample_study(seed: int, patient: int, number: int) -> Study:
    """Study `number` (0, 1, ...) of a patient; it follows from the earlier ones, which are sampled on the way."""
    previous: Study | None = None
    for index in range(number + 1):
        rng = stream(seed, patient, 1, index)
        previous = _first(rng, patient) if previous is None else _next(rng, previous)
    return previous


def _first(rng: np.random.Generator, patient: int) -> Study:
    found: list[Finding] = []
    if rng.random() >= NORMAL_PATIENTS:
        for kind in _choose(rng, 1 + min(2, rng.poisson(0.7)), set()):
            found += sample_findings(rng, kind)
    return Study(patient, 0, tuple(Observed(f, "") for f in found), (), _views(rng, found))


def _next(rng: np.random.Generator, previous: Study) -> Study:
    observed, resolved = [], []
    for kind in dict.fromkeys(f.kind for f in previous.findings):  # both sides of a kind change together
        draw = rng.random()
        step = rng.uniform(0.22, 0.4)
        for f in (f for f in previous.findings if f.kind == kind):
            if kind in ("device", "fracture") or (kind == "thickening" and draw < 0.85) or draw < 0.45:
                fate, severity = "unchanged", f.severity
            elif draw < 0.65 or (kind in LASTING and draw < 0.8) or f.severity < 0.25:
                fate, severity = "worse", min(1.0, f.severity + step)
            else:
                fate, severity = "better", max(0.0, f.severity - step)
            if kind not in LASTING and draw > 0.87:
                fate = "resolved"
            if fate == "resolved":
                resolved.append(kind)
            else:
                observed.append(Observed(dataclasses.replace(f, severity=severity), fate))
    if rng.random() < 0.30:
        taken = previous.kinds | set(resolved)
        for kind in _choose(rng, 1, taken):
            observed += [Observed(f, "new") for f in sample_findings(rng, kind)]
    found = [o.finding for o in observed]
    removed = tuple(dict.fromkeys(resolved))
    return Study(previous.patient, previous.number + 1, tuple(observed), removed, _views(rng, found))


def _choose(rng: np.random.Generator, count: int, taken: set[str]) -> list[str]:
    kinds = [kind for kind in KINDS if kind not in taken]
    weights = np.array([FREQUENCY[kind] for kind in kinds])
    return [kinds[i] for i in rng.choice(len(kinds), min(count, len(kinds)), replace=False, p=weights / weights.sum())]


def _views(rng: np.random.Generator, found: list[Finding]) -> tuple[str, ...]:
    bedside = 0.28 + 0.2 * any(f.kind in ("device", "edema", "pneumothorax") for f in found)
    first = "AP" if rng.random() < bedside else "PA"
    return (first, "AP" if rng.random() < 0.5 else first) if rng.random() < 0.2 else (first,)


def sample_findings(rng: np.random.Generator, kind: str) -> list[Finding]:
    """One finding of a kind, or two: bilateral effusions, several nodules."""
    sides = ["right", "left"] if rng.random() < 0.5 else ["left", "right"]
    count = 2 if rng.random() < PAIRED.get(kind, 0.0) else 1
    return [_finding(rng, kind, side) for side in sides[:count]]


def _finding(rng: np.random.Generator, kind: str, side: str) -> Finding:
    zones = {
        "effusion": ("lower",),
        "pneumothorax": ("upper",),
        "atelectasis": ("lower", "lower", "lower", "mid"),
        "consolidation": ("lower", "lower", "mid", "upper"),
        "cardiomegaly": ("",),
        "edema": ("",),
        "mediastinum": ("",),
        "device": ("",),
    }.get(kind, ("upper", "mid", "lower"))
    zone = zones[rng.integers(len(zones))]
    variant = ""
    if kind == "device":
        variant = DEVICES[rng.choice(len(DEVICES), p=[0.38, 0.24, 0.08, 0.06, 0.08, 0.16])]
        if variant == "pacemaker":
            side = "left" if rng.random() < 0.85 else "right"
        elif variant == "central line":
            side = "right" if rng.random() < 0.75 else "left"
        elif variant != "chest tube":
            side = ""
    elif kind == "thickening":
        variant = "apical" if zone == "upper" and rng.random() < 0.6 else "lateral"
    elif kind in ("cardiomegaly", "edema", "mediastinum"):
        side = ""
    severity = float(rng.beta(1.8, 1.1))
    return Finding(kind, side, zone, severity, variant, tuple(float(t) for t in rng.random(12)))
