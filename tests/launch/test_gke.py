"""The JobSet that gke.sh applies, read back as YAML, and its exit codes beside those of training."""

import shutil

import pytest
import yaml
from scripts import bash

from medvlp_jax.main import NAMED_ERROR

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

SETTINGS = {"BUCKET": "my-bucket", "REPO": "https://example.org/it's.git"}


def applied(tmp_path, *arguments, **environment):
    """What kubectl was given, parsed."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/usr/bin/env bash\n[[ $* == "apply --filename -" ]] && cat >{tmp_path}/manifest\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    result = bash("gke.sh", *arguments, **SETTINGS | environment | {"PATH": path})
    assert result.returncode == 0, result.stderr
    return yaml.safe_load((tmp_path / "manifest").read_text())


def test_the_manifest_means_what_was_asked_for(tmp_path):
    words = ["--config.note=a 'b' \"c\" \\ & @NAME@ #", "--config.seed=1: 2"]
    jobset = applied(tmp_path, *words, TOPOLOGY="v5p:2x4x4*3", NAME="imitate")
    assert jobset["metadata"]["name"] == "imitate"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, 8, 8)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (train,) = pod["containers"]
    assert train["args"] == ["--config", "configs/imitate.py", "--workdir", "/bucket/runs/imitate", *words]
    assert train["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "REPO", "value": SETTINGS["REPO"]} in train["env"]


def test_only_a_named_error_is_not_tried_again(tmp_path):
    spec = applied(tmp_path)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [NAMED_ERROR]
    # Any other failure fails the job at once for another reason, and a job that fails starts all of them again.
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert spec["failurePolicy"]["maxRestarts"] == 100


def test_without_kubectl(tmp_path):
    for name in ("bash", "cat", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = bash("gke.sh", **SETTINGS, PATH=str(tmp_path))
    assert result.returncode == 2
    assert "kubectl is not installed" in result.stderr
