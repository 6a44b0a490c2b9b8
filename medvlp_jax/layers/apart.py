"""A boundary for XLA's fusions."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays as a computation that XLA does not inline: its operands and results are written out once.

    XLA's CPU compiler fuses elementwise operations into every reader, however many there are; what is read often is
    then computed as often. For CPU code only: accelerators weigh that up, and a call would stand in their way.
    """

    def call(*operands):
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function)(*operands)

    return call
