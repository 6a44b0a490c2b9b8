"""Cloud TPU scripts: `watch` on a simulated gcloud whose hosts are folders, and the part of one host."""

import contextlib
import os
import shutil
import signal

import pytest
from scripts import LAUNCH, bash, call, until

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


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
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGTERM)


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
