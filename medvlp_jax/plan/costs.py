"""What a training step costs on a described slice: the step that training runs, compiled from shapes alone."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from medvlp_jax import build, methods, optim, sharding, text_tower
from medvlp_jax import step as steps
from medvlp_jax.encoders.bert import BertConfig
from medvlp_jax.plan import topology
from medvlp_jax.plan.compiled import Cost, cost, count_flops, largest_arrays

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run on one slice; bytes, FLOPs and seconds are per chip unless said otherwise.

    fits: None when the program fits, else what the compiler says. memory: what holds how many bytes. model_flops: of
    all chips, counted from shapes, the forward pass three times, a frozen text tower once. bounds: seconds that
    compute, memory and network take at their peak rates. step_seconds: the largest of them. mfu: at that time.
    """

    topology: str
    chips: int
    batch_size: int
    fits: str | None
    compile_seconds: float
    memory: dict[str, int]
    memory_limit: int
    model_flops: float
    compiled: Cost | None
    bounds: dict[str, float]
    step_seconds: float | None
    images_per_second: float | None
    mfu: float | None
    total_steps: int
    hours: float | None
    chip_hours: float | None
    price: float | None
    largest_arrays: list[str]


class Lowered(NamedTuple):
    """A training step lowered for a mesh. jaxpr: of the whole step. target, frozen, batch: ShapeDtypeStructs of its
    arguments. make_state: makes the first of them, with random weights.

    tower: the frozen text tower when it runs inside the step; `frozen` are its variables. bert: the shape of a text
    tower, unless batches carry cached vectors.
    """

    step: jax.stages.Lowered
    jaxpr: Any
    make_state: Callable[[], dict[str, Any]]
    target: dict[str, Any]
    frozen: Any
    batch: dict[str, Any]
    tower: text_tower.TextTower | None
    bert: BertConfig | None


def lower_step(config: Any, mesh: Any, *, text_width: int, examples: int, say: Say = print) -> Lowered:
    """The training step of a run, lowered for a mesh from shapes alone; with the text tower unless vectors are cached.

    Where the number of examples is not known (0), the schedules have some length; the program is the same.

    Raises: ValueError for a batch that does not split over the mesh, or that no schedule of its pairs fits;
      FileNotFoundError for a text tower inside the step that is not there.
    """
    sharding.check_batch(config.batch_size, mesh, parts=config.micro_batches)
    total_steps = max(build.steps_of(config, examples), config.optimizer.warmup_steps + 1)
    method = methods.get(config.method)
    outline = None if config.text.cache else text_tower.outline(config, say)
    tower = None if config.text.trained else outline  # one that is trained is a part of the model
    model = method.build(config, outline.config if outline else None)
    tx = optim.optimizer(config.optimizer, total_steps)
    width = outline.width if outline else text_width
    make_state, target = steps.sharded_state(model, tx, build.batch_shapes(config, width), config.seed, mesh)
    batch = batch_structs(config, width, tokens=tower is not None)
    whole = sharding.replicated(mesh)
    frozen = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), tower.variables if tower else {}
    )
    step = steps.make_train_step(
        model,
        method,
        tx,
        config,
        examples=max(examples, 1),
        tower=tower,
        learning_rate=optim.schedule(config.optimizer, total_steps),
        sweep=build.pair_sweep(config, mesh)[0],
    )
    traced = steps.compile_train_step(step, target, mesh).trace(target, frozen, batch)
    bert = outline.config if outline else None
    return Lowered(traced.lower(), traced.jaxpr, make_state, target, frozen, batch, tower, bert)


def batch_structs(config: Any, text_width: int, *, tokens: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global training batch, with cached text vectors or with tokens."""
    size, struct = config.batch_size, jax.ShapeDtypeStruct
    shapes = {
        name: struct((size, *one.shape[1:]), one.dtype) for name, one in build.batch_shapes(config, text_width).items()
    }
    for section in config.text.sections:
        shapes[f"{section}_hash"] = struct((size,), "int32")
        if tokens:
            del shapes[f"{section}_embedding"]
            shapes[f"{section}_ids"] = struct((size, config.text.max_length), "int32")
            shapes[f"{section}_mask"] = struct((size, config.text.max_length), "bool")
    return shapes


def model_flops(config: Any, lowered: Lowered) -> float:
    """FLOPs of a step on all chips: the forward pass three times, a frozen text tower once.

    Counted in float32, where the trunk has no product beyond those of its definition (see `layers/product_norm.py`).
    """
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.model.dtype = "float32"
    text = jax.make_jaxpr(lambda frozen, batch: steps.with_text_vectors(batch, lowered.tower, frozen))
    return 3.0 * count_flops(loss_jaxpr(plain, lowered)) + count_flops(text(lowered.frozen, lowered.batch).jaxpr)


def loss_jaxpr(config: Any, lowered: Lowered) -> Any:
    """For counting: the loss of a global batch from text vectors, dense and in one piece."""
    method = methods.get(config.method)
    model = method.build(config, lowered.bert)
    vectors = batch_structs(config, lowered.tower.width) if lowered.tower else lowered.batch
    variables = jax.eval_shape(lambda: steps.init_variables(model, vectors, config.seed))

    def loss(variables, batch):
        rngs = {"channels": jax.random.key(0)}
        embeddings, _ = model.apply(variables, batch, train=True, rngs=rngs, mutable=["batch_stats"])
        return method.loss(embeddings, batch, config, 0)[0]

    return jax.make_jaxpr(loss)(variables, vectors).jaxpr


def make_plan(
    config: Any,
    slice_: topology.Topology,
    *,
    examples: int,
    text_width: int,
    price: float | None = None,
    say: Say = print,
) -> Plan:
    """Compiles the step for a slice and works out what the run takes there."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, slice_.devices)
    total_steps = build.steps_of(config, examples)
    chips, chip = len(slice_.devices), slice_.chip
    start = time.perf_counter()
    lowered = lower_step(config, mesh, text_width=text_width, examples=examples, say=say)
    state = lowered.target
    memory = {
        "parameters": _bytes_per_chip(state["params"]) + _bytes_per_chip(state["batch_stats"]),
        "optimizer": _bytes_per_chip(state["opt_state"]),
        "batch": sum(math.prod(s.shape) * s.dtype.itemsize for s in lowered.batch.values()) // chips,
    }
    if lowered.tower:
        memory["text tower"] = _bytes_per_chip(lowered.frozen)
    program, refused = topology.compile_for_chip(lowered.step, slice_)
    compiled = cost(program) if program else None
    flops = model_flops(config, lowered)
    bounds = {}
    if compiled:
        memory |= {"activations and temporaries": compiled.temporaries, "total": compiled.total}
        bounds = {
            "compute": flops / chips / chip.flops,
            "memory": compiled.memory_traffic / chip.memory_bandwidth,
            "network": network_seconds(compiled, chips, chip.network),
        }
    seconds = max(bounds.values()) if bounds else None
    hours = seconds * total_steps / 3600 if seconds and total_steps else None
    return Plan(
        topology=slice_.name,
        chips=chips,
        batch_size=config.batch_size,
        fits=refused,
        compile_seconds=time.perf_counter() - start,
        memory=memory,
        memory_limit=int(chip.memory),
        model_flops=flops,
        compiled=compiled,
        bounds=bounds,
        step_seconds=seconds,
        images_per_second=config.batch_size / seconds if seconds else None,
        mfu=flops / (seconds * chips * chip.flops) if seconds else None,
        total_steps=total_steps,
        hours=hours,
        chip_hours=hours * chips if hours else None,
        price=hours * chips * price if hours and price is not None else None,
        largest_arrays=largest_arrays(loss_jaxpr(config, lowered), chips) if refused else [],
    )


def network_seconds(compiled: Cost, chips: int, bandwidth: float) -> float:
    """Seconds that the collectives take at full bandwidth: rings, so that a reduction moves its array twice."""
    moved = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0, "collective-permute": 1.0}
    share = (chips - 1) / chips
    return sum(moved[kind] * share * size for kind, (_, size) in compiled.collectives.items()) / bandwidth


def _bytes_per_chip(tree: Any) -> int:
    return sum(math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(tree))
