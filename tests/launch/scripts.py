"""What the tests of launch scripts share: calling them, with nothing but what they are given, and waiting."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def call(*command, cwd=ROOT, timeout=30, **environment):
    """Runs a script with nothing but PATH, HOME and the given variables in its environment."""
    base = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=base | environment,
        text=True,
        capture_output=True,
        timeout=timeout,
    )


def bash(script, *arguments, **kwargs):
    return call("bash", LAUNCH / script, *arguments, **kwargs)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
