"""The launch scripts: what they would run, what they say to bad input, and whether they hold up when processes die.

``UPDATE_GOLDEN=1 pytest tests/launch`` rewrites the recorded ``--dry-run`` outputs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_parses_and_passes_shellcheck(script):
    assert call("bash", "-n", LAUNCH / script).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    checked = call("shellcheck", "--shell=bash", LAUNCH / script)
    assert checked.returncode == 0, checked.stdout


TPU = {"WORKDIR": "gs://bucket/run", "REPO": "https://example.org/medvlp_jax.git"}
DRY_RUNS = {
    "tpu_vm": [
        (["tpu_vm.sh", "--dry-run", "create"], TPU),
        (
            ["tpu_vm.sh", "--dry-run", "--queued", "create"],
            TPU | {"PROJECT": "my project", "SPOT": "0", "TYPE": "v6e-16"},
        ),
        (["tpu_vm.sh", "--dry-run", "install"], TPU | {"BRANCH": "it's; rm -rf ~"}),
        (["tpu_vm.sh", "--dry-run", "run", "--config.total_steps=40", "--config.note=a 'b' $c"], TPU),
        (["tpu_vm.sh", "--dry-run", "status"], TPU),
        (["tpu_vm.sh", "log", "--dry-run"], TPU | {"WORKER": "3", "NAME": "other", "ZONE": "europe-west4-b"}),
        (["tpu_vm.sh", "--dry-run", "stop"], TPU),
        (["tpu_vm.sh", "--dry-run", "watch"], TPU),
        (["tpu_vm.sh", "--dry-run", "delete"], TPU),
        (["tpu_vm.sh", "--dry-run", "delete", "--queued"], TPU),
    ],
    "local_multiprocess": [
        (
            [
                "local_multiprocess.sh",
                "2",
                "--devices",
                "4",
                "--logs",
                "runs",
                "--port",
                "1234",
                "--dry-run",
                "--",
                "x",
                "-y",
            ],
            {"XLA_FLAGS": "--xla_a=1"},
        ),
        (["local_multiprocess.sh", "1", "--dry-run", "--", "echo", "a b"], {}),
    ],
    "slurm": [(["slurm.sbatch", "--dry-run", "--config", "configs/imitate.py:demo", "--workdir=/shared/a b"], {})],
}


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_prints_the_recorded_commands(name):
    printed = ""
    for (script, *arguments), environment in DRY_RUNS[name]:
        result = bash(script, *arguments, **environment)
        assert result.returncode == 0, result.stderr
        printed += f"### {' '.join([script, *arguments])}\n{result.stdout}"
    golden = Path(__file__).with_name(f"{name}.txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(printed)
    assert printed == golden.read_text()


def test_defaults_are_printed():
    shown = bash("tpu_vm.sh", "--dry-run", "create").stderr
    for setting in ("NAME=medvlp", "ZONE=us-central1-a", "TYPE=v5litepod-16", "SPOT=1", "WORKDIR=(not set)"):
        assert setting in shown


@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        (["tpu_vm.sh"], {}, "the subcommand is missing"),
        (["tpu_vm.sh", "launch"], {}, "unknown subcommand 'launch'"),
        (["tpu_vm.sh", "--dry-run", "run"], {}, "WORKDIR is not set"),
        (["tpu_vm.sh", "--dry-run", "install"], {}, "REPO is not set"),
        (["tpu_vm.sh", "--dry-run", "watch"], {"WORKDIR": "gs://b/w"}, "REPO is not set"),
        (["tpu_vm.sh", "--dry-run", "delete", "everything"], {}, "takes no further arguments, got 'everything'"),
        (["local_multiprocess.sh"], {}, "the number of processes is missing"),
        (["local_multiprocess.sh", "0", "--", "true"], {}, "got '0'"),
        (["local_multiprocess.sh", "two", "--", "true"], {}, "got 'two'"),
        (["local_multiprocess.sh", "2"], {}, "the command is missing"),
        (["local_multiprocess.sh", "2", "--", "no_such_command"], {}, "'no_such_command' not found"),
        (["local_multiprocess.sh", "2", "--device", "4", "--", "true"], {}, "unknown option '--device'"),
        (["local_multiprocess.sh", "2", "--devices", "--", "true"], {}, "--devices needs a value"),
        (["local_multiprocess.sh", "2", "--devices", "1.5", "--", "true"], {}, "got '1.5'"),
        (["slurm.sbatch", "--config", "configs/imitate.py"], {}, "--workdir is missing"),
        (["slurm.sbatch", "--workdir", "w"], {"SLURM_SUBMIT_DIR": "/"}, "submit from the root of the repository"),
        (["host.sh", "begin"], {}, "unknown subcommand 'begin'. Known: start, state, stop"),
    ],
)
def test_bad_input_is_named_and_usage_shown(command, environment, message):
    result = bash(*command, **environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert command[0] == "host.sh" or "Usage:" in result.stderr
    assert result.stdout == ""


def test_help_goes_to_stdout():
    for script in ("tpu_vm.sh", "local_multiprocess.sh"):
        result = bash(script, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith("Usage:")


def test_each_process_gets_its_place_and_its_devices(tmp_path):
    tell = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(('JAX_', 'XLA_'))}))"
    result = bash(
        "local_multiprocess.sh",
        2,
        "--devices",
        3,
        "--logs",
        tmp_path,
        "--",
        sys.executable,
        "-c",
        tell,
        XLA_FLAGS="--xla_a",
    )
    assert result.returncode == 0, result.stderr
    zero, one = (json.loads((tmp_path / f"process_{i}.log").read_text()) for i in (0, 1))
    assert json.loads(result.stdout) == zero
    assert zero["JAX_PROCESS_ID"] == "0"
    assert one == zero | {"JAX_PROCESS_ID": "1"}
    assert zero["JAX_PLATFORMS"] == "cpu"
    assert zero["JAX_NUM_PROCESSES"] == "2"
    assert zero["XLA_FLAGS"] == "--xla_a --xla_force_host_platform_device_count=3"
    address, port = zero["JAX_COORDINATOR_ADDRESS"].split(":")
    assert address == "127.0.0.1"
    assert 1024 <= int(port) <= 65535


PROCESS = """
import os, signal, sys, time
def leave(number, frame):
    print("signal", signal.Signals(number).name, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else leave)
signal.signal(signal.SIGINT, leave)
print("ready", flush=True)
if "fail1" in sys.argv and os.environ["JAX_PROCESS_ID"] == "1":
    while "ready" not in open(sys.argv[1] + "/process_0.log").read():
        time.sleep(0.02)
    print("something broke", flush=True)
    sys.exit(7)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher with PROCESS and waits until both processes are ready; nothing outlives the test."""
    launchers = []

    def start(*words, wait=True):
        command = ["bash", LAUNCH / "local_multiprocess.sh", "2", "--grace", "1", "--logs", tmp_path, "--"]
        command += [sys.executable, "-c", PROCESS, tmp_path, *words]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        launchers.append(launcher)
        logs = [tmp_path / f"process_{i}.log" for i in (0, 1)]
        until(lambda: not wait or all(log.exists() and "ready" in log.read_text() for log in logs))
        return launcher

    yield start
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.kill()
            launcher.communicate()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_first_failure_ends_the_others_and_gives_the_exit_code(start):
    launcher = start("fail1", wait=False)
    out, err = launcher.communicate(timeout=10)
    assert launcher.returncode == 7
    assert "process 1 failed first, with code 7" in err
    assert "something broke" in err
    assert "signal SIGTERM" in out


def test_a_process_that_ignores_the_end_of_another_is_killed_after_the_grace_period(start):
    launcher = start("fail1", "deaf", wait=False)
    _, err = launcher.communicate(timeout=10)
    assert launcher.returncode == 7
    assert "All codes: 137 7" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signals_reach_every_process(start, tmp_path, number):
    launcher = start()
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=10)
    assert launcher.returncode == 0
    assert f"signal {number.name}" in out
    assert f"signal {number.name}" in (tmp_path / "process_1.log").read_text()


def test_second_signal_kills(start):
    launcher = start("deaf")
    launcher.terminate()
    time.sleep(0.3)
    launcher.terminate()
    launcher.communicate(timeout=10)
    assert launcher.returncode == 137


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_processes_end_with_a_killed_launcher(start):
    launcher = start("deaf")
    launcher.kill()
    launcher.communicate(timeout=10)  # returns only when no process holds the pipes any more
    assert launcher.returncode == -signal.SIGKILL


FAKE_GCLOUD = """#!/usr/bin/env bash
# gcloud compute tpus GROUP VERB NAME ...: a queue that follows the lines of 'states', and two hosts that are folders.
command=${!#} && cd "$FAKE" && echo "$3 $4" >>calls
case "$3 $4" in
  'queued-resources describe')
    [[ -f request ]] || { echo 'ERROR: (gcloud.compute.tpus) NOT_FOUND: no such resource' >&2; exit 1; }
    head -n 1 states
    if (($(wc -l <states) > 1)); then sed -i 1d states; fi ;;
  'queued-resources create') touch request ;;
  'queued-resources delete')
    for host in host0 host1; do kill "$(<"$host/medvlp_run/pid")"; rm -r "$host"; done
    rm request ;;
  'tpu-vm ssh')
    echo 'Using ssh batch size of 2.' >&2
    for host in host0 host1; do
      mkdir -p "$host" && (cd "$host" && HOME=$PWD bash -c "${command#--command=}") || exit 1
    done ;;
  *) echo "unexpected call: $*" >&2; exit 2 ;;
esac
"""
FAKE_PYTHON3 = """#!/usr/bin/env bash
# Stands for python3 -m pip, python3 -m uv venv (which makes .venv) and, inside .venv, for training.
echo "$*" >>"$FAKE/python_calls"
case $2 in
  uv) mkdir -p .venv/bin && cp "$0" .venv/bin/python && printf '#!/bin/sh\n' >.venv/bin/pip && chmod +x .venv/bin/pip ;;
  medvlp_jax.main)
    runs=$(grep -c medvlp_jax.main "$FAKE/python_calls")
    echo "training $runs"
    code=$(sed -n "$(((runs + 1) / 2))p" "$FAKE/codes") # of the first start on both hosts, the second start, ...
    [[ $code != forever ]] || exec sleep 60
    exit "$code" ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder that plays Google Cloud; ``cloud(states, codes)`` runs tpu_vm.sh watch there and returns the outcome."""
    bin_dir, repo = tmp_path / "bin", tmp_path / "repo"
    bin_dir.mkdir()
    for name, text in (("gcloud", FAKE_GCLOUD), ("python3", FAKE_PYTHON3)):
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    shutil.copytree(LAUNCH, repo / "launch")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "start"]):
        assert call("git", *words, cwd=repo).returncode == 0

    def watch(states, codes, **environment):
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        environment |= {"PATH": f"{bin_dir}:{os.environ['PATH']}", "FAKE": str(tmp_path), "REPO": str(repo)}
        environment |= {"WORKDIR": "gs://bucket/run", "POLL": "0.05"}
        return bash("tpu_vm.sh", "watch", "--config.total_steps=40", **environment)

    yield watch
    for pid_file in tmp_path.glob("host*/medvlp_run/pid"):
        call("kill", pid_file.read_text().strip())


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_watch_starts_again_after_a_preemption_and_ends_with_training(cloud, tmp_path):
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"]
    result = cloud(states, codes=["forever", "0"])
    assert result.returncode == 0, result.stderr
    assert "request SUSPENDED: deleting, creating anew" in result.stderr
    assert "training has ended" in result.stderr
    changes = [line for line in (tmp_path / "calls").read_text().splitlines() if line.endswith(("create", "delete"))]
    assert [line.split()[1] for line in changes] == ["create", "delete", "create"]
    trainings = [line for line in (tmp_path / "python_calls").read_text().splitlines() if "medvlp_jax.main" in line]
    words = "-m medvlp_jax.main --config configs/imitate.py --workdir gs://bucket/run --config.total_steps=40"
    assert trainings == [words] * 4  # two hosts, before and after
    assert "training 4" in (tmp_path / "host1/medvlp_run/log").read_text()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_watch_restarts_all_hosts_after_a_failure_but_not_for_ever(cloud, tmp_path):
    result = cloud(["ACTIVE"], codes=["3", "3", "3"], RESTARTS="1")
    assert result.returncode == 1
    assert "hosts: 3 ; restart 1 of 1" in result.stderr
    assert "gave up after 1 restarts" in result.stderr
    assert (tmp_path / "python_calls").read_text().count("medvlp_jax.main") == 4


def test_host_refuses_a_second_start_and_stops(tmp_path):
    home, python = tmp_path / "home", tmp_path / "medvlp_jax/.venv/bin/python"
    script = shutil.copytree(LAUNCH, tmp_path / "medvlp_jax/launch") / "host.sh"
    states = []

    def host(word):
        result = call("bash", script, word, HOME=str(home), STOP_S="5")
        states.append(call("bash", script, "state", HOME=str(home)).stdout.strip())
        return result

    assert "run 'launch/tpu_vm.sh install'" in host("start").stderr
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho training\nexec sleep 60\n")
    python.chmod(0o755)
    assert host("start").returncode == 0
    second = host("start")
    assert second.returncode == 1
    assert "already runs here" in second.stderr
    assert host("stop").returncode == 0
    until(lambda: (home / "medvlp_run/code").exists())
    host("state")
    assert states[:3] == ["training=none", "training=running", "training=running"]
    assert states[4] == f"training={128 + signal.SIGTERM}"


def test_slurm_job_saves_and_queues_again_at_the_time_limit(tmp_path):
    for name, text in (
        ("bin/srun", "trap 'sleep 0.2; echo saved; exit 0' TERM; echo started; while :; do sleep 0.05; done"),
        ("bin/scontrol", 'echo "$*"'),
        (".venv/bin/python", ""),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "medvlp_jax").mkdir()
    (tmp_path / "pyproject.toml").touch()
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[1-2]"}
    output = tmp_path / "output"
    with output.open("w") as file:
        job = subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", "--workdir", "w"], stdout=file, env=environment)
    until(lambda: "started" in output.read_text())
    job.terminate()
    assert job.wait(timeout=10) == 0
    lines = output.read_text().splitlines()
    assert lines[1:3] == ["started", "saved"]
    assert lines[-1] == "requeue 42"


def test_slurm_job_keeps_the_exit_code_of_a_failure(tmp_path):
    for name in ("bin/srun", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("#!/bin/sh\nexit 9\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "medvlp_jax").mkdir()
    (tmp_path / "pyproject.toml").touch()
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    result = bash("slurm.sbatch", "--workdir", "w", SLURM_JOB_ID="42", SLURM_JOB_NODELIST="node1", **environment)
    assert result.returncode == 9
