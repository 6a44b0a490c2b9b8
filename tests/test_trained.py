"""How texts are read outside of batches: by tokens in a tower that is trained, by vectors of a frozen one."""

import importlib

import jax
import numpy as np
import pytest
import tiny
from test_text_tower import SENTENCES

from medvlp_jax import build, methods, text_tower, trained
from medvlp_jax import step as steps

TEXTS = [SENTENCES[0], "Clear.", SENTENCES[0], " ".join(SENTENCES[:4])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_tower(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("frozen", [False, True])
def test_texts_are_read_alike(data, frozen):
    config = importlib.import_module("configs.clip").get_config("demo").unlock()
    config.data.dir, config.text.weights, config.text.max_length = str(data), str(data / "tower"), 64
    config.image.size, config.model.features, config.text.trained = 32, 12, not frozen
    config.lock()
    tower = text_tower.of_config(config)
    model = methods.get("clip").build(config, tower.config)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(config, tower.width), 0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    if not frozen:
        tower = tower.with_variables({"params": variables["params"]["text_tower"]})
    read = trained.text_reader(model, config, tower)
    got = read(variables, TEXTS).aligned["report"]
    # The vectors of the tower itself, whole batches padded to the greatest length, meet the same head.
    vectors = np.asarray(tower.encode(tower.variables, *tower.tokenizer.encode(TEXTS, 64)))
    fields = {"embedding": vectors}
    expected = trained.embed_text_fields(model, variables, fields, ("report",)).aligned["report"]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_array_equal(got[0], got[2])
    assert np.abs(got[0] - got[1]).max() > 1e-2
    if frozen:  # vectors that are there already are not made again
        other = read(variables, ["new"], vectors={"new": vectors[1]}).aligned["report"]
        np.testing.assert_allclose(other[0], expected[1], atol=1e-4)
