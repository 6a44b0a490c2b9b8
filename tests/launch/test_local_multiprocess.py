"""The launcher of several processes on one machine: places, exit codes, signals, processes that do not listen."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from scripts import LAUNCH, bash, until

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


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
