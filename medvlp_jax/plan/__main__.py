"""What a run would need and cost on a TPU slice that is not there.

    python -m medvlp_jax.plan --config configs/imitate.py --topology v5e:4x4 [--topology v5p:2x2x4] [--examples 217000]

XLA compiles the step that training would run, from the same builder, for the described slice. Needs the extra `tpu`, no
TPU. Memory and collectives are the compiler's; times are rooflines (what the chip's peak rates allow) beside the
compiler's own estimate, never measurements. `--largest` looks for the largest batch that fits; `--json` prints one JSON
line per slice; `--price v5e=1.2` sets what a chip-hour costs.
"""

import dataclasses
import json
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from medvlp_jax.plan import topology

topology.prepare_environment()

from medvlp_jax import build  # noqa: E402
from medvlp_jax.plan import costs, search  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments: configs/imitate.py")
_TOPOLOGY = flags.DEFINE_multi_string("topology", None, "Slice, such as v5e:4x4 or v5e:16x16*2; may be repeated.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples; 0: those of the prepared data set, if there.")
_TEXT_WIDTH = flags.DEFINE_integer("text_width", 768, "Width of cached text vectors.")
_PRICE = flags.DEFINE_multi_string("price", [], "Price of a chip-hour, such as v5e=1.2; may be repeated.")
_LARGEST = flags.DEFINE_boolean("largest", False, "Also find the largest batch per chip that fits.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON line per slice instead of text.")


def as_text(plan: costs.Plan) -> list[str]:
    """A plan as lines for people."""
    gib = lambda n: f"{n / 2**30:.2f} GiB"  # noqa: E731
    lines = [
        f"{plan.topology}: {plan.chips} chips, batch {plan.batch_size} = {plan.batch_size // plan.chips} per chip "
        f"(compiled in {plan.compile_seconds:.0f} s)"
    ]
    lines.append("  memory    " + ", ".join(f"{name} {gib(size)}" for name, size in plan.memory.items()))
    if plan.fits:
        lines.append(f"  does NOT fit the {gib(plan.memory_limit)} of a chip: {plan.fits}")
        lines += [f"            {line}" for line in plan.largest_arrays]
        return lines
    c = plan.compiled
    share = 100 * plan.memory["total"] / plan.memory_limit
    lines.append(f"  fits      {share:.0f} % of the {gib(plan.memory_limit)} of a chip")
    lines.append(
        f"  FLOPs     {plan.model_flops / plan.chips:.3g} per chip and step counted from shapes, {c.flops:.3g} by the "
        "compiler"
    )
    lines.append(
        f"  traffic   {c.memory_traffic / 2**30:.1f} GiB of memory, "
        f"{c.memory_traffic * plan.chips / plan.batch_size / 2**20:.0f} MiB per image"
    )
    lines.append(
        "  network   "
        + (", ".join(f"{n} {kind} of {size / 2**20:.1f} MiB" for kind, (n, size) in c.collectives.items()) or "nothing")
    )
    bounds = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in plan.bounds.items())
    estimate = f"{1e3 * c.seconds:.1f} ms" if c.seconds else "none"
    lines.append(f"  ms/step   at peak rates: {bounds}; the compiler's estimate: {estimate}")
    lines.append(f"  speed     {plan.images_per_second:.0f} images/s at most, {100 * plan.mfu:.0f} % MFU")
    if plan.hours:
        money = f", {plan.price:.2f} in money" if plan.price is not None else ""
        slower = (
            f" ({plan.hours * c.seconds / plan.step_seconds:.2f} h by the compiler's estimate)" if c.seconds else ""
        )
        lines.append(
            f"  run       {plan.total_steps} steps: {plan.hours:.2f} h{slower}, {plan.chip_hours:.1f} chip-hours{money}"
        )
    else:
        lines.append("  run       give --examples (or config.total_steps) for hours")
    return lines


def _prices(texts: list[str]) -> dict[str, float]:
    prices = {}
    for text in texts:
        kind, _, value = text.partition("=")
        try:
            prices[kind] = float(value)
        except ValueError:
            raise ValueError(f"--price={text!r} must be KIND=NUMBER, such as v5e=1.2.") from None
        if kind not in topology.CHIPS:
            raise ValueError(f"--price={text!r}: unknown chip {kind!r}. Choose one of {', '.join(topology.CHIPS)}.")
    return prices


def _examples(config: Any, given: int) -> int:
    if given:
        return given
    try:
        return len(build.open_source(config, config.data.train_split))
    except FileNotFoundError:
        return 0


def run(config: Any, names: list[str]) -> None:
    """The command, after its flags are parsed."""
    prices, examples = _prices(_PRICE.value), _examples(config, _EXAMPLES.value)
    settings = {"examples": examples, "text_width": _TEXT_WIDTH.value}
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    for name in names:
        slice_ = topology.describe(name)
        plan = costs.make_plan(config, slice_, price=prices.get(slice_.kind), say=say, **settings)
        search.remember(config, slice_, plan.memory.get("total"), text_width=_TEXT_WIDTH.value)
        found: dict[str, Any] = {}
        if plan.fits:
            found["remedies"] = search.remedies(config, slice_, say=say, **settings)
        if _LARGEST.value:
            found["largest_batch_per_chip"] = search.largest_batch(config, slice_, **settings)
        if _JSON.value:
            print(json.dumps({**dataclasses.asdict(plan), **found}))
            continue
        for line in as_text(plan):
            print(line)
        for remedy, total in found.get("remedies", {}).items():
            says = f"fits with {total / 2**30:.2f} GiB" if total else "does not fit either"
            print(f"  tried     --config.{remedy}: {says}")
        if "largest_batch_per_chip" in found:
            print(f"  largest   {found['largest_batch_per_chip']} examples per chip fit")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    try:
        run(_CONFIG.value, _TOPOLOGY.value)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main)
