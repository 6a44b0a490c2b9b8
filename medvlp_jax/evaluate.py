"""Scores of a run: the configured evaluators over a split, for the trained model and for its untrained twin."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from medvlp_jax import build, sharding, text_tower
from medvlp_jax import config as configs
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.data.record_ids import record_ids, split_hash
from medvlp_jax.data.records import prepared_splits
from medvlp_jax.data.side_tables import write_json
from medvlp_jax.evaluators import Result
from medvlp_jax.evaluators.scores import as_json
from medvlp_jax.metrics import Console
from medvlp_jax.score_table import format_scores
from medvlp_jax.scorer import Scorer

LEARNING = ("linear_probe", "knn")
"""Evaluators that learn from a training split."""


def untrained_scores(scorer: Scorer, make_state: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Result]]:
    """Results of the untrained twin on the test split, computed once: they are the same for every checkpoint.

    A text tower that is trained has its first weights there, as a frozen one has.
    """
    parts = scorer.parts
    config = parts.config
    return functools.cache(
        lambda: scorer(build.load_text(parts, make_state()), config.data.test_split, config.final_evaluators)
    )


def score_run(
    scorer: Scorer, state: dict[str, Any], untrained: Callable[[], dict[str, Result]], workdir: Path, step: int
) -> dict[str, Any]:
    """Scores the test split with the trained state beside its untrained twin, and writes `scores.json`.

    The file of an earlier step stays as `scores/<step>.json`, as does that of another data set.
    Returns: what `scores.json` holds: data, split and its hash, counts, and per score its value, 95 % interval, count,
      chance, random init, raw pixels.
    Raises: ValueError when the split shares patients with the training split and the config does not allow it.
    """
    config = scorer.parts.config
    split, names = config.data.test_split, config.final_evaluators
    shared = scorer.check_patients(split)
    trained = scorer(state, split, names, baselines=True)
    source = scorer.parts.source(split)
    ids = record_ids(source)
    scores = {
        "method": config.method,
        "preset": config.preset,
        "seed": config.seed,
        "step": step,
        "data": config.data.name,
        "split": split,
        "split_hash": split_hash(ids["image_id"]),
        "examples": len(source),
        "patients": len(set(ids["patient_id"].tolist())),
        "patients_shared_with_training": shared,
        "public": bool(source[0]["public"]),
        "protocols": {name: result.protocol for name, result in trained.items() if result.protocol},
        "scores": _merged(trained, untrained()),
        "skipped": {name: dict(result.skipped) for name, result in trained.items() if result.skipped},
    }
    if jax.process_index() == 0:
        (Path(workdir) / "scores").mkdir(exist_ok=True)
        files = {f"scores/{step}": scores, "scores": scores}
        files |= {name.removesuffix(".json"): x for result in trained.values() for name, x in result.files.items()}
        for name, content in files.items():
            write_json(Path(workdir) / f"{name}{_suffix(scorer)}.json", content)
    return scores


def _suffix(scorer: Scorer) -> str:
    """Tells files about another data set than that of the run from the run's own."""
    config = scorer.parts.config
    return f"-{config.data.name.replace('/', '-')}" if config.evaluation.data else ""


def _merged(trained: dict[str, Result], random_init: dict[str, Result]) -> list[dict[str, Any]]:
    """The trained scores, each with its twin of random init and, for zero-shot AUC, the supervised raw-pixel probe."""
    twins = {score.name: as_json(score) for result in random_init.values() for score in result.scores}
    rows = [as_json(score) for result in trained.values() for score in result.scores]
    pixels = {row["name"]: row for row in rows}
    for row in rows:
        twin = twins.get(row["name"], {})
        row["random_init"], row["random_interval"] = twin.get("value"), twin.get("interval")
        if row["name"].startswith("zero_shot/auc/"):
            probe = pixels.get(row["name"].replace("zero_shot/", "linear_probe/100%/"), {})
            row["raw_pixels"], row["raw_interval"] = probe.get("raw_pixels"), probe.get("raw_interval")
    return rows


def fit_splits(config: Any) -> list[str]:
    """Makes the splits of a config fit another data set, in place; returns what there is to say about it.

    A set for evaluation alone has no training split: its test split stands in, and nothing may learn from it. Without a
    validation split, strengths are chosen on the training split.
    """
    data, notes = config.data, []
    there = prepared_splits(data.dir, data.name)
    if data.train_split.split("[")[0] not in there:
        learning = [name for name in config.final_evaluators if name in LEARNING]
        config.final_evaluators = tuple(name for name in config.final_evaluators if name not in LEARNING)
        data.train_split = data.eval_split = data.test_split
        without = f"; left out: {', '.join(learning)}" if learning else ""
        notes.append(
            f"data      {data.name} has no training split: thresholds are chosen on {data.test_split}{without}"
        )
    elif data.eval_split.split("[")[0] not in there:
        data.eval_split = data.train_split
        notes.append(f"data      {data.name} has no validation split; strengths are chosen on {data.train_split}")
    return notes


def evaluate(
    config: Any, workdir: str | Path, *, checkpoint_steps: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Scores checkpoints of a run, the newest by default; prints the tables and writes `scores.json`.

    With `config.evaluation.data` another prepared data set is scored, in `scores-<data>.json`, and its patients are
    compared with those that the run was trained on.
    Args: checkpoint_steps: which ones, in this order; `()` means all of them.
    Raises: FileNotFoundError when the folder holds no run or no such checkpoint; ValueError when the config is another
      run's, or the split shares patients with the training split.
    """
    workdir = Path(workdir)
    sharding.initialize_processes(workdir, config.join_seconds)
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} holds no run (config.json is missing). Train first, or check --workdir.")
    configs.claim_workdir(config, workdir, write=False)
    checkpoints = Checkpoints(workdir / "checkpoints")
    if checkpoint_steps is None:
        numbers = [checkpoints.choose()]
    else:
        numbers = [checkpoints.choose(step) for step in checkpoint_steps] or checkpoints.all_steps()
    notes, trained_on = [], None
    if config.evaluation.data:
        try:
            trained_on = build.open_source(config, config.data.train_split)
        except FileNotFoundError:
            notes.append("patients  not compared with those of training: its data is not here")
        with config.unlocked():
            # `auto` stands for the text tower of the run, not for one of the data set that is scored.
            config.text.weights = text_tower.resolve(config.text.weights, config.data.dir, config.data.name)
            config.data.name = config.evaluation.data
            notes += fit_splits(config)
    say = Console(workdir, write=jax.process_index() == 0)
    for line in notes:
        say(line)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    parts = build.assemble(config, mesh, say)
    shapes = build.batch_shapes(config, parts.tower.width)
    make_state, target = steps.sharded_state(parts.model, parts.tx, shapes, config.seed, mesh)
    scorer = Scorer(parts, trained_on)
    untrained = untrained_scores(scorer, make_state)
    all_scores = []
    for number in numbers:
        scores = score_run(scorer, checkpoints.restore(number, target), untrained, workdir, number)
        all_scores.append(scores)
        for line in format_scores(scores):
            say(line)
    checkpoints.close()
    say.close()
    return all_scores
