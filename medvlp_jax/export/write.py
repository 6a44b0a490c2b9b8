"""Writing the exported folder, whole or not at all."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from medvlp_jax import __version__
from medvlp_jax import config as configs
from medvlp_jax.checkpoint import Checkpoints, disk_full
from medvlp_jax.export import card, onnx_graph, parts
from medvlp_jax.export.check import check as check_folder
from medvlp_jax.interop import save_safetensors
from medvlp_jax.trained import Trained, open_run

MANIFEST = "medvlp_jax.json"
ONNX = "image_embedder.onnx"
PACKAGES = ("jax", "flax", "numpy", "safetensors", "transformers", "tokenizers")


class ExportError(RuntimeError):
    """An export that is written but does not compute what the run computes, or that could not be written."""


def export(
    workdir: str | Path,
    out: str | Path | None = None,
    *,
    step: int | None = None,
    data_dir: str | Path | None = None,
    check: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes one checkpoint of a run as files that need no medvlp_jax, and returns their folder.

    Args:
      out: default `<workdir>/export`. overwrite: replace an earlier export there.
      step: of the checkpoint, the newest by default. data_dir: where data and text towers are, when they moved.
      check: load the result in plain PyTorch (and ONNX Runtime) and compare with JAX; needs the extra `torch`.
    Raises: FileNotFoundError, ValueError or CheckpointError as `trained.open_run`; FileExistsError for a folder that is
      not empty; ValueError for a method that has no names yet; ExportError when the disk is full or a check fails.
    """
    if check and importlib.util.find_spec("torch") is None:
        raise ImportError("--check compares with PyTorch: pip install 'medvlp_jax[torch]', or export without --check.")
    out = Path(out) if out is not None else Path(workdir) / "export"
    _refuse_occupied(out, overwrite)
    trained = open_run(workdir, step=step, data_dir=data_dir)
    token = secrets.token_hex(4)
    new, old = (out.with_name(f".{out.name}.{what}-{token}") for what in ("new", "old"))
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"Cannot write in {out.parent}: {error.strerror}. Choose another --out.") from error
    try:
        _write(trained, new, say)
        if out.exists():
            out.rename(old)
        new.rename(out)
    except Exception as error:
        if disk_full(error):
            size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file()) / 1e6
            raise ExportError(
                f"No space left on the device for {out} (after {size:.0f} MB). Free space, or choose another --out."
            ) from error
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"exported  step {trained.step} of {trained.workdir}: {out}  ({total / 1e6:.1f} MB)")
    if check and not check_folder(trained, out, say):
        raise ExportError(f"{out} does not compute what the run computes; see the lines above. Do not use it.")
    return out


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{str(out)!r} is a file. Choose another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise FileExistsError(f"{str(out)!r} is not empty and holds no export ({MANIFEST}). Choose another --out.")
    if not overwrite:
        raise FileExistsError(f"{str(out)!r} already holds an export. Add --overwrite, or choose another --out.")


def _write(trained: Trained, folder: Path, say: Callable[[str], None]) -> None:
    model, recipe = parts.describe(trained), parts.preprocessor(trained.config)
    trunk, heads = parts.tensors(trained)
    save_safetensors(folder / parts.TRUNK, trunk)
    save_safetensors(folder / parts.HEADS, heads)
    parts.write_json(folder / parts.MODEL, model)
    parts.write_json(folder / parts.PREPROCESSOR, recipe)
    parts.write_text(folder / "text", trained.tower)
    files = [("assets", "modeling.py"), *([("data", "sentences.py")] if "max_sentences" in model["text"] else [])]
    for place, name in files:
        source = resources.files("medvlp_jax") / place / name
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    if model["trunk"]["kind"] != "resnet":
        say(f"onnx      left out: no graph of a trunk of the kind {model['trunk']['kind']!r} yet")
    elif onnx_graph.available():
        onnx_graph.save(folder / ONNX, onnx_graph.build(model, trunk, heads))
    else:
        say("onnx      left out: pip install 'medvlp_jax[onnx]' and export again to get it")
    with Checkpoints(trained.workdir / "checkpoints") as checkpoints:
        meta = checkpoints.meta(trained.step)
    text = card.write(trained, model, meta, onnx=(folder / ONNX).exists())
    (folder / "README.md").write_text(text, encoding="utf-8")
    parts.write_json(folder / MANIFEST, _manifest(trained, meta, folder))
    for path in folder.rglob("*.safetensors"):  # made for its owner alone; here as readable as the rest
        path.chmod((folder / MANIFEST).stat().st_mode)


def _manifest(trained: Trained, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "format": 1,
        "medvlp_jax": __version__,
        "versions": {"python": platform.python_version(), **versions},
        "method": trained.config.method,
        "step": meta.get("imported_step", trained.step),
        "checkpoint": meta,
        "config": published(trained.config),
        "text_tower": trained.tower.key,
        "files": {path.relative_to(folder).as_posix(): file_record(path) for path in files},
    }


def published(config: Any) -> dict[str, Any]:
    """The config as dotted names, without the places of this machine: local paths keep their last part only."""
    flat = json.loads(json.dumps(configs.flat(config)))
    for name in ("data.dir", "text.weights", "model.trunk.weights"):
        if os.path.isabs(str(flat.get(name, ""))):
            flat[name] = Path(flat[name]).name
    return flat


def file_record(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
