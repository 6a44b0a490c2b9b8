"""The supervisor: what it starts again and what not, and a run of two processes that is killed at random."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

SUPERVISE = tiny.REPOSITORY / "launch" / "supervise.py"
# A run of no substance: counts its starts, leaves a checkpoint where told, ends with the code of this start.
RUN = """
import pathlib, sys
workdir, codes, saves = pathlib.Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4].split(",")
count = workdir / "starts"
start = int(count.read_text()) if count.exists() else 0
count.write_text(str(start + 1))
if saves[start] != "-":
    (workdir / "checkpoints" / saves[start]).mkdir(parents=True)
sys.exit(int(codes[start]))
"""


def supervise(folder, codes, saves, *flags):
    command = [sys.executable, "-c", RUN, "--workdir", str(folder), codes, saves]
    done = subprocess.run(
        [sys.executable, SUPERVISE, "--wait", "0", *flags, "--", *command], capture_output=True, text=True, check=False
    )
    return done.returncode, int((folder / "starts").read_text()), done.stderr


def test_starts_again_until_done(tmp_path):
    code, starts, said = supervise(tmp_path, "75,137,1,0", "10,20,-,30")
    assert (code, starts) == (0, 4)
    assert "start 3 from step 20" in said
    assert "done, exit code 0, newest checkpoint 30, after 4 start(s)" in said


def test_a_named_error_is_not_tried_again(tmp_path):
    code, starts, said = supervise(tmp_path, "2,0", "-,-")
    assert (code, starts) == (2, 1)
    assert "a restart does not help" in said


def test_gives_up_when_nothing_is_gained(tmp_path):
    code, starts, said = supervise(tmp_path, "1,1,1,0", "5,-,-,-", "--failures", "2")
    assert (code, starts) == (1, 3)
    assert "2 starts in a row brought no newer checkpoint than 5" in said


def test_passes_signals_on_and_ends(tmp_path):
    script = (
        "import sys, time, signal; signal.signal(15, lambda *_: sys.exit(75)); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, SUPERVISE, "--workdir", str(tmp_path), "--", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert "told to end" in process.stderr.read()


def test_bad_arguments_and_dry_run(tmp_path):
    def call(*words):
        return subprocess.run([sys.executable, SUPERVISE, *words], capture_output=True, text=True, check=False)

    assert "the command is missing" in call().stderr
    assert "no --workdir" in call("--", "true").stderr
    assert "--failures 0" in call("--failures", "0", "--workdir", str(tmp_path), "--", "true").stderr
    shown = call("--dry-run", "--", "python", "-m", "medvlp_jax.main", "--workdir=runs/a b").stdout
    assert shown == "python -m medvlp_jax.main '--workdir=runs/a b'  # watching runs/a b/checkpoints\n"


def processes_of(workdir: Path) -> list[int]:
    """Training processes that name this run folder."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"medvlp_jax.main" in words and str(workdir).encode() in words and b"-m" in words[:4]:
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_two_processes_of_which_one_is_killed_end_with_the_numbers_of_an_undisturbed_run(tmp_path):
    data = tiny.make_data(tmp_path / "data")
    more = {"total_steps": 16, "checkpoint_every_steps": 2, "keep_checkpoints": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launcher = [str(tiny.REPOSITORY / "launch" / "local_multiprocess.sh"), "2", "--grace", "1", "--"]
    tiny.run([*launcher, *tiny.command(data, whole, **more)])
    command = [
        sys.executable,
        str(SUPERVISE),
        "--wait",
        "0",
        "--failures",
        "10",
        "--workdir",
        str(killed),
        "--",
        *launcher,
    ]
    rng, kills = random.Random(0), 0
    with subprocess.Popen(
        [*command, *tiny.command(data, killed, **more)],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 240
        while not kills and process.poll() is None and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.0, 0.5))
            victims = processes_of(killed)
            if len(victims) >= 2 and any((killed / "checkpoints").glob("[0-9]*")):
                subprocess.run(["kill", "-KILL", str(rng.choice(victims))], check=False)
                kills += 1
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    assert kills
    assert len(re.findall("starting again", said)) >= 1
    assert tiny.losses(killed) == tiny.losses(whole)  # no step repeated, none skipped
    last = [tiny.parameters(run, 16) for run in (whole, killed)]
    for name, value in last[0].items():
        np.testing.assert_array_equal(last[1][name], value, err_msg=name)
    assert json.loads((killed / "scores.json").read_text())["step"] == 16
