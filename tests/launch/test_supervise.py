"""The supervisor: what it starts again and what not, and how a run of two processes survives kills."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from medvlp_jax import build
from medvlp_jax.data import pipeline

sys.path.append(str(tiny.REPOSITORY / "benchmarks"))

import survival

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


@pytest.mark.devices
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_run_of_two_processes_killed_while_it_saves_ends_as_if_undisturbed(tmp_path):
    found = survival.survive(tmp_path, kills=1, minutes=10, seed=0)
    assert survival.failures(found) == []
    assert (found["kills"], found["starts"], found["kills with a checkpoint half written"]) == (1, 2, 1)
    assert found["arrays"] > 100
    assert found["losses"] == found["steps"] == 6
    assert found["goodput"]["goodput/attempts"] == 2
    assert found["goodput"]["goodput/lost_steps"] > 0


def test_the_survival_benchmark_tells_what_is_wrong():
    zero = dict.fromkeys(survival.MUST_BE_ZERO, 0)
    assert survival.failures(zero) == []
    found = zero | {"arrays that differ": 3, "restarts: looked": 5, "restarts: found the newest": 4}
    assert survival.failures(found) == ["arrays that differ: 3", "restarts that found the newest checkpoint: 4 of 5"]


def test_a_record_consumed_twice_and_a_lost_checkpoint_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "open_source", lambda config, split: range(4))
    config = {"seed": 0, "data.reshuffle": True, "data.train_split": "train"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first, second = (pipeline.permutation(0, epoch, 4).tolist() for epoch in (0, 1))
    steps = [first[:2], first[2:], second[:2], second[2:]]
    for history, repeated, misplaced in ((steps, 0, 0), ([*steps[:3], steps[2]], 2, 2), ([steps[0]] * 4, 4, None)):
        lines = [json.dumps({"step": n, "index": index}) for n, index in enumerate(history, 1)]
        (tmp_path / "examples.jsonl").write_text("\n".join(lines))
        found = tiny.order(tmp_path)
        assert (found["repeated within an epoch"], found["skipped within an epoch"]) == (repeated, repeated)
        assert misplaced in (None, found["not where the seed puts them"])

    start = "run       imitate\n{}model     9 parameters\n"
    log = start.format("") + start.format("resume    step 2, ...\n") + "run       imitate\n" + start.format("")
    (tmp_path / "log.txt").write_text(log)
    ends = [len(start.format("")), len(start.format("") + start.format("resume    step 2, ...\n"))]
    kills = [{"newest": 2, "log": ends[0]}, {"newest": 4, "log": ends[1]}, {"newest": 4, "log": ends[1] + 18}]
    counted = survival.restarts(tmp_path, kills)
    assert counted == {
        "looked": 2,
        "found the newest": 1,  # the last one began anew with step 4 on the disk
        "with a checkpoint to find": 2,
        "killed before they looked": 1,
    }
