"""Learning-rate schedules and the optimizer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "warm_restarts", "constant")
DECAY_MASKS = ("matrices", "all")


def schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Step -> learning rate, for `config.optimizer`.

    cosine: linear warm-up over `warmup_steps`, then one cosine to `final_learning_rate` at `total_steps`.
    warm_restarts: cosine cycles of `restart_steps`, each twice as long as the one before, whatever the step count
      (torch `CosineAnnealingWarmRestarts(T_mult=2)`).
    constant: after the warm-up.

    Raises: ValueError for an unknown name, warm-up longer than the run, or warm restarts without `restart_steps` or
      with a warm-up.
    """
    peak, final = config.learning_rate, config.final_learning_rate
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown. Choose one of {', '.join(SCHEDULES)}.")
    if config.warmup_steps >= total_steps and config.warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps={config.warmup_steps} is not shorter than total_steps={total_steps}. "
            f"Set --config.optimizer.warmup_steps={total_steps // 10}."
        )
    if config.schedule == "warm_restarts":
        if config.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps={config.warmup_steps} has no place in warm_restarts. Set it to 0, or choose "
                "optimizer.schedule='cosine'."
            )
        return _warm_restarts(peak, final, config.restart_steps)
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, total_steps - config.warmup_steps, alpha=final / peak if peak else 0.0)
    else:
        rest = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, rest], [config.warmup_steps])


def _warm_restarts(peak: float, final: float, first: int) -> optax.Schedule:
    if first < 1:
        raise ValueError(
            f"optimizer.restart_steps={first}: warm_restarts needs the length of the first cycle in steps."
        )

    # Cycle c starts at first * (2**c - 1) and lasts first * 2**c. Integers: a logarithm restarts steps too early.
    starts = [start for c in range(31) if (start := first * (2**c - 1)) < 2**31]

    def rate(step):
        starts_C = jnp.asarray(starts, jnp.int32)
        step = jnp.asarray(step, jnp.int32)
        cycle = jnp.searchsorted(starts_C, step, side="right") - 1
        part = (step - starts_C[cycle]).astype(jnp.float32) / (first * 2.0**cycle)
        return final + (peak - final) * 0.5 * (1.0 + jnp.cos(math.pi * part))

    return rate


def decay_mask(params: Any, rule: str) -> Any:
    """True where weight decay applies: everything, or matrices and convolutions only (no norms, biases, positions).

    Raises: ValueError for an unknown rule.
    """
    if rule not in DECAY_MASKS:
        raise ValueError(f"optimizer.decay_mask={rule!r} is unknown. Choose one of {', '.join(DECAY_MASKS)}.")
    if rule == "all":
        return jax.tree.map(lambda _: True, params)

    def decayed(path, leaf):
        return leaf.ndim >= 2 and getattr(path[-1], "key", "") == "kernel"

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimizer(config: Any, total_steps: int) -> optax.GradientTransformation:
    """AdamW with optional clipping by global norm (`clip_norm=0` is off), for `config.optimizer`.

    Raises: ValueError as `schedule`, or for a negative `clip_norm`.
    """
    if config.clip_norm < 0:
        raise ValueError(f"optimizer.clip_norm={config.clip_norm} is negative. Use a positive norm, or 0 for none.")
    adamw = optax.adamw(
        schedule(config, total_steps),
        b1=config.betas[0],
        b2=config.betas[1],
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, config.decay_mask),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm > 0 else adamw
