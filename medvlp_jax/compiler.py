"""What XLA is told when it compiles the large programs of a process that computes on CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA hands reductions, and the products it can fuse with them, to YNNPACK, and single products as well. Told to leave
# it the reductions, it computes products by Eigen with oneDNN's kernels, which come nearer to the processor's peak.
PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(function: Callable, *, platform: str | None = None, **arguments: Any) -> Callable:
    """`jax.jit` for programs that are mostly matrix products, with the options that suit them on CPU.

    Args: platform: that it will be compiled for; by default the one JAX computes on.
    """
    on_cpu = (platform or jax.default_backend()) == "cpu"
    return jax.jit(function, compiler_options=PRODUCTS if on_cpu and known() else None, **arguments)


@functools.cache
def known() -> bool:
    """Whether this jaxlib knows the options; it refuses to compile with one it does not know."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=PRODUCTS)(0.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True
