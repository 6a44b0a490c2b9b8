"""The Slurm batch script at its time limit and after a failure, with a simulated srun."""

import os
import shutil
import subprocess

import pytest
from scripts import LAUNCH, bash, until

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


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
