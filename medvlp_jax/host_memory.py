"""Memory of a process that computes on CPU: large buffers are kept instead of given back after every step."""

import ctypes
import functools
import importlib.util
import os
import sys
import threading
import time
from xml.etree import ElementTree

import jax

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Of what is looked after: how often, in seconds; the share of the most ever in use that may be held; bytes besides.
_PAUSE_S, _SHARE, _BESIDE = 1.0, 1.25, 256 << 20
# Of gaps: the sizes that are filled, in bytes; the compilations that leave many of them, by JAX's event and seconds.
_SMALLEST_GAP, _LARGEST_GAP = 1 << 10, 4 << 20
_COMPILED, _LONG_S = "/jax/core/compile/backend_compile_duration", 1.0
# What is left free instead, in bytes.
_ROOM = 256 << 20
# After a result is there, XLA's thread still has to free what computing it took.
_FREED_S = 1e-3
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
    process then holds on to the most it ever needed, and a thread gives back what it holds beyond. After each long
    compilation the gaps that it leaves are filled (`_fill_gaps`). Call it before JAX starts its threads, or they have
    arenas of their own. Without glibc 2.33 nothing happens.

    Returns: whether the allocator took all three settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = _glibc()
        kept = all(libc.mallopt(*setting) == 1 for setting in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)))
    except (OSError, AttributeError):  # another C library, such as musl, or an older one
        return False
    threading.Thread(target=_give_back_surplus, args=(libc,), name="freed-memory", daemon=True).start()
    jax.monitoring.register_event_duration_secs_listener(functools.partial(_after, libc))
    return kept


def _glibc() -> ctypes.CDLL:
    """The process's C library, its calls' types told. Raises: AttributeError when it lacks one of them."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo2
    libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
    return libc


def settle(tree) -> bool:
    """On CPU, waits for the arrays of `tree` and for the memory that computing them took; elsewhere it returns at once.

    A step that is started before the one before it has freed its temporaries takes as many again: twice the memory,
    or, with the surplus given back, all of a step's pages anew from the kernel. Accelerators plan memory by themselves.

    Returns: whether it waited.
    """
    if jax.default_backend() != "cpu":
        return False
    jax.block_until_ready(tree)
    time.sleep(_FREED_S)
    return True


def _fill_gaps(libc: ctypes.CDLL) -> None:
    """Takes the free blocks between what lives for good, for their memory to go back and glibc's lists to be short.

    XLA's compilation of a training step leaves some 100,000 of them in all sizes. glibc sorts every freed block of over
    1 KiB into them and walks them for the next one, so that each of a step's many allocations took ten times as long.
    What is taken is never written to: whole pages in it are given back to the kernel first. One free block is left for
    what will outlive a step. Had it to be cut from where a step's temporaries lie, they would not fit there again.
    """
    libc.malloc_trim(0)
    for _ in range(3):  # a taken block's remainder is a gap again
        for size, count in reversed(_gaps(libc)):
            for _ in range(count):
                libc.malloc(size)
    room = libc.malloc(_ROOM)
    libc.malloc(_SMALLEST_GAP)  # keeps the room from growing together with what follows
    libc.free(room)


def _gaps(libc: ctypes.CDLL) -> list[tuple[int, int]]:
    """The free blocks by class of size: the bytes that each of a class has room for, and how many there are."""
    with open(os.memfd_create("malloc_info"), "rb") as file:
        stream = libc.fdopen(os.dup(file.fileno()), b"w")
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        file.seek(0)
        sizes = ElementTree.parse(file).iterfind("./heap/sizes/size")
        classes = [(int(size.get("from")), int(size.get("count"))) for size in sizes]
    # A block is a multiple of 16 bytes, plus a flag, with 8 bytes of its own.
    return [(start // 16 * 16 - 8, count) for start, count in classes if _SMALLEST_GAP <= start <= _LARGEST_GAP]


def _after(libc: ctypes.CDLL, event: str, seconds: float, **_) -> None:
    """Listens to what JAX times."""
    if event == _COMPILED and seconds >= _LONG_S:
        _fill_gaps(libc)


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
