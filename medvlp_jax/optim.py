"""Learning-rate schedules and the optimizer."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

SCHEDULES = ("cosine", "warm_restarts", "waves", "constant")
DECAY_MASKS = ("matrices", "all")
OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
MUON_RMS = 0.2  # of a kernel's update per rate: what AdamW's has, so that rates and decay carry over


def schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Step -> learning rate, for `config.optimizer`.

    cosine: linear warm-up over `warmup_steps`, then one cosine to `final_learning_rate` at `total_steps`.
    warm_restarts: cosine cycles of `restart_steps`, each `restart_factor` (1 or 2) times as long as the one before,
      whatever the step count (torch `CosineAnnealingWarmRestarts`).
    waves: a cosine that goes down and up again `periods` times in `total_steps` (torch `CosineAnnealingLR` past its
      `T_max`, which is half a period).
    constant: after the warm-up.

    Raises: ValueError for an unknown name, warm-up longer than the run, warm restarts without `restart_steps`, waves
      without `periods`, or either with a warm-up.
    """
    peak, final = config.learning_rate, config.final_learning_rate
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={config.schedule!r} is unknown. Choose one of {', '.join(SCHEDULES)}.")
    if config.warmup_steps >= total_steps and config.warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps={config.warmup_steps} is not shorter than total_steps={total_steps}. "
            f"Set --config.optimizer.warmup_steps={total_steps // 10}."
        )
    if config.schedule in ("warm_restarts", "waves") and config.warmup_steps:
        raise ValueError(
            f"optimizer.warmup_steps={config.warmup_steps} has no place in {config.schedule}. Set it to 0, or choose "
            "optimizer.schedule='cosine'."
        )
    if config.schedule == "waves":
        if config.periods <= 0:
            raise ValueError(f"optimizer.periods={config.periods}: waves need how often the rate goes down and up.")
        half = total_steps / (2 * config.periods)
        return lambda step: final + (peak - final) * 0.5 * (1.0 + jnp.cos(math.pi * step / half))
    if config.schedule == "warm_restarts":
        return _warm_restarts(peak, final, config.restart_steps, config.restart_factor)
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, total_steps - config.warmup_steps, alpha=final / peak if peak else 0.0)
    else:
        rest = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, rest], [config.warmup_steps])


def _warm_restarts(peak: float, final: float, first: int, factor: int) -> optax.Schedule:
    if factor not in (1, 2):
        raise ValueError(f"optimizer.restart_factor={factor} must be 1 (equal cycles) or 2 (each twice as long).")
    if first < 1:
        raise ValueError(
            f"optimizer.restart_steps={first}: warm_restarts needs the length of the first cycle in steps."
        )

    # Cycle c starts at first * (2**c - 1) and lasts first * 2**c. Integers: a logarithm restarts steps too early.
    starts = [start for c in range(31) if (start := first * (2**c - 1)) < 2**31]

    def rate(step):
        if factor == 1:
            part = (jnp.asarray(step, jnp.int32) % first).astype(jnp.float32) / first
            return final + (peak - final) * 0.5 * (1.0 + jnp.cos(math.pi * part))
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


def kernel_axes(params: Any) -> Any:
    """Which axes of a kernel are its inputs and which its outputs, as Muon takes them; None for what is no kernel.

    Convolutions sum over their windows and channels; the projections of attention have one output axis per head.
    """

    def axes(path, leaf):
        names = [getattr(key, "key", "") for key in path]
        if leaf.ndim < 2 or names[-1] != "kernel":
            return None
        inputs = 1 if {"query", "key", "value"}.intersection(names[-2:-1]) else leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def rate_factors(params: Any, rates: Sequence[str]) -> Any:
    """What the learning rate of every parameter is multiplied by; 0: it is held as it is.

    Args: rates: "REGEX=FACTOR" over whole parameter paths, `text_tower/layer_0/.*=0.1`; the first match counts, 1.0
      without any.
    Raises: ValueError for an entry that is none, or that matches no parameter.
    """
    rules = []
    for entry in rates:
        pattern, _, factor = entry.rpartition("=")
        try:
            rules.append((re.compile(pattern), float(factor)))
        except (ValueError, re.error):
            pattern = ""
        if not pattern or rules[-1][1] < 0:
            raise ValueError(f"optimizer.rates holds {entry!r}: write REGEX=FACTOR, such as 'trunk/.*=0', factor >= 0.")
    used: set[int] = set()

    def factor(path, _):
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        matching = [i for i, (pattern, _) in enumerate(rules) if pattern.fullmatch(name)]
        used.update(matching)
        return rules[matching[0]][1] if matching else 1.0

    factors = jax.tree_util.tree_map_with_path(factor, params)
    unused = [entry for i, entry in enumerate(rates) if i not in used]
    if unused:
        raise ValueError(
            f"optimizer.rates holds {unused[0]!r}, which matches no parameter. Parameters lie under "
            f"{', '.join(sorted(params))}; patterns match whole paths, such as 'trunk/stage1_block1/.*=0'. Use "
            "--config.optimizer.rates='()' for one rate."
        )
    return factors


def count_learning(params: Any, rates: Sequence[str]) -> int:
    """Number of parameters that are not held."""
    factors = jax.tree.leaves(rate_factors(params, rates))
    return sum(x.size for x, factor in zip(jax.tree.leaves(params), factors, strict=True) if factor)


def hold(params: Any, rates: Sequence[str]) -> Any:
    """The parameters, those that are held without gradient, so that nothing is computed for it."""
    if not rates:
        return params
    factors = rate_factors(params, rates)
    return jax.tree.map(lambda x, factor: x if factor else jax.lax.stop_gradient(x), params, factors)


def optimizer(config: Any, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, with optional clipping by global norm (`clip_norm=0` is off).

    `adamw`: decay apart from the gradient. `adam`: decay added to the gradient, as torch's Adam does. `sgd`: momentum
    `betas[0]`, decay added to the gradient, as torch's SGD does. `muon`: kernels move along their momentum made
    orthogonal, scaled to the size of AdamW's updates (arXiv 2502.16982, section 2.2), everything else by AdamW with
    Nesterov's momentum; decay apart from the gradient. `rates` slow parameters down or hold them; what is held has no
    moments and does not decay.

    Raises: ValueError as `schedule` and `rate_factors`, for an unknown name, or for a negative `clip_norm`.
    """
    if config.clip_norm < 0:
        raise ValueError(f"optimizer.clip_norm={config.clip_norm} is negative. Use a positive norm, or 0 for none.")
    if config.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name={config.name!r} is unknown. Choose one of {', '.join(OPTIMIZERS)}.")
    rate, betas = schedule(config, total_steps), {"b1": config.betas[0], "b2": config.betas[1]}
    mask = lambda params: decay_mask(params, config.decay_mask)  # noqa: E731
    if config.name == "adamw":
        rule = optax.adamw(rate, **betas, weight_decay=config.weight_decay, mask=mask)
    elif config.name == "muon":
        rule = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=mask,
            adam_b1=config.betas[0],
            adam_b2=config.betas[1],
            adam_weight_decay=config.weight_decay if config.decay_mask == "all" else 0.0,
            muon_weight_dimension_numbers=kernel_axes,
            consistent_rms=MUON_RMS,
        )
    else:
        core = optax.adam(rate, **betas) if config.name == "adam" else optax.sgd(rate, momentum=config.betas[0])
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay, mask), core)
    if config.rates:
        factors = sorted({float(entry.rpartition("=")[2] or 1) for entry in config.rates} | {1.0})
        rules = {str(f): optax.chain(rule, optax.scale(f)) if f else optax.set_to_zero() for f in factors}
        rule = optax.multi_transform(rules, lambda params: jax.tree.map(str, rate_factors(params, config.rates)))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm > 0 else rule
