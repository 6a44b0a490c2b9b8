"""One run and one export of it for all tests of this folder."""

import shutil

import jax
import pytest
import tiny
from tiny_run import shapes_of, tiny_config

from medvlp_jax import config as configs
from medvlp_jax import optim
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.export import check, export
from medvlp_jax.trained import open_run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A run folder with checkpoints of steps 2 and 4, as training leaves it."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    workdir.mkdir()
    config = tiny_config(data)
    configs.claim_workdir(config, workdir)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        for step in (2, 4):
            state = steps.start_state(tiny.fill(shapes_of(config), seed=step), optim.optimizer(config.optimizer, 4), 0)
            checkpoints.save(step, state, {"examples_seen": 8 * step, "seconds": 1.0, "method": "imitate"})
    return workdir


@pytest.fixture(scope="session")
def trained(run):
    return open_run(run)


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exports") / "model", say=lambda _: None)


@pytest.fixture(scope="module")
def seen(trained):
    """(views, image embedding in JAX): one shape for all tests, so that it compiles once."""
    views, *_ = check.inputs(trained)
    return views, jax.device_get(trained.embed_images(views))


@pytest.fixture
def copy(exported, tmp_path):
    """An exported folder to damage."""
    return shutil.copytree(exported, tmp_path / "copy")
