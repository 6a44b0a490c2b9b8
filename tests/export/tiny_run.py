"""A run folder of random weights, made without training."""

import ast
import importlib

import jax
import numpy as np
import tiny

from medvlp_jax import methods
from medvlp_jax import step as steps
from medvlp_jax.build import batch_shapes


def tiny_config(data, method="imitate", argument="demo", **more):
    config = importlib.import_module(f"configs.{method}").get_config(argument)
    fields = tiny.overrides(data, **({"model.read.eval_draws": 2} if method == "imitate" else {}), **more)
    if "vit" in config.model.trunk:
        fields = {name: value for name, value in fields.items() if not name.startswith("model.trunk.width")}
        fields["model.trunk.image"] = fields["image.size"]
    with config.unlocked():
        for name, value in fields.items():
            node, last = config, name.split(".")[-1]
            for part in name.split(".")[:-1]:
                node = node[part]
            node[last] = ast.literal_eval(value) if isinstance(value, str) and value.startswith("(") else value
    return config


def shapes_of(config, width=16, bert=None):
    model = methods.get(config.method).build(config, bert)
    return jax.eval_shape(lambda: steps.init_variables(model, batch_shapes(config, width), 0))


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)
