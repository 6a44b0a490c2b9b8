"""What a training step of a config costs here:  python -m medvlp_jax.compare.measure --config configs/clip.py:demo

Builds the run's parts (which encodes texts that are not cached yet), compiles its step for this machine's devices and
prints one JSON line. A process of its own, so that it holds no device while runs train.
"""

import json
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments: configs/imitate.py:demo")


def measure(config: Any, say=print) -> dict[str, Any]:
    """Cost of one step on all devices.

    Returns: flops: as the compiler counts them, which counts the body of a loop once, plus what the matrix products and
      convolutions of its other passes come to. compiler_flops: without that. shape_flops: all matrix products and
      convolutions of the step, forward and backward, by their shapes. model_flops: as `plan` counts them, the forward
      pass three times. memory_bytes: of the compiled step on one device.
    Raises: as `build.assemble` and `plan.costs.lower_step`.
    """
    import jax

    from medvlp_jax import build, sharding
    from medvlp_jax.plan import costs
    from medvlp_jax.plan.compiled import cost, count_flops

    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    parts = build.assemble(config, mesh, say)
    lowered = costs.lower_step(config, mesh, text_width=parts.tower.width, examples=len(parts.train), say=say)
    compiled = cost(lowered.step.compile())
    by_compiler, by_shapes = compiled.flops * mesh.devices.size, count_flops(lowered.jaxpr)
    return {
        "flops": by_compiler + by_shapes - count_flops(lowered.jaxpr, loops=False),
        "compiler_flops": by_compiler,
        "shape_flops": by_shapes,
        "model_flops": costs.model_flops(config, lowered),
        "memory_bytes": compiled.total,
        "devices": f"{mesh.devices.size} {jax.devices()[0].device_kind}",
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    try:
        print(json.dumps(measure(_CONFIG.value, say=lambda line: print(line, file=sys.stderr))))
    except (ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
