"""One platform, one precision and cheap compilation for all tests, set before JAX starts."""

import gc
import os
import subprocess

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
import tiny
from absl import flags

os.environ.setdefault("XLA_FLAGS", tiny.CHEAP)
jax.config.update("jax_default_matmul_precision", "highest")
flags.FLAGS.mark_as_parsed()
gc.set_threshold(100_000, 20, 20)  # as in without_frameworks/sitecustomize.py


def pytest_collection_modifyitems(items):
    """Files with long tests come first: of several workers none is left with one of them when the others are done."""
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "devices"))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def session_folder(tmp_path_factory):
    """What the workers of a session share lies beside their temporary folders."""
    base = tmp_path_factory.getbasetemp()
    tiny.SESSION = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"mount cannot be run: {error}")
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)
