"""On what a report was written: versions of what computes, and the machine in general terms."""

import os
import platform
from importlib import metadata

PACKAGES = ("medvlp_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


def environment() -> dict[str, str]:
    """Versions of Python and of packages, system and number of CPU cores; no names of machines or users."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"}
