"""Memory of a process that computes on CPU: large buffers are kept instead of given back after every step."""

import ctypes
import importlib.util
import os
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def cpu_only() -> bool:
    """Whether JAX will compute on CPU: told so by JAX_PLATFORMS, or no accelerator plugin is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or (not platforms and not any(map(importlib.util.find_spec, _ACCELERATORS)))


def keep_freed_memory() -> bool:
    """Asks glibc to reuse freed memory: no mmap for large blocks, no trimming of the heap, one arena.

    XLA on CPU allocates and frees hundreds of megabytes of temporaries in every step. By default each of them comes
    from the kernel as untouched pages, and the page faults cost up to a fifth of a step, more in virtual machines. The
    process then holds on to the most it ever needed. Call it before JAX starts its threads, or they have arenas of
    their own. Without glibc nothing happens.

    Returns: whether the allocator took all three settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return all(mallopt(*setting) == 1 for setting in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)))
