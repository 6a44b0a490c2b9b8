"""What a process that keeps freed memory holds, in processes of its own."""

import subprocess
import sys

import pytest

# The first thread sleeps through this; the second never saw the large block in use, so that it is all surplus.
HELD = """
import sys, time
import numpy as np
from medvlp_jax import host_memory

host_memory._PAUSE_S = 1e9
assert host_memory.keep_freed_memory()
block = np.ones(600 << 20, np.uint8)
behind = np.full(1 << 20, 7, np.uint8)  # without it the block would be part of the heap's end
del block
if sys.argv[1] == "looked after":
    host_memory._PAUSE_S = 0.05
    host_memory.keep_freed_memory()
    end = time.monotonic() + 20
    while host_memory._resident() > 300 << 20 and time.monotonic() < end:
        time.sleep(0.05)
assert (behind == 7).all()
print(host_memory._resident() >> 20)
"""


def held_mib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_but_for_a_surplus():
    assert held_mib("alone") > 600
    assert held_mib("looked after") < 300
