"""Memory of a process that computes on CPU: large buffers are kept instead of given back after every step."""

import ctypes
import importlib.util
import os
import sys
import threading
import time

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Of what is looked after: how often, in seconds; the share of the most ever in use that may be held; bytes besides.
_PAUSE_S, _SHARE, _BESIDE = 1.0, 1.25, 256 << 20
_ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def cpu_only() -> bool:
    """Whether JAX will compute on CPU: told so by JAX_PLATFORMS, or no accelerator plugin is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or (not platforms and not any(map(importlib.util.find_spec, _ACCELERATORS)))


class _Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) returns; `uordblks` are the bytes in use."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def keep_freed_memory() -> bool:
    """Asks glibc to reuse freed memory: no mmap for large blocks, no trimming of the heap, one arena.

    XLA on CPU allocates and frees hundreds of megabytes of temporaries in every step. By default each of them comes
    from the kernel as untouched pages, and the page faults cost up to a fifth of a step, more in virtual machines. The
    process then holds on to the most it ever needed, and a thread gives back what it holds beyond. Call it before JAX
    starts its threads, or they have arenas of their own. Without glibc 2.33 nothing happens.

    Returns: whether the allocator took all three settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Mallinfo2
        kept = all(libc.mallopt(*setting) == 1 for setting in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)))
    except (OSError, AttributeError):  # another C library, such as musl, or an older one
        return False
    threading.Thread(target=_give_back_surplus, args=(libc,), name="freed-memory", daemon=True).start()
    return kept


def _give_back_surplus(libc: ctypes.CDLL) -> None:
    """Has the kernel take free memory back whenever much more is held than was ever in use at once.

    glibc cuts aligned blocks out of larger ones. Should something small live on in such a cutting, or in a freed block
    itself, the next temporary, of the same size, no longer fits where the last one lay and takes new memory: without
    this a training step of 5.6 GB of temporaries held 17 GB after a minute.
    """
    most, beside = 0, _BESIDE
    while True:
        time.sleep(_PAUSE_S)
        # glibc is asked last: it counts every free block with its lock held, 33 ms for what a compilation leaves.
        if _resident() <= _SHARE * most + beside:
            continue
        used = libc.mallinfo2().uordblks
        most = max(most, used)
        if _resident() > _SHARE * most + beside:
            libc.malloc_trim(0)
            beside = max(beside, _resident() - used)  # what other allocators hold stays


def _resident() -> int:
    """Bytes of anonymous memory of this process."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
