"""On the path of runs that must start fast: tensorboardX writes their events, TensorFlow and PyTorch stay unloaded."""

import gc
from importlib.machinery import PathFinder

# Not `sys.modules[name] = None`: SciPy takes what stands there for the module.
_find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in ("tensorboard", "torch") else _find(name, *more)

# Tracing makes objects by the million, which live on: looking for garbage among them takes 6 % of a short run.
gc.set_threshold(100_000, 20, 20)
