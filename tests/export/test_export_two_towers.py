"""Methods with one text as files: the same numbers in PyTorch and ONNX Runtime, a tower that learns as trained."""

import jax
import numpy as np
import pytest
import tiny
from tiny_run import shapes_of, tiny_config

from medvlp_jax import config as configs
from medvlp_jax import optim, text_tower
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.export import export
from medvlp_jax.import_weights import exported_config, import_weights
from medvlp_jax.trained import open_run

LOVT = {"text.max_sentences": 4, "text.max_length": 48, "model.pool.mean_over_padding": True}
GLORIA = {"model.last_layers": 1, "model.upsample": 80, "model.local.text_mean": "padded", "text.split": "gloria"}


VIT = {"argument": "demo,preset=vit"}
COMPOSED = {"model.read.eval_draws": 2, "text.max_sentences": 3, "text.max_length": 48}
TRAINED = {f"text.{name}": value for name, value in tiny.TRAINED_TEXT.items()}
CASES = [
    ("siglip", TRAINED),
    ("clip", VIT),
    ("convirt", {}),
    ("gloria", GLORIA),
    ("lovt", LOVT),
    ("mgca", {}),
    ("mgca", VIT),
    ("hierarchical_local", COMPOSED),
]


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_export_computes_the_same_and_comes_back(name, fields, data, tmp_path):
    pytest.importorskip("torch")
    config = tiny_config(data, name, **fields)
    tower = text_tower.of_config(config)
    workdir = tmp_path / "run"
    workdir.mkdir()
    configs.claim_workdir(config, workdir)
    state = steps.start_state(
        tiny.fill(shapes_of(config, tower.width, tower.config)), optim.optimizer(config.optimizer, 4), 0
    )
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(4, state, {"examples_seen": 32, "seconds": 1.0, "method": name})
    lines = []
    out = export(workdir, tmp_path / "out", check=True, say=lines.append)
    assert any("passed" in line for line in lines)
    card = (out / "README.md").read_text()
    assert f'image["{config.text.sections[-1]}"]' in card
    assert ("trained along" in card) == text_tower.learns(config)
    again = import_weights(out, tmp_path / "again", exported_config(out), step=4, say=lines.append)
    one, other = open_run(workdir), open_run(again)
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    assert one.tower.key == other.tower.key  # the tower as it was trained, not as it started
    assert (one.tower.key != tower.key) == config.text.trained
