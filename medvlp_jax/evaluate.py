"""Scores of a run: the configured evaluators over a split, for the trained model and for its untrained twin."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import build, evaluators, sharding
from medvlp_jax import config as configs
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.data import pipeline
from medvlp_jax.evaluators.context import Context, Embedded
from medvlp_jax.metrics import Console

NOT_FIELDS = ("image", "_mask", "findings_ids", "findings_mask", "impression_ids", "impression_mask")


class Scorer:
    """Compiles the embedding and loss functions of a run once and scores any state with them.

    Args: parts: of the run.
    """

    def __init__(self, parts: build.Parts):
        self.parts = parts
        model, method, config, tower = parts.model, parts.method, parts.config, parts.step_tower

        def embed(variables, frozen, batch):
            batch = steps.with_text_vectors(batch, tower, frozen)
            image = model.apply(variables, batch["image"], method="embed_image")
            text = model.apply(variables, batch, method="embed_text")
            fields = {k: v for k, v in batch.items() if k not in NOT_FIELDS and not k.endswith("_embedding")}
            return image.replace(levels={}), text, fields, batch["_mask"]

        def terms(variables, frozen, batch, epoch):
            batch = steps.with_text_vectors(batch, tower, frozen)
            loss, terms = method.loss(model.apply(variables, batch, train=False), batch, config, epoch)
            return {"loss": loss, **terms}, jnp.sum(batch["_mask"])

        everywhere = sharding.replicated(parts.mesh)
        self._embed = jax.jit(embed, out_shardings=everywhere)
        self._terms = jax.jit(terms, out_shardings=everywhere)

    def __call__(self, state: dict[str, Any], split: str) -> dict[str, float]:
        """All scores of `state` on `split`, by name."""
        context = Context(
            embedded=lambda: self._embedded(_variables(state), split), terms=lambda: self._loss_terms(state, split)
        )
        scores: dict[str, float] = {}
        for name in self.parts.config.evaluators:
            scores |= evaluators.get(name)(context)
        return scores

    def _embedded(self, variables: Any, split: str) -> Iterator[Embedded]:
        for batch in self._batches(split, self.parts.evaluate):
            image, text, fields, mask_B = jax.device_get(self._embed(variables, self.parts.frozen, batch))
            real = jax.tree.map(lambda x, m=mask_B: x[m], (image, text, fields))
            yield Embedded(*real)

    def _loss_terms(self, state: Any, split: str) -> Iterator[tuple[dict[str, float], int]]:
        config = self.parts.config
        epoch = jnp.floor(state["step"].astype(jnp.float32) * (config.batch_size / len(self.parts.train)))
        for batch in self._batches(split, self.parts.augment):
            terms, count = jax.device_get(self._terms(_variables(state), self.parts.frozen, batch, epoch))
            yield {name: float(value) for name, value in terms.items()}, int(count)

    def _batches(self, split: str, preprocess: Callable) -> Iterator[dict[str, Any]]:
        parts = self.parts
        batches = pipeline.eval_batches(
            parts.source(split),
            preprocess,
            batch_size=parts.config.eval_batch_size or parts.config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=parts.config.data.threads,
        )
        with pipeline.device_prefetch(batches, sharding.batch_sharding(parts.mesh)) as device_batches:
            yield from device_batches


def _variables(state: dict[str, Any]) -> dict[str, Any]:
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def score_run(
    scorer: Scorer, state: dict[str, Any], untrained: Callable[[], dict[str, Any]], workdir: Path, step: int
) -> dict[str, Any]:
    """Scores the test split with the trained state and with a fresh one, and writes `scores.json`.

    Returns: {"split", "step", "examples", "trained": {...}, "random_init": {...}}.
    """
    config = scorer.parts.config
    split = config.data.test_split
    scores = {
        "data": config.data.name,
        "split": split,
        "step": step,
        "examples": len(scorer.parts.source(split)),
        "trained": scorer(state, split),
        "random_init": scorer(untrained(), split),
    }
    if jax.process_index() == 0:
        path = Path(workdir) / "scores.json"
        path.with_suffix(".tmp").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
    return scores


def brief(scores: dict[str, float]) -> str:
    """One line for the log while training: the loss, and R@10 from image to text beside chance."""
    parts = [f"loss {scores['loss']:.4g}"] if "loss" in scores else []
    for pool in (name.removesuffix("/texts") for name in scores if name.endswith("/texts")):
        hit, chance = (scores[f"{pool}/image_to_text_{which}R@10"] for which in ("", "chance_"))
        parts.append(f"{pool.removeprefix('retrieval/')} R@10 {hit:.1f} % (chance {chance:.1f})")
    return "  ".join(parts)


def format_scores(scores: dict[str, Any]) -> list[str]:
    """The scores as a table for people: retrieval beside random init and chance, then the loss."""
    trained, random_init = scores["trained"], scores["random_init"]
    lines = ["", f"Scores on {scores['examples']} records of {scores['data']}/{scores['split']}, step {scores['step']}"]
    pools = [name.removesuffix("/texts") for name in trained if name.endswith("/texts")]
    if pools:
        lines.append(f"{'retrieval, percent':38s}{'trained':^23s}{'random init':^15s}{'chance':^15s}median rank")
        lines.append(f"{'':38s}{'R@1':>7s}{'R@5':>7s}{'R@10':>7s}{'R@10':>12s}{'R@10':>14s}{'':6s}trained / random")
    for pool in pools:
        section = pool.removeprefix("retrieval/")
        images, texts = int(trained[f"{pool}/images"]), int(trained[f"{pool}/texts"])
        for direction in ("image_to_text", "text_to_image"):
            name = f"{pool}/{direction}"
            arrow = f"image -> {section}" if direction == "image_to_text" else f"{section} -> image"
            recalls = "".join(f"{trained[f'{name}_R@{k}']:7.1f}" for k in (1, 5, 10))
            lines.append(
                f"{arrow:22s}{f'({images} x {texts})':16s}{recalls}{random_init[f'{name}_R@10']:12.1f}"
                f"{trained[f'{name}_chance_R@10']:14.1f}{'':6s}"
                f"{trained[f'{name}_median_rank']:g} / {random_init[f'{name}_median_rank']:g}"
            )
    for name in (name for name in trained if name.partition("/")[0] == "loss"):
        lines.append(f"{name:38s}{trained[name]:21.4g}{random_init.get(name, np.nan):12.4g}")
    lines.append("(images x distinct texts; random init is the same model before training; all scores: scores.json)")
    return lines


def evaluate(config: Any, workdir: str | Path, *, checkpoint_step: int | None = None) -> dict[str, Any]:
    """Scores a checkpoint of a run, the newest by default; prints the table and writes `scores.json`.

    Raises: FileNotFoundError when the folder holds no checkpoint; ValueError when the config is another run's.
    """
    sharding.initialize_processes()
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} holds no run (config.json is missing). Train first, or check --workdir.")
    configs.claim_workdir(config, workdir, write=False)
    checkpoints = Checkpoints(workdir / "checkpoints")
    number = checkpoint_step or checkpoints.latest_step()
    if number is None or number not in checkpoints.all_steps():
        known = ", ".join(map(str, checkpoints.all_steps())) or "none"
        raise FileNotFoundError(f"{workdir} holds no checkpoint of step {number}. Known steps: {known}.")
    say = Console(workdir, write=jax.process_index() == 0)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    parts = build.assemble(config, mesh, say)
    make_state, target = steps.sharded_state(
        parts.model, parts.tx, build.batch_shapes(config, parts.tower.width), config.seed, mesh
    )
    state = checkpoints.restore(number, target)
    scores = score_run(Scorer(parts), state, make_state, workdir, number)
    for line in format_scores(scores):
        say(line)
    checkpoints.close()
    say.close()
    return scores
