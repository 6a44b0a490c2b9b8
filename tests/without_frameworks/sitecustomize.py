"""On the path of runs that must start fast: tensorboardX writes their events, TensorFlow and PyTorch stay unloaded."""

from importlib.machinery import PathFinder

# Not `sys.modules[name] = None`: SciPy takes what stands there for the module.
_find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in ("tensorboard", "torch") else _find(name, *more)
