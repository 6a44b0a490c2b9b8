"""From a config to the parts of a run: records, text vectors, preprocessing, model, optimizer."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from medvlp_jax import methods, optim, pretrain_text, sharding, text_tower
from medvlp_jax.data import preprocess
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.text_cache import TextCache, section_texts
from medvlp_jax.encoders.vit import ViT
from medvlp_jax.interop import load_resnet, load_vit
from medvlp_jax.losses import schedules
from medvlp_jax.methods import towers

DRAWS = ("whole", "swapped", "sentence")  # what a training step reads of a text


class Parts(NamedTuple):
    """What training and evaluation share.

    tower: the text tower. frozen: its variables on the devices, when it is frozen and runs inside the step.
    augment, evaluate: `(record, rng) -> example` for training and for evaluation views.
    sweep: how losses over all pairs are tiled.
    source(split): the records of a split of the run's data set, opened once.
    """

    config: Any
    mesh: Mesh
    method: methods.Method
    model: Any
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    train: RecordSource
    tower: text_tower.TextTower
    frozen: Any
    augment: preprocess.Preprocess
    evaluate: preprocess.Preprocess
    sweep: schedules.Sweep
    source: Callable[[str], RecordSource]

    @property
    def step_tower(self) -> text_tower.TextTower | None:
        """The frozen text tower when it runs inside the step; None when batches carry cached vectors or it is trained,
        as a part of the model."""
        return self.tower if _frozen_in_step(self.config) else None


def assemble(config: Any, mesh: Mesh, say=print) -> Parts:
    """Builds everything that the config names; the slow part is encoding texts that are not cached yet.

    Raises: ValueError or FileNotFoundError naming the field, its value and what helps.
    """
    sharding.check_batch(config.batch_size, mesh, parts=config.micro_batches)
    if config.text.trained and config.text.cache:
        raise ValueError(
            "text.trained=True with text.cache=True: vectors of a tower that is trained change with every step. Use "
            "--config.text.cache=False, or --config.text.trained=False for a frozen tower."
        )
    if not config.text.trained and (config.text.units or config.text.split != "simple"):
        raise ValueError(
            f"text.units={config.text.units!r}, text.split={config.text.split!r} with text.trained=False: a frozen "
            "tower gives one vector per text, split by the rule 'simple'. Use --config.text.trained=True "
            "--config.text.cache=False, or --config.text.units='' --config.text.split=simple."
        )
    if config.text.cache and config.text.draw == "swapped":
        raise ValueError(
            "text.draw='swapped' with text.cache=True: a cache holds texts as they were written. Use "
            "--config.text.draw=whole, or --config.text.cache=False."
        )
    method = methods.get(config.method)
    sweep, why = pair_sweep(config, mesh)
    say(f"pairs     {why}")
    train = open_source(config, config.data.train_split)
    say(f"data      {config.data.name}: {len(train)} training records in {train.folder}")
    tower = _text_tower(config, say)
    use, sections = text_tower.use(config), ", ".join(config.text.sections)
    say(f"text      {config.text.weights}: {tower.width} wide, {use}; images meet {sections}")
    cache = _text_cache(config, tower, train, say) if config.text.cache else None
    total_steps = max(steps_of(config, len(train)), 1)
    schedule = optim.schedule(config.optimizer, total_steps)
    return Parts(
        config=config,
        mesh=mesh,
        method=method,
        model=method.build(config, tower.config),
        tx=optim.optimizer(config.optimizer, total_steps),
        schedule=schedule,
        total_steps=total_steps,
        train=train,
        tower=tower,
        frozen=jax.device_put(tower.variables, sharding.replicated(mesh)) if _frozen_in_step(config) else {},
        augment=_preprocess(config, config.image.augment, tower, cache, draw=config.text.draw),
        evaluate=_preprocess(config, config.image.evaluate, tower, cache),
        sweep=sweep,
        source=functools.cache(lambda split: train if split == train.split else open_source(config, split)),
    )


def steps_of(config: Any, examples: int) -> int:
    """Steps of a run: `total_steps`, or as many as `epochs` take; 0 when that is not known."""
    return config.total_steps or config.epochs * examples // config.batch_size


def pair_sweep(config: Any, mesh: Mesh) -> tuple[schedules.Sweep, str]:
    """The schedule of pairwise losses that `config.pairs` asks for, and why it is that one, in words.

    Raises: ValueError for an unknown schedule, or `auto` when none fits the budget.
    """
    pairs, batch = config.pairs, config.batch_size
    schedule, why = pairs.schedule, f"{pairs.schedule}, as configured"
    if schedule == "auto":
        budget = pairs.budget_mib * 2**20
        choice = schedules.choose(
            batch,
            batch,
            config.model.features or 768,
            devices=mesh.devices.size,
            chunk=pairs.chunk,
            budget_bytes=budget,
        )
        schedule, why = choice.schedule, choice.reason
    return schedules.Sweep(schedule, pairs.chunk, mesh), why


def open_source(config: Any, split: str) -> RecordSource:
    """A split of the configured data set. Raises: FileNotFoundError with the two commands that help."""
    try:
        return RecordSource(config.data.dir, config.data.name, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}\nOr try the embedded data first: python -m medvlp_jax.prepare cxr_phantom && "
            f"python -m medvlp_jax.main --config configs/{config.method}.py:demo --workdir runs/demo"
        ) from error


def batch_shapes(config: Any, text_width: int) -> dict[str, Any]:
    """Shapes and dtypes of what a model takes from a batch, for one example: enough to make its parameters."""
    size, struct = config.image.size, jax.ShapeDtypeStruct
    shapes = {"image": struct((1, config.image.views, size, size, 1), "uint8")}
    for section in config.text.sections:
        if config.text.trained:
            shapes[f"{section}_ids"] = struct((1, config.text.max_length), "int32")
            shapes[f"{section}_mask"] = struct((1, config.text.max_length), "bool")
            if config.text.units:
                shapes[f"{section}_segment"] = struct((1, config.text.max_length), "int32")
        else:
            shapes[f"{section}_embedding"] = struct((1, text_width), "float32")
        shapes[f"has_{section}"] = struct((1,), "bool")
    return shapes


def load_pretrained(parts: Parts, state: dict[str, Any]) -> dict[str, Any]:
    """The state with pretrained weights of the trunk, when `model.trunk.weights` names them, and of a text tower that
    is trained.

    Raises: ValueError listing missing, unexpected or misshapen tensors.
    """
    state, weights = load_text(parts, state), parts.config.model.trunk.weights
    if not weights:
        return state
    trunk = towers.trunk(parts.config.model, parts.config.image)
    if isinstance(trunk, ViT):
        loaded = load_vit(weights, trunk)
    else:
        fields = {name: value for name, value in parts.config.model.trunk.items() if name != "weights"}
        loaded = dict(zip(("params", "batch_stats"), load_resnet(weights, **fields), strict=True))
    placed = {name: {**state[name], "trunk": _placed(new, state[name]["trunk"])} for name, new in loaded.items()}
    return {**state, **placed}


def load_text(parts: Parts, state: dict[str, Any]) -> dict[str, Any]:
    """The state with the weights of `text.weights` in a text tower that is trained; as it is with a frozen one."""
    if not parts.config.text.trained:
        return state
    params = _placed(parts.tower.variables["params"], state["params"]["text_tower"])
    return {**state, "params": {**state["params"], "text_tower": params}}


def _placed(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jax.device_put(n.astype(o.dtype), o.sharding), new, old)


def _frozen_in_step(config: Any) -> bool:
    return not (config.text.trained or config.text.cache)


def _preprocess(
    config: Any, images: str, tower: text_tower.TextTower, cache: TextCache | None, *, draw: str = "whole"
) -> preprocess.Preprocess:
    if draw not in DRAWS:
        raise ValueError(f"text.draw={draw!r} is unknown. Choose one of {', '.join(DRAWS)}.")
    images = images.format(size=config.image.size, views=config.image.views)
    sections, parts = tuple(config.text.sections), tuple(config.text.report) if _has_report(config) else ()
    names = ", ".join(map(repr, sections))
    ops = [images, f"sections({config.text.missing!r}, report={parts})"]
    rule, units = config.text.split, config.text.units
    if draw == "sentence":
        ops.append(f"sentence({names}, rule={rule!r})")
    elif rule != "simple":
        ops.append(f"sentences({names}, rule={rule!r})")
    if draw == "swapped":
        ops.append(f"swap_sentences({names})")
    tokens = f"tokenize({config.text.max_length}, {names}, units={units!r}, max_sentences={config.text.max_sentences})"
    ops.append(f"cached_text({names})" if cache is not None else tokens)
    return preprocess.build("|".join(ops), tokenizer=tower.tokenizer, text_cache=cache)


def _has_report(config: Any) -> bool:
    return "report" in config.text.sections


def _text_tower(config: Any, say) -> text_tower.TextTower:
    missing = text_tower.to_pretrain(config.text.weights, config.data.dir, config.data.name)
    if missing and jax.process_index() == 0:
        say(f"text      first stage: a small BERT from the reports of {missing}, once (three minutes on two cores)")
        pretrain_text.make(config.data.dir, missing, say=lambda line: say(f"text      {line}"))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("text tower")
    return text_tower.of_config(config)


def _text_cache(config: Any, tower: text_tower.TextTower, train: RecordSource, say) -> TextCache:
    # Records of a prepared version never change, so a cache of the right key beside them holds its splits for good.
    folder = text_cache_folder(config, tower, train)
    done, splits = folder / "complete", set(_splits(config))
    held = set(done.read_text().split("\n")) if done.exists() else set()
    if not splits <= held and jax.process_index() == 0:
        say("text      encoding every distinct section once; later runs read the cache")
        start = time.monotonic()
        cache = TextCache.build(
            _texts(config, train),
            text_tower.encode_function(tower),
            dim=tower.width,
            key=tower.key,
            directory=folder,
            batch_size=text_tower.texts_at_a_time(),
            progress=_ticker(say),
        )
        done.write_text("\n".join(sorted((held | splits) - {""})))
        say(f"text      {len(cache)} distinct texts encoded in {time.monotonic() - start:.0f} s")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("text cache")
    return TextCache.open(folder, tower.key)


def text_cache_folder(config: Any, tower: text_tower.TextTower, source: RecordSource) -> Path:
    """Where the frozen vectors of a data set's texts are kept, beside its records."""
    text = config.text
    units = "" if tuple(text.sections) == preprocess.SECTIONS else f"-{'-'.join((*text.sections, text.draw))}"
    units += f"-of-{'-'.join(text.report)}" if _has_report(config) else ""
    return Path(source.folder) / "text_cache" / f"{text.missing}{units}-{tower.key}"


def _splits(config: Any) -> tuple[str, str, str]:
    return config.data.train_split, config.data.eval_split, config.data.test_split


def _texts(config: Any, train: RecordSource) -> Iterator[str]:
    """Every text of every split, as the pipeline will look it up."""
    rule = {"report": tuple(config.text.report) if _has_report(config) else ()}
    rule["sentences"] = config.text.draw == "sentence"
    for split in _splits(config):
        source = train if split == train.split else open_source(config, split)
        yield from section_texts(source, config.text.missing, tuple(config.text.sections), **rule)


def _ticker(say) -> Callable[[int, int], None]:
    """Says every tenth of the way."""
    said = 0

    def tick(done: int, total: int) -> None:
        nonlocal said
        if done * 10 // max(total, 1) > said and done < total:
            said = done * 10 // total
            say(f"text      {done}/{total}")

    return tick
