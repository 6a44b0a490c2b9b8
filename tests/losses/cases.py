"""Pairwise losses against float64: cases, the definition in NumPy with its gradients, and how far ours are from it.

As a script, under several devices, it measures all schedules: python tests/losses/cases.py [--all]
"""

import functools
import itertools
import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.losses import clinical_prior, targets
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep

COUNT, WIDTH = 24, 6
TARGETS = ("identity", "same_id", "prior", "prior_row", "medclip", "unicl", "given")
KINDS = ("softmax", "sigmoid")
MASKS = ("none", "rows", "weights")
TEMPERATURE, BIAS = 0.3, -0.7
NAMES = ("x", "y", "temperature", "bias")


class Case(NamedTuple):
    kind: str
    targets: str
    mask: str
    directions: tuple[float, float] = (1.0, 1.0)


CASES = [Case(*parts) for parts in itertools.product(KINDS, TARGETS, MASKS)] + [
    Case("softmax", "prior", "rows", (0.75, 0.25))
]


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    labels = (rng.random((COUNT, 5)) < 0.4).astype(np.float32)
    keep = rng.random(COUNT) < 0.7
    return {
        "x": rng.normal(size=(COUNT, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(COUNT, WIDTH)).astype(np.float32),
        "report": rng.normal(size=(COUNT, 12)).astype(np.float32),
        "x_labels": labels,
        "y_labels": np.roll(labels, 3, axis=0),
        "id": rng.integers(0, 9, COUNT).astype(np.int32),
        "matrix": rng.random((COUNT, COUNT)).astype(np.float32),
        "rows": keep,
        "weights": (keep * rng.uniform(0.2, 2.0, COUNT)).astype(np.float32),
    }


def definition(case: Case):
    """Targets of rows, targets of columns and kept pairs, in float64, from the formulas."""
    a = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in arrays().items()}
    eye, keep = np.eye(COUNT), np.ones((COUNT, COUNT), bool)
    valid = np.ones(COUNT, bool) if case.mask == "none" else a[case.mask] > 0
    if case.targets == "identity":
        both = eye, eye
    elif case.targets == "same_id":
        both = (a["id"][:, None] == a["id"]).astype(float), (a["id"][:, None] == a["id"]).astype(float)
    elif case.targets.startswith("prior"):
        prior = 1 - np.exp(-0.2 * np.maximum(np.corrcoef(a["report"]), 0))
        prior[~(valid[:, None] & valid)] = 0
        np.fill_diagonal(prior, 0)
        scale = 1.0 if case.targets == "prior_row" else (8 - 1) / (valid.sum() - 1)
        soft = eye + scale * TEMPERATURE * prior
        keep = (a["id"][:, None] != a["id"]) | np.eye(COUNT, dtype=bool)
        soft = soft * (keep & valid[:, None] & valid)
        if case.targets == "prior_row":
            soft = soft / np.maximum(soft.sum(axis=1, keepdims=True), 1e-12)
        both = soft, soft.T
    elif case.targets == "medclip":
        mass = np.exp(a["x_labels"] @ a["y_labels"].T)
        both = mass / mass.sum(axis=1, keepdims=True), mass / mass.sum(axis=0)
    elif case.targets == "unicl":
        mass = np.clip(a["x_labels"] @ a["y_labels"].T + eye, 0, 1)
        both = mass / mass.sum(axis=1, keepdims=True), mass / mass.sum(axis=0)
    else:
        both = a["matrix"], a["matrix"].T
    return *both, keep


def reference(case: Case):
    """Value and gradients (x, y, temperature, bias) in float64; gradients by central differences."""
    row, column, keep = definition(case)
    weight = np.ones(COUNT) if case.mask == "none" else arrays()[case.mask].astype(np.float64)
    keep = keep & (weight > 0)[:, None] & (weight > 0)

    def value(x, y, temperature, bias):
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        scores = x @ y.T / temperature + bias
        if case.kind == "sigmoid":
            losses = np.logaddexp(0, scores) - row * scores
            return np.sum(weight * np.sum(losses * keep, axis=1)) / weight.sum()
        total = 0.0
        for direction, s, t, k in zip(
            case.directions, (scores, scores.T), (row, column.T), (keep, keep.T), strict=True
        ):
            with np.errstate(divide="ignore"):
                log_sum = np.log(np.sum(np.exp(s) * k, axis=1))
            losses = np.where(k, -t * (s - np.where(k.any(axis=1), log_sum, 0)[:, None]), 0)
            total += direction * np.sum(weight * losses.sum(axis=1)) / weight.sum()
        return total

    point = [arrays()["x"].astype(np.float64), arrays()["y"].astype(np.float64), np.array(TEMPERATURE), np.array(BIAS)]
    gradients = []
    for number, part in enumerate(point):
        gradient = np.zeros(part.shape)
        for index in np.ndindex(part.shape):
            ends = []
            for sign in (1, -1):
                moved = [z.copy() for z in point]
                moved[number][index] += sign * 1e-6
                ends.append(value(*moved))
            gradient[index] = (ends[0] - ends[1]) / 2e-6
        gradients.append(gradient)
    return value(*point), gradients


def our_targets(case: Case, sweep: Sweep):
    a = {name: jnp.asarray(x) for name, x in arrays().items()}
    valid = None if case.mask == "none" else a[case.mask] > 0
    if case.targets.startswith("prior"):
        mass = "row" if case.targets == "prior_row" else "batch_invariant"
        rule = {"temperature": TEMPERATURE, "mass": mass, "reference_batch": 8, "valid_B": valid, "sweep": sweep}
        return clinical_prior.prior_targets(a["report"], **rule, hash_B=a["id"])
    return {
        "identity": lambda: None,
        "same_id": lambda: targets.same_id(a["id"]),
        "medclip": lambda: targets.softmax_of(a["x_labels"], a["y_labels"], sweep=sweep),
        "unicl": lambda: targets.label_overlap(a["x_labels"], a["y_labels"], sweep=sweep),
        "given": lambda: a["matrix"],
    }[case.targets]()


def ours(case: Case, sweep: Sweep = Sweep(), place=lambda x: x):  # noqa: B008
    """Value and gradients with `sweep`; `place` puts the batch on devices."""
    valid = None if case.mask == "none" else jnp.asarray(arrays()[case.mask])

    def loss(x, y, temperature, bias):
        return contrastive(
            x,
            y,
            temperature=temperature,
            bias=bias,
            targets=our_targets(case, sweep),
            valid_N=valid,
            kind=case.kind,
            directions=case.directions,
            sweep=sweep,
        )

    point = *(place(jnp.asarray(arrays()[name])) for name in "xy"), jnp.float32(TEMPERATURE), jnp.float32(BIAS)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*point)


def distance(case: Case, got) -> tuple[float, float]:
    """Relative error of the value; largest error of a gradient relative to that gradient's largest number."""
    value, gradients = reference(case)
    errors = []
    for name, a, b in zip(NAMES, got[1], gradients, strict=True):
        # The bias of a softmax has a gradient of zero.
        scale = 1.0 if name == "bias" and case.kind == "softmax" else max(np.abs(b).max(), 1e-6)
        errors.append(float(np.abs(np.asarray(a) - b).max() / scale))
    return abs(float(got[0]) / value - 1), max(errors)


def main() -> None:
    from medvlp_jax import sharding

    jax.config.update("jax_default_matmul_precision", "highest")
    everything = "--all" in sys.argv
    meshes = {
        f"{data}x{fsdp}": sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        for data, fsdp in ((1, 1), (2, 1), (8, 1), (2, 4))
    }
    worst = {}
    # Without --all every kind and target with one mask, and each schedule on one mesh, in turns.
    chosen = CASES if everything else [case for n, case in enumerate(CASES) if n % 3 == n // 3 % 3]
    for number, case in enumerate(chosen):
        for turn, schedule in enumerate(("dense", "chunked", "ring")):
            names = list(meshes) if everything else [list(meshes)[(number + turn) % 4]]
            for name in names:
                # Chunks that divide nothing: padding takes part in every tiled case but those of one example per tile.
                sweep = Sweep(schedule, 10 if schedule == "chunked" else 2, meshes[name])
                place = functools.partial(jax.device_put, device=sharding.batch_sharding(meshes[name]))
                errors = distance(case, ours(case, sweep, place))
                key = f"{schedule} {name}"
                worst[key] = [max(pair) for pair in zip(worst.get(key, (0.0, 0.0)), errors, strict=True)]
                assert errors[0] <= 1e-6, (case, key, errors)
                assert errors[1] <= 1e-5, (case, key, errors)
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
