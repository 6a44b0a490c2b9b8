"""Scores and costs of a comparison, from its run folders: the content of `table.json`, and that as Markdown."""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlp_jax import text_tower
from medvlp_jax.compare.entries import Entry
from medvlp_jax.data import whole_files
from medvlp_jax.evaluators.scores import seeds_interval
from medvlp_jax.metrics import clock
from medvlp_jax.report.environment import environment
from medvlp_jax.report.page import unlike
from medvlp_jax.report.run_folder import Run, read_run
from medvlp_jax.report.scores import Score, clearly_best
from medvlp_jax.report.timing import timing
from medvlp_jax.score_table import HEADLINES, number

MAIN = ("zero_shot/auc/mean", "retrieval/report/image_to_text_R@10")
# What else stands in the table, as far as a score is there; `table.json` holds all of them.
MORE = (
    "retrieval/report/text_to_image_R@10",
    "retrieval/report/image_to_text_median_rank",
    "linear_probe/1%/auc/mean",
    "linear_probe/100%/auc/mean",
    "knn/100%/auc/mean",
    "grounding/pointing/all",
    "grounding/cnr/all",
)


def summary(entry: Entry, known: Mapping[str, Any], runs: Mapping[int, Path]) -> tuple[dict[str, Any], list[Run]]:
    """What `table.json` holds of one method, and its runs.

    Args: known: what the ledger knows: `cost`, `seconds_per_step`, `steps`, `peak_bytes` by seed. runs: folders of its
      finished runs by seed.
    """
    found = {seed: read_run(path, name=path.name, data_dir=entry.config.data.dir) for seed, path in runs.items()}
    found = {seed: run for seed, run in found.items() if run.scores}
    names = dict.fromkeys(score.name for run in found.values() for score in run.scores.scores)
    by_seed = {seed: {score.name: score for score in run.scores.scores} for seed, run in found.items()}
    times = {seed: timing(run.training) for seed, run in found.items()}
    working = {seed: t.seconds["step"] + t.seconds["data_wait"] for seed, t in times.items() if t}
    config = entry.config
    cost = known.get("cost") or {}
    steps = known.get("steps")
    return {
        "method": config.method,
        "preset": config.preset,
        "config": entry.spec,
        "steps": steps,
        "batch_size": config.batch_size,
        "views": config.image.views,
        "schedule": config.optimizer.schedule,
        "text": f"{config.text.weights}, {text_tower.use(config)}",
        "parameters": next((run.parameters for run in found.values() if run.parameters), ""),
        "seeds": sorted(found),
        "training_seconds": working,
        "ms_per_step": {s: 1e3 / t.steps_per_second for s, t in times.items() if t and t.steps_per_second},
        "wall_seconds": {seed: t.total - t.seconds["down"] for seed, t in times.items() if t},
        "calibrated_ms_per_step": 1e3 * known["seconds_per_step"] if known.get("seconds_per_step") else None,
        "flops_per_step": cost.get("flops"),
        "training_flops": cost["flops"] * steps if cost and steps else None,
        "cost": cost,
        "peak_bytes": {seed: peak for seed, peak in known.get("peak_bytes", {}).items() if peak},
        "scores": {name: _over_seeds(name, by_seed) for name in names},
    }, list(found.values())


def _over_seeds(name: str, by_seed: Mapping[int, Mapping[str, Score]]) -> dict[str, Any]:
    """A score over the seeds that have it: mean, Student's 95 % interval of the mean (None for one seed), values."""
    rows = {seed: scores[name] for seed, scores in by_seed.items() if name in scores}
    values = {seed: row.value for seed, row in rows.items() if row.value is not None}
    interval = seeds_interval(list(values.values()))
    single = next(iter(rows.values())).interval if len(values) == 1 and len(rows) == 1 else None
    return {
        "mean": _mean(values.values()),
        "interval": list(interval) if interval else None,
        "values": values,
        "random_init": _mean(row.random_init for row in rows.values()),
        "chance": _mean(row.chance for row in rows.values()),
        "raw_pixels": _mean(row.raw_pixels for row in rows.values()),
        "interval_over_images": list(single) if single else None,
    }


def table(
    about: Mapping[str, Any], methods: Mapping[str, Any], runs: Sequence[Run], unfinished: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of `table.json`.

    Args: about: what was asked: budget, seeds, command. methods: name -> `summary`. runs: all that were scored.
      unfinished: run, reason and command of those that were not.
    """
    differences = unlike(runs)
    first = runs[0].scores.about if runs else {}
    best = {} if differences else {name: found for name in (*MAIN, *MORE) if (found := _best(name, methods))}
    return {
        **about,
        **{name: first.get(name) for name in ("data", "split", "split_hash", "examples", "patients", "public")},
        "protocols": _protocols(runs),
        "differences": differences,
        "methods": dict(methods),
        "clearly_best": best,
        "unfinished": list(unfinished),
        "environment": environment(),
    }


def _best(score: str, methods: Mapping[str, Any]) -> str | None:
    rows = [method["scores"].get(score) for method in methods.values()]
    found = [
        Score(score.partition("/")[0], score, row["mean"], tuple(row["interval"]) if row["interval"] else None)
        if row
        else None
        for row in rows
    ]
    place = clearly_best(found)
    return None if place is None else list(methods)[place]


def _protocols(runs: Sequence[Run]) -> dict[str, str]:
    return {group.protocol: group.paragraph for run in runs[:1] for group in run.scores.groups if group.paragraph}


# ---- Markdown -----------------------------------------------------------


def as_markdown(content: Mapping[str, Any]) -> str:
    """`table.md`: scores beside the untrained model and chance, cost, what is not in it, how to read it."""
    methods = content["methods"]
    seeds = len(content["seeds"])
    lines = [f"# {len(methods)} method(s), {content['budget_words']}, {seeds} seed(s)", ""]
    if content["examples"]:
        lines += [
            f"Scored on {content['examples']:,} images of {content['patients']:,} patients, {content['data']}/"
            f"{content['split']} ({content['split_hash']}).",
            "",
        ]
        if str(content["data"]).startswith("cxr_phantom"):
            lines += [
                "These are phantoms, rendered images, not patients: what is best here need not be on radiographs.",
                "",
            ]
    lines += [f"{sentence} No method is marked as best.\n" for sentence in content["differences"]]
    lines += _score_table(content, scored(methods, MAIN), cost=True)
    lines += ["", "## Cost", "", *_cost_table(methods)]
    if more := scored(methods, MORE):
        lines += ["", "## Other scores", "", *_score_table(content, more)]
    if content["unfinished"]:
        lines += ["", "## Not in the table", ""]
        lines += [f"- `{row['run']}`: {row['reason']}  \n  `{row['command']}`" for row in content["unfinished"]]
    return "\n".join([*lines, "", "## How to read it", "", *_notes(content), ""])


def scored(methods: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of the scores that some method has."""
    return [name for name in names if any(name in method["scores"] for method in methods.values())]


def _score_table(content: Mapping[str, Any], names: Sequence[str], *, cost: bool = False) -> list[str]:
    methods = content["methods"]
    head = ["method", "seeds"]
    for name in names:
        head += [HEADLINES[name], "untrained"]
    rows = [head + (["training time", "TFLOPs of training"] if cost else [])]
    for method, found in methods.items():
        cells = [method, str(len(found["seeds"]))]
        for name in names:
            row = found["scores"].get(name)
            mark = " ▲" if content["clearly_best"].get(name) == method else ""
            cells += [f"{_value(row)}{mark}", number(row["random_init"])] if row else ["", ""]
        if cost:
            flops = found["training_flops"]
            cells += [_clock(found["training_seconds"]), f"{flops / 1e12:.3g}" if flops else ""]
        rows.append(cells)
    chance = ["chance", ""]
    for name in names:
        known = [method["scores"][name]["chance"] for method in methods.values() if name in method["scores"]]
        chance += [number(_mean(known)), ""]
    return _markdown([*rows, chance + ["", ""] * cost])


def _cost_table(methods: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            *("method", "steps", "batch x views", "text tower", "trained parameters", "training time", "ms/step"),
            *("whole run", "GFLOPs of a step", "memory of a step", "peak of the process"),
        ]
    ]
    for name, found in methods.items():
        memory = found["cost"].get("memory_bytes")
        rows.append(
            [
                name,
                f"{found['steps']:,}" if found["steps"] else "",
                f"{found['batch_size']} x {found['views']}",
                found["text"],
                found["parameters"],
                _clock(found["training_seconds"]),
                _digits(_mean(found["ms_per_step"].values())),
                _clock(found["wall_seconds"]),
                _digits(found["flops_per_step"] and found["flops_per_step"] / 1e9),
                f"{memory / 2**20:,.0f} MiB" if memory else "",
                f"{max(found['peak_bytes'].values()) / 2**30:.2f} GiB" if found["peak_bytes"] else "",
            ]
        )
    return _markdown(rows)


def _notes(content: Mapping[str, Any]) -> list[str]:
    notes = [
        "- Scores: mean ± half of Student's 95 % interval of the mean over seeds. It says how much a method varies "
        "from seed to seed; what the choice of test images adds stands in each run's `scores.json`.",
        "- ▲: the interval overlaps with that of no other method; what is not marked may still differ. Untrained: the "
        "same model before its first step (a pretrained text tower included). Chance: what guessing gives.",
        "- Training time: steps and waiting for data, a mean over seeds; whole run: with start-up, compiling, "
        "evaluation and saving. FLOPs: of a step as the compiler counts them for this machine, with the passes of its "
        "loops; memory of a step: the compiler's, per device; peak of the process: measured, all included.",
    ]
    if len(content["seeds"]) < 3:
        notes.insert(1, "- Fewer than three seeds: nothing here says which method is better.")
    warm = [name for name, method in content["methods"].items() if method["schedule"] != "cosine"]
    if warm:
        notes.append(f"- The learning rate of {', '.join(warm)} does not fall to its end with the budget (its recipe).")
    return [*notes, f"- Again, or further: `{content['command']}`"]


def _value(row: Mapping[str, Any]) -> str:
    if row["mean"] is None or not row["interval"]:
        return number(row["mean"])
    half = (row["interval"][1] - row["interval"][0]) / 2
    return f"{number(row['mean'])} ± {half:.1f}" if abs(row["mean"]) >= 2 else f"{number(row['mean'])} ± {half:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _clock(seconds: Mapping[Any, float]) -> str:
    mean = _mean(seconds.values())
    return "" if mean is None else clock(mean)


def _digits(value: float | None) -> str:
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def command_line(words: Sequence[str]) -> str:
    """The command of a comparison, as it can be typed."""
    return shlex.join(["python", "-m", "medvlp_jax.compare", *words])


def write(content: Mapping[str, Any], out: Path) -> None:
    """Writes `table.json` and `table.md`, each in one step."""
    for name, text in (("table.json", json.dumps(content, indent=1) + "\n"), ("table.md", as_markdown(content))):
        whole_files.write_text(out / name, text)
