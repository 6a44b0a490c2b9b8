"""Weights become a run:  python -m medvlp_jax.import_weights --from exports/demo --workdir runs/again

The way back from `python -m medvlp_jax.export`: an exported folder, or one file (.safetensors, .pt, .bin) with the
state_dict of its `modeling.py`, becomes a run folder with one checkpoint that evaluation, prediction and training start
from. Every tensor must fit. The optimizer starts anew; the exported step is kept in the checkpoint's metadata. Without
--config the folder's own config is taken. Fields are overridden as --config.total_steps=500.
To start training from an image encoder alone, use --config.model.trunk.weights=FILE of medvlp_jax.main instead.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from medvlp_jax import build, methods, optim, text_tower
from medvlp_jax import config as configs
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import CheckpointError, Checkpoints
from medvlp_jax.export import parts
from medvlp_jax.export.write import MANIFEST, file_record
from medvlp_jax.interop import from_torch_names, load_tensors

# Fields under which the same tensors would compute something else. Others may change: data, optimizer, loss, size.
MEANING = ("method", "model.", "image.mean", "image.std")
FREE = (
    *("model.dtype", "model.bn.", "model.read.draws"),
    *("model.trunk.weights", "model.trunk.remat", "model.trunk.zero_init_last_bn"),
)
TOWER = (
    "The text tower of this config is not the one that the weights were trained with (weights, layers, pooling, "
    "max_length or dtype differ). Use --config.text.weights={folder} --config.text.layers=0"
)


def import_weights(
    source: str | Path,
    workdir: str | Path,
    config: Any,
    *,
    step: int = 1,
    trust_pickle: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes `config.json` and a checkpoint with the weights of `source` into a new run folder; returns it.

    Args:
      source: exported folder, or a file with every tensor of `modeling.Imitate.state_dict()`.
      step: number of the checkpoint. 1 leaves training a whole schedule; a larger one counts as trained.
      trust_pickle: also open torch files that hold more than tensors; see `interop.load_tensors`.
    Raises: FileNotFoundError; FileExistsError for a folder with checkpoints; ValueError for weights of another model,
      listing missing, unexpected and misshapen tensors, for damaged files or another config; CheckpointError.
    """
    source, workdir = Path(source), Path(workdir)
    if step < 1:
        raise ValueError(f"step={step} must be at least 1: training starts before the first step without a checkpoint.")
    if not source.exists():
        raise FileNotFoundError(f"There is nothing at --from={str(source)!r}.")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        if checkpoints.all_steps():
            raise FileExistsError(f"{str(workdir)!r} already holds a run with checkpoints. Choose another --workdir.")
    manifest = read_manifest(source)
    tower = text_tower.of_config(config)
    if manifest is not None:
        _same_meaning(manifest["config"], config)
        if manifest["text_tower"] != tower.key:
            raise ValueError(TOWER.format(folder=source / "text"))
    variables = _variables(read_tensors(source, trust_pickle=trust_pickle), config, tower)
    # The schedule's length is no part of the fresh optimizer state.
    total_steps = config.total_steps or max(step, config.optimizer.warmup_steps) + 1
    state = steps.start_state(variables, optim.optimizer(config.optimizer, total_steps), config.seed)
    state["step"] = jnp.asarray(step, jnp.int32)
    meta = {"examples_seen": 0, "seconds": 0.0, "method": config.method, "batch_size": config.batch_size}
    meta |= {"imported_from": source.name} | ({"imported_step": manifest["step"]} if manifest else {})
    workdir.mkdir(parents=True, exist_ok=True)
    configs.claim_workdir(config, workdir)
    with Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints) as checkpoints:
        checkpoints.save(step, state, meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    say(f"imported  {count:,} numbers from {source} into {workdir / 'checkpoints' / str(step)}")
    return workdir


def read_manifest(source: Path) -> dict[str, Any] | None:
    """The manifest of an exported folder, its files checked; None for a file or a folder without.

    Raises: ValueError for a damaged manifest or a tensor file that is not the one it names.
    """
    path = source / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: manifest["files"][name] for name in (parts.TRUNK, parts.HEADS)}
        _ = manifest["config"], manifest["text_tower"], manifest["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). Export again.") from error
    for name, record in expected.items():
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} is missing; the manifest {MANIFEST} names it. Copy it again.")
        if file_record(source / name) != record:
            raise ValueError(
                f"{source / name} is not the file that was exported (SHA-256 in {MANIFEST}): copy it again, or, if you "
                f"changed it on purpose, remove {MANIFEST} and give --config."
            )
    return manifest


def exported_config(source: str | Path) -> Any:
    """The config in an exported folder, with the text tower of that folder.

    Raises: ValueError when `source` is no exported folder.
    """
    manifest = read_manifest(Path(source))
    if manifest is None:
        raise ValueError(f"{str(source)!r} carries no config ({MANIFEST}): give one with --config.")
    config = configs.from_flat(manifest["config"])
    with config.unlocked():
        config.text.weights, config.text.layers = str(Path(source) / "text"), 0
    return config


def read_tensors(source: Path, *, trust_pickle: bool = False) -> dict[str, np.ndarray]:
    """All tensors of an exported folder or of one file, those of the trunk as `trunk.<name>`. Raises: ValueError."""
    if source.is_dir():
        trunk = {f"trunk.{name}": array for name, array in load_tensors(source / parts.TRUNK).items()}
        tensors = trunk | load_tensors(source / parts.HEADS)
    else:
        tensors = load_tensors(source, trust_pickle=trust_pickle)
    broken = [name for name, array in tensors.items() if not np.isfinite(array.astype(np.float32)).all()]
    if broken:
        raise ValueError(f"{source} holds values that are not finite, in {', '.join(broken[:5])}.")
    return tensors


def _variables(tensors: Mapping[str, np.ndarray], config: Any, tower: text_tower.TextTower) -> dict[str, Any]:
    """The model's variables from named tensors, and from `text.weights` where the text tower is a part of it.

    Raises: ValueError listing everything that does not fit.
    """
    parts.known(config.method)
    model = methods.get(config.method).build(config, tower.config)
    batch = build.batch_shapes(config, tower.width)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, batch, config.seed))
    trunk_shapes, heads_shapes = parts.split(shapes)
    trunk = {name.removeprefix("trunk."): array for name, array in tensors.items() if name.startswith("trunk.")}
    heads = {name: array for name, array in tensors.items() if not name.startswith("trunk.")}
    if not trunk and "conv1.weight" in heads:
        raise ValueError(
            "The file holds an image encoder alone (no tensor is called trunk.*). Train from it with: "
            "python -m medvlp_jax.main --config.model.trunk.weights=FILE ..."
        )
    merged: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    problems = []
    arch = parts.trunk_arch(parts.trunk_of(model, shapes))
    for named, table, like in ((trunk, arch, trunk_shapes), (heads, parts.heads_arch(config.method), heads_shapes)):
        try:
            params, batch_stats = from_torch_names(named, table, like)
        except ValueError as error:
            problems.append(str(error))
            continue
        wrap = (lambda tree: {"trunk": tree}) if like is trunk_shapes else (lambda tree: tree)
        merged["params"] |= wrap(params)
        merged["batch_stats"] |= wrap(batch_stats) if batch_stats else {}  # a ViT has none
    if problems:
        raise ValueError("\n".join(problems))
    if config.text.trained:
        merged["params"]["text_tower"] = tower.variables["params"]
    # Same order of entries as the model's own.
    return jax.tree.map(lambda shape, array: jnp.asarray(array, shape.dtype), shapes, merged)


def _same_meaning(exported: Mapping[str, Any], config: Any) -> None:
    asked = json.loads(json.dumps(configs.flat(config)))
    means = lambda name: name.startswith(MEANING) and not name.startswith(FREE)  # noqa: E731
    differ = configs.differences(exported, asked, ("exported", "asked"), means)
    if differ:
        raise ValueError(
            "The weights were exported from another config:\n  " + "\n  ".join(differ) + "\n"
            "Use the config that they were trained with, or leave --config out to take the exported one."
        )


def parse_config(path: str | None, overrides: Sequence[str], source: str | Path) -> Any:
    """The config of `--config path`, or else of the exported folder, with `--config.field=value` overrides.

    Raises: ValueError naming the field or word that is not known; FileNotFoundError for a missing config file.
    """
    values, arguments = flags.FlagValues(), ["import_weights", *overrides]
    if path is None:
        config_flags.DEFINE_config_dict("config", exported_config(source), flag_values=values, sys_argv=arguments)
    else:
        if not os.path.exists(path.partition(":")[0]):
            raise FileNotFoundError(f"There is no config file {path.partition(':')[0]!r}.")
        arguments.insert(1, f"--config={path}")
        config_flags.DEFINE_config_file("config", None, "Config.", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        return values.config
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        # The last line says what is wrong; what precedes it may be a traceback of the config file.
        raise ValueError(f"--config: {str(error).strip().splitlines()[-1]}") from error


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.import_weights", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="source", required=True, help="exported folder, or a file of tensors")
    parser.add_argument("--workdir", required=True, help="run folder to make")
    parser.add_argument("--config", help="config file with arguments (default: the config in the exported folder)")
    parser.add_argument("--step", type=int, default=1, help="number of the checkpoint (default: 1)")
    parser.add_argument(
        "--trust_pickle", action="store_true", help="run the code inside a .pt or .bin file: only for files of your own"
    )
    args, overrides = parser.parse_known_args(argv)
    wrong = [word for word in overrides if not word.startswith("--config.")]
    if wrong:
        parser.error(f"unknown arguments: {' '.join(wrong)}")
    try:
        config = parse_config(args.config, overrides, args.source)
        import_weights(args.source, args.workdir, config, step=args.step, trust_pickle=args.trust_pickle)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the run folder may lack its checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
