"""Is this machine ready for that run?

    python -m medvlp_jax.doctor --config configs/imitate.py:demo [--workdir runs/demo]

Prints versions beside the tested ranges, devices and mesh, the speed of the disk that holds the data and of the one
that will hold checkpoints, a collective over all devices, and whether the data set's records can be read; and what to
do where something is wrong. Start it as the run will be started (on every host, with the same environment). Exit code 1
when something is wrong.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from packaging.requirements import Requirement

from medvlp_jax import build, sharding
from medvlp_jax.data.images import read_image
from medvlp_jax.report.environment import environment

PROBE_BYTES = 64 * 2**20
SLOW_DISK = 50e6  # bytes/s below which saving a ResNet-50 with its moments takes longer than ten seconds
SAMPLED_RECORDS = 200


class Finding(NamedTuple):
    """One line of the diagnosis: `ok`, `warn` or `fail`, what was found, and what helps."""

    level: str
    what: str
    fix: str = ""


def versions() -> Iterator[Finding]:
    """Installed packages against the ranges that the project was tested with."""
    yield Finding("ok", ", ".join(f"{name} {version}" for name, version in environment().items()))
    for text in metadata.requires("medvlp_jax") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("fail", f"{requirement.name} is not installed", "pip install -c constraints.txt -e .")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                "warn",
                f"{requirement.name} {found} is outside the tested range {requirement.specifier}",
                "pip install -c constraints.txt -e .",
            )


def devices(config: Any) -> Iterator[Finding]:
    """Devices, mesh, batch, and one collective over all of them."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    yield Finding("ok", f"{jax.device_count()} device(s) {', '.join(kinds)} in {jax.process_count()} process(es)")
    if jax.default_backend() == "cpu" and any(Path("/dev").glob("nvidia[0-9]*")):
        fix = "pip install -c constraints.txt -e '.[cuda]', and unset JAX_PLATFORMS=cpu"
        yield Finding("warn", "this machine has an NVIDIA GPU that JAX does not use", fix)
    try:
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        sharding.check_batch(config.batch_size, mesh, parts=config.micro_batches)
        yield Finding("ok", f"pairs of the loss: {build.pair_sweep(config, mesh)[1]}")
    except ValueError as error:
        yield Finding("fail", str(error))
        return
    start, count = time.perf_counter(), jax.device_count()
    ones = jax.make_array_from_callback((count,), sharding.batch_sharding(mesh), lambda i: np.ones(count)[i])
    total = float(jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(ones))
    if total == count:
        seconds = time.perf_counter() - start
        yield Finding(
            "ok", f"mesh {dict(mesh.shape)}: a sum over all devices is right ({seconds:.1f} s with compiling)"
        )
    else:
        yield Finding("fail", f"a sum of one per device over {count} devices gave {total:g}", "check the interconnect")


def disk(folder: Path, name: str) -> Iterator[Finding]:
    """Writes and reads back a file."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    data = np.random.default_rng(0).bytes(PROBE_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            rate = PROBE_BYTES / (time.perf_counter() - start)
            file.seek(0)
            same = file.read() == data
    except OSError as error:
        yield Finding("fail", f"{name}: cannot write in {existing} ({error})", "free space, or another folder")
        return
    free = os.statvfs(existing)
    words = f"{name}: {existing} takes {rate / 1e6:.0f} MB/s, {free.f_bavail * free.f_frsize / 2**30:.0f} GiB free"
    if not same:
        yield Finding("fail", f"{words}; what was read is not what was written", "do not trust this disk")
    elif rate < SLOW_DISK:
        yield Finding("warn", words, "raise checkpoint_every_steps, or use a faster disk")
    else:
        yield Finding("ok", words)


def data_set(config: Any) -> Iterator[Finding]:
    """Opens every split of the run, compares its length with what was prepared, and decodes a sample of its records."""
    for split in dict.fromkeys((config.data.train_split, config.data.eval_split, config.data.test_split)):
        try:
            source = build.open_source(config, split)
        except (FileNotFoundError, ValueError) as error:
            yield Finding("fail", str(error).splitlines()[0], "see docs/data.md")
            continue
        chosen = np.unique(np.linspace(0, len(source) - 1, SAMPLED_RECORDS).astype(int)) if len(source) else ()
        broken = []
        for index in chosen:
            try:
                read_image(source[int(index)]["image"])
            except Exception as error:  # whatever a damaged file makes of itself
                broken.append(f"{index} ({type(error).__name__})")
        words = f"{config.data.name}/{split}: {len(source)} records, {len(chosen)} of them read"
        if broken:
            shown = ", ".join(broken[:5])
            fix = f"delete {source.folder} and prepare it again"
            yield Finding("fail", f"{words}, {len(broken)} damaged: {shown}", fix)
        elif not len(source):
            yield Finding("fail", f"{words}", "prepare the data set again")
        else:
            yield Finding("ok", words)


def diagnose(config: Any, workdir: Path) -> Iterator[Finding]:
    """All checks, one after the other."""
    yield from versions()
    yield from devices(config)
    yield from disk(Path(config.data.dir), "data")
    yield from disk(workdir, "checkpoints")
    yield from data_set(config)


def run(config: Any, workdir: Path, say: Callable[[str], None] = print) -> int:
    """Prints the diagnosis. Returns: the number of failed checks."""
    failed = 0
    for finding in diagnose(config, workdir):
        failed += finding.level == "fail"
        say(f"{finding.level:5s} {finding.what}" + (f"\n      -> {finding.fix}" if finding.fix else ""))
    say("ready" if not failed else f"{failed} check(s) failed")
    return failed


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    sharding.initialize_processes(Path(_WORKDIR.value), _CONFIG.value.join_seconds)
    sys.exit(1 if run(_CONFIG.value, Path(_WORKDIR.value)) else 0)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments: configs/imitate.py:demo")
    _WORKDIR = flags.DEFINE_string("workdir", "runs", "Where the run folder will be.")
    flags.mark_flags_as_required(["config"])
    app.run(main)
