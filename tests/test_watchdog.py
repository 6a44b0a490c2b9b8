"""A process that hangs ends and says where; one that lives or rests does not."""

import subprocess
import sys

import pytest
import tiny

from medvlp_jax.watchdog import Watchdog

SCRIPT = """
import threading, time
from medvlp_jax.watchdog import Watchdog

def waiting_for_a_lost_host():
    time.sleep(60)

with Watchdog(0.4) as watch:
    for _ in range(4):
        time.sleep(0.2)
        watch.alive()
    watch.rest()
    time.sleep(0.6)
    print("lives", flush=True)
    watch.alive()
    threading.Thread(target=waiting_for_a_lost_host, daemon=True).start()
    time.sleep(60)
"""


def test_a_hang_ends_the_process_with_every_stack():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "lives\n"
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in waiting_for_a_lost_host" in done.stderr


def test_zero_switches_it_off_and_less_is_refused():
    with Watchdog(0) as watch:
        watch.alive()
    with pytest.raises(ValueError, match="hang_seconds=-1"):
        Watchdog(-1)
