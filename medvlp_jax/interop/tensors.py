"""Reading and writing files of named tensors; no pickle is executed unless the caller asks for it by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def load_tensors(path: str | Path, *, trust_pickle: bool = False) -> dict[str, np.ndarray]:
    """All tensors of a file or model folder, by name.

    Args:
        path: a `.safetensors` file, a sharded `*.index.json`, a torch file (.bin .pt .pth .ckpt; opened with
            `weights_only=True`, a `state_dict` entry is unwrapped), or a folder holding one of the usual names
            (safetensors preferred).
        trust_pickle: open torch files without `weights_only`, which runs any code that their author put in. Only for
            files that you wrote yourself.

    Returns:
        name -> numpy array in the stored dtype (bfloat16 through ml_dtypes).

    Raises:
        FileNotFoundError: nothing readable there.
        ImportError: a torch file without torch installed.
        ValueError: an unknown suffix, a damaged file, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = _find(path)
    if not path.exists():
        raise FileNotFoundError(f"No weights file at {str(path)!r}.")
    if path.name.endswith(".index.json"):
        return _load_shards(path, trust_pickle)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _load_torch(path, trust_pickle)
    raise ValueError(
        f"Cannot read weights from {path.name!r}: use .safetensors, its .index.json, or a torch file "
        f"({' '.join(_TORCH_SUFFIXES)})."
    )


def save_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None):
    """Writes named arrays to a `.safetensors` file, bit-exact, replacing it only when complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    partial = path.with_name(path.name + ".tmp")
    save_file(arrays, partial, metadata={"format": "pt", **(metadata or {})})
    partial.replace(path)


def _find(folder: Path) -> Path:
    for name in (*_SAFETENSORS, *_TORCH):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"No weights in folder {str(folder)!r}; looked for {', '.join((*_SAFETENSORS, *_TORCH))}.")


def _load_shards(index: Path, trust_pickle: bool) -> dict[str, np.ndarray]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index.name!r} is not an index of weight shards: no 'weight_map'.") from error
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index.name!r} names the shard {shard!r} outside its own folder.")
        tensors.update(load_tensors(index.parent / shard, trust_pickle=trust_pickle))
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise ValueError(f"{index.name!r} promises tensors that its shards lack: {missing[:10]}.")
    return tensors


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name!r} is not a readable safetensors file: {error}.") from error


def _load_torch(path: Path, trust_pickle: bool) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path.name!r} is a torch file; reading it needs torch (pip install 'medvlp_jax[torch]'). "
            "A .safetensors file needs nothing."
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:
        if trust_pickle:
            raise ValueError(f"torch cannot read {path.name!r} ({type(error).__name__}): it is damaged.") from error
        raise ValueError(
            f"torch refused {path.name!r} with weights_only=True: the file is damaged or holds arbitrary Python "
            "objects, which are not unpickled here. Re-save its state_dict, best as .safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path.name!r} holds no state_dict (a mapping of names to tensors).")
    return {name: _numpy(tensor.detach().contiguous(), torch) for name, tensor in content.items()}


def _numpy(tensor, torch) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
