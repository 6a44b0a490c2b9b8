"""The way back: exported folders and PyTorch files become runs, or are refused."""

import json

import jax
import numpy as np
import pytest
import tiny
from tiny_run import same, tiny_config

from medvlp_jax import import_weights, optim, sharding
from medvlp_jax import step as steps
from medvlp_jax.build import batch_shapes
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.export import export
from medvlp_jax.interop import load_tensors, save_safetensors
from medvlp_jax.trained import open_run


def test_import_gives_the_identical_variables(trained, exported, data, tmp_path):
    config = tiny_config(data)
    said = []
    workdir = import_weights.import_weights(exported, tmp_path / "run", config, say=said.append)
    back = open_run(workdir)
    same(jax.device_get(back.variables), jax.device_get(trained.variables))
    assert back.step == 1
    meta = Checkpoints(workdir / "checkpoints").meta(1)
    assert (meta["imported_step"], meta["imported_from"], meta["examples_seen"]) == (4, exported.name, 0)
    # What `train` restores: the whole state on its shardings, with an optimizer that has seen nothing.
    mesh = sharding.make_mesh(1, 1, devices=jax.local_devices()[:1])
    tx = optim.optimizer(config.optimizer, 4)
    _, target = steps.sharded_state(back.model, tx, batch_shapes(config, 16), 0, mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(1, target)
    assert int(state["step"]) == 1
    same(jax.device_get(state["opt_state"]), jax.device_get(tx.init(state["params"])))
    # And exported again it keeps the step that the weights were trained for.
    again = export(workdir, say=said.append)
    assert json.loads((again / "medvlp_jax.json").read_text())["step"] == 4
    for name in ("trunk.safetensors", "heads.safetensors", "model.json", "text/model.safetensors"):
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name


def test_import_without_config_takes_the_exported_one(exported, data, tmp_path):
    overrides = [f"--config.data.dir={data}", "--config.total_steps=9"]
    config = import_weights.parse_config(None, overrides, exported)
    assert config.text.weights == str(exported / "text")
    assert (config.total_steps, config.data.dir) == (9, str(data))
    import_weights.import_weights(exported, tmp_path / "run", config, step=4, say=lambda _: None)
    assert open_run(tmp_path / "run").step == 4


def state_dict(exported):
    return import_weights.read_tensors(exported)


def test_import_of_a_torch_file_and_its_pickles(exported, data, trained, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(np.array(array)) for name, array in state_dict(exported).items()}
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    config = tiny_config(data)
    import_weights.import_weights(tmp_path / "model.pt", tmp_path / "run", config, say=lambda _: None)
    same(jax.device_get(open_run(tmp_path / "run").variables), jax.device_get(trained.variables))

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": state, "notes": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        import_weights.import_weights(tmp_path / "evil.pt", tmp_path / "run2", config)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run2").exists()
    import_weights.import_weights(
        tmp_path / "evil.pt", tmp_path / "run2", config, trust_pickle=True, say=lambda _: None
    )
    assert (tmp_path / "ran").exists()


def test_import_lists_everything_that_does_not_fit(exported, data, tmp_path):
    tensors = state_dict(exported)
    tensors["trunk.conv1.weight"] = tensors["trunk.conv1.weight"][:3]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    del tensors["text_head.linear1.bias"]
    save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="do not fit the resnet model") as error:
        import_weights.import_weights(tmp_path / "model.safetensors", tmp_path / "run", tiny_config(data))
    for words in (
        "conv1.weight: (3, 1, 7, 7) in the file, (8, 1, 7, 7)",
        "missing (1): text_head.linear1.bias",
        "unexpected (1): extra.weight",
    ):
        assert words in str(error.value)
    assert not (tmp_path / "run").exists()
    trunk = load_tensors(exported / "trunk.safetensors")
    save_safetensors(tmp_path / "trunk.safetensors", trunk)
    with pytest.raises(ValueError, match=r"encoder alone.*model\.trunk\.weights=FILE"):
        import_weights.import_weights(tmp_path / "trunk.safetensors", tmp_path / "run", tiny_config(data))
    save_safetensors(tmp_path / "model.safetensors", tensors | {"extra.weight": np.full(2, np.nan)})
    with pytest.raises(ValueError, match=r"not finite, in extra\.weight"):
        import_weights.read_tensors(tmp_path / "model.safetensors")


def import_command(source, workdir, data, *more):
    overrides = tiny.overrides(data, **{"model.read.eval_draws": 2})
    fields = [f"--config.{name}={value}" for name, value in overrides.items()]
    config = ["--config", str(tiny.REPOSITORY / "configs/imitate.py:demo")]
    return import_weights.main(["--from", str(source), "--workdir", str(workdir), *config, *fields, *more])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda copy: (copy / "trunk.safetensors").write_bytes(b"short"), "SHA-256"),
        (lambda copy: (copy / "heads.safetensors").unlink(), "heads.safetensors is missing"),
        (lambda copy: (copy / "medvlp_jax.json").write_text("{"), "is damaged"),
        (
            lambda copy: ((copy / "medvlp_jax.json").unlink(), (copy / "trunk.safetensors").write_bytes(b"short")),
            "not a readable safetensors file",
        ),
    ],
)
def test_import_of_damaged_folders(copy, data, tmp_path, capsys, damage, words):
    damage(copy)
    assert import_command(copy, tmp_path / "run", data) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_import_refusals(exported, run, data, tmp_path, capsys):
    refused = {
        "already holds a run": (exported, run),
        "nothing at --from": (tmp_path / "none", tmp_path / "run"),
    }
    for words, (source, workdir) in refused.items():
        assert import_command(source, workdir, data) == 1
        assert words in capsys.readouterr().err
    for field, words in {
        "--config.model.read.heads=2": "model.read.heads: exported 4, asked 2",
        "--config.text.max_length=32": "text tower of this config is not the one",
        "--config.totl_steps=3": "totl_steps",
        "--config.total_steps=many": "invalid literal",
    }.items():
        assert import_command(exported, tmp_path / "run", data, field) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    for config, words in {"configs/imitate.py:dmeo": "Did you mean 'demo'?", "none.py": "no config file"}.items():
        path = str(tiny.REPOSITORY / config)
        source = ["--from", str(exported), "--workdir", str(tmp_path / "run")]
        assert import_weights.main([*source, "--config", path]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
