"""The train state and the one jitted step: what training runs and what a compile for an absent pod would compile."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medvlp_jax import compiler, optim, sharding
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import Method
from medvlp_jax.text_tower import TextTower


def init_state(model: Any, tx: optax.GradientTransformation, batch: dict[str, Any], seed: int) -> dict[str, Any]:
    """A fresh state: `params`, `batch_stats`, `opt_state`, `step` (int32) and `rng` (steps fold their number in).

    Args: batch: arrays or ShapeDtypeStructs of any batch size ≥ 1 with the model's inputs.
    """
    return start_state(init_variables(model, batch, seed), tx, seed)


def start_state(variables: dict[str, Any], tx: optax.GradientTransformation, seed: int) -> dict[str, Any]:
    """The state that training starts from with these `params` and `batch_stats`."""
    return {
        **variables,
        "opt_state": tx.init(variables["params"]),
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
    }


def init_variables(model: Any, batch: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fresh `params` and `batch_stats`; arguments as `init_state`."""
    key = jax.random.key(seed)
    small = {name: jnp.zeros((2, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    variables = model.init({"params": jax.random.fold_in(key, 0), "channels": key}, small, train=True)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def sharded_state(
    model: Any, tx: optax.GradientTransformation, batch: dict[str, Any], seed: int, mesh: Mesh
) -> tuple[Callable[[], dict[str, Any]], dict[str, Any]]:
    """How to make the state where it belongs, without ever holding it whole on one device.

    Returns: a function that makes it, and its ShapeDtypeStructs with shardings (the target of a restore).
    """

    def init():
        return init_state(model, tx, batch, seed)

    shapes = jax.eval_shape(init)
    places = sharding.parameter_sharding(shapes, mesh)
    target = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    # It runs once: what LLVM's optimisation costs is three times what this program takes on a CPU.
    cheap = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(init, out_shardings=places, compiler_options=cheap), target


def with_text_vectors(batch: dict[str, Any], tower: TextTower | None, frozen: Any) -> dict[str, Any]:
    """Puts `<section>_embedding` for the token ids and masks of every section, unless there is no tower to make it.

    Each section is cut to the longest text that the global batch has of it (see `TextTower.encode_groups`).
    """
    sections = [name.removesuffix("_ids") for name in batch if name.endswith("_ids")]
    if tower is None or not sections:
        return batch
    ids_SxBxL = jnp.stack([batch[f"{section}_ids"] for section in sections])
    mask_SxBxL = jnp.stack([batch[f"{section}_mask"] for section in sections])
    vectors = tower.encode_groups(frozen, ids_SxBxL, mask_SxBxL)
    added = {f"{section}_embedding": vector for section, vector in zip(sections, vectors, strict=True)}
    tokens = {f"{section}_{part}" for section in sections for part in ("ids", "mask", "segment")}
    return {**{name: x for name, x in batch.items() if name not in tokens}, **added}


def make_train_step(
    model: Any,
    method: Method,
    tx: optax.GradientTransformation,
    config: Any,
    *,
    examples: int,
    tower: TextTower | None = None,
    learning_rate: Callable[[Any], Any] | None = None,
    sweep: Sweep | None = None,
) -> Callable[[dict[str, Any], Any, dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
    """The step `(state, frozen, batch) -> (state, metrics)`, a pure function over the global batch.

    Args:
      model, method, tx, config: as built for the run.
      examples: size of the training set; decides the epoch that a step belongs to.
      tower: frozen text tower when it runs inside the step; `frozen` then holds its variables.
      learning_rate: schedule, for the log.
      sweep: how losses over all pairs are tiled, with the mesh; dense and without mesh when omitted.
    """
    sweep = sweep or Sweep()

    def train_step(state, frozen, batch):
        batch = with_text_vectors(batch, tower, frozen)
        epoch = jnp.floor(state["step"].astype(jnp.float32) * (config.batch_size / examples))
        rngs = {"channels": jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])}

        def loss_fn(params):
            params = optim.hold(params, config.optimizer.rates)
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            embeddings, batch_stats = embed(model, variables, batch, rngs, config.micro_batches, sweep.devices)
            loss, terms = method.loss(embeddings, batch, config, epoch, sweep)
            return loss, (terms, batch_stats)

        (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(state["step"])
        new_state = {
            "params": method.constrain(params) if method.constrain else params,
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "rng": state["rng"],
        }
        return new_state, metrics

    return train_step


def embed(
    model: Any, variables: dict[str, Any], batch: dict[str, Any], rngs: dict[str, Any], parts: int, devices: int
) -> tuple[Any, Any]:
    """The embeddings of a training batch and the new `batch_stats`, by `parts` micro-batches.

    Every device splits its own examples. Activations live for one micro-batch at a time: each is encoded again in the
    backward pass (GradCache, arXiv 2101.06983, as a scan over checkpointed encoders). Random keys are the same for all
    parts, so without BatchNorm embeddings and gradients are those of the whole batch. BatchNorm takes its statistics
    from each micro-batch, and its running averages move once per part.
    """

    def apply(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        embeddings, updated = model.apply(variables, batch, train=True, rngs=rngs, mutable=["batch_stats"])
        return embeddings, updated.get("batch_stats", {})

    if parts == 1:
        return apply(variables["params"], variables["batch_stats"], batch)

    def split(x):  # every device's examples stay where they are
        x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, -1, *x.shape[3:])

    def join(x):
        x = x.reshape(parts, devices, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[3:])

    def encode(batch_stats, micro_batch):
        embeddings, batch_stats = jax.checkpoint(apply)(variables["params"], batch_stats, micro_batch)
        return batch_stats, embeddings

    batch_stats, embeddings = jax.lax.scan(encode, variables["batch_stats"], jax.tree.map(split, batch))
    return jax.tree.map(join, embeddings), batch_stats


def compile_train_step(train_step: Callable, target: dict[str, Any], mesh: Mesh) -> Callable:
    """`train_step` jitted for the mesh: state donated and kept on its shardings, metrics replicated."""
    places = jax.tree.map(lambda s: s.sharding, target)
    return compiler.jit(
        train_step,
        platform=mesh.devices.flat[0].platform,
        in_shardings=(places, sharding.replicated(mesh), sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
