"""Pretrained encoders from a folder, a file or the Hugging Face hub, and back to a folder transformers opens."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from medvlp_jax.encoders.bert import Bert, BertConfig, BertForMaskedLM
from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.encoders.vit import ViT
from medvlp_jax.interop.convert import from_torch_names, to_torch_names
from medvlp_jax.interop.tensors import load_tensors, save_safetensors

# Heads that checkpoints carry beside the encoder; the second belongs to the CXR-BERT of microsoft/hi-ml.
_BERT_HEADS = (r"cls\..*", r"cls_projection_head\..*")


def load_bert(weights: str | Path, *, num_layers: int | None = None, pooler: bool = False) -> tuple[BertConfig, dict]:
    """Loads a BERT encoder.

    Args:
        weights: folder with `config.json` and weights (see `load_tensors`), or a hub repository 'owner/name'.
        num_layers: keep only the first layers; default all.
        pooler: also load the tanh pooler (`Bert(config, pooler=True)`).

    Returns:
        config and {'params': ...} (float32 numpy) for `Bert(config, pooler=pooler)`.

    Raises:
        FileNotFoundError: no such folder, or a repository that is neither cached nor reachable.
        ValueError: not a BERT, or weights that do not fit it (names and shapes listed).
    """
    folder = resolve_weights(weights)
    full = BertConfig.from_json(_config_file(folder))
    config = _cut(full, num_layers)
    ignore = list(_BERT_HEADS)
    if not pooler:
        ignore.append(r"pooler\..*")
    if config != full:
        cut = map(str, range(config.num_hidden_layers, full.num_hidden_layers))
        ignore.append(rf"encoder\.layer\.({'|'.join(cut)})\..*")
    ids = jnp.zeros((1, 2), jnp.int32)
    like = jax.eval_shape(Bert(config, pooler=pooler).init, jax.random.key(0), ids, ids)
    params, _ = from_torch_names(load_tensors(folder), "bert", like, ignore=ignore)
    return config, {"params": params}


def load_bert_config(weights: str | Path, *, num_layers: int | None = None) -> tuple[BertConfig, bool]:
    """Shape of a BERT from `config.json` alone, without its weights and without the network.

    Returns: the shape, and whether it was found: of a hub repository that is not in the local cache, that of BERT-base.
    Raises: FileNotFoundError, ValueError as `load_bert`.
    """
    file = Path(weights).expanduser()
    if file.exists():
        return _cut(BertConfig.from_json(_config_file(file)), num_layers), True
    _check_repository(weights)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(weights), "config.json")
    found = isinstance(cached, str)
    return _cut(BertConfig.from_json(cached) if found else BertConfig(), num_layers), found


def _config_file(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{str(folder)!r} has no config.json; a BERT folder holds config.json and weights.")
    return folder / "config.json"


def _cut(config: BertConfig, num_layers: int | None) -> BertConfig:
    """The shape with its first layers only."""
    if num_layers is None:
        return config
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise ValueError(f"num_layers={num_layers} is not in 1..{config.num_hidden_layers}.")
    return dataclasses.replace(config, num_hidden_layers=num_layers)


def save_bert(folder: str | Path, config: BertConfig, variables: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors` that transformers and `load_bert` open.

    Args:
        variables: of `Bert` or of `BertForMaskedLM` (recognised by its `mlm_head`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    masked_lm = "mlm_head" in variables["params"]
    content = config.to_dict()
    if masked_lm:
        content["architectures"] = ["BertForMaskedLM"]
    arch = "bert_masked_lm" if masked_lm else "bert"
    save_safetensors(folder / "model.safetensors", to_torch_names({"params": variables["params"]}, arch))
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_masked_lm(weights: str | Path) -> tuple[BertConfig, dict]:
    """Like `load_bert`, with the masked-language-model head, for `BertForMaskedLM(config)`."""
    folder = resolve_weights(weights)
    config = BertConfig.from_json(folder / "config.json")
    ids = jnp.zeros((1, 2), jnp.int32)
    like = jax.eval_shape(BertForMaskedLM(config).init, jax.random.key(0), ids, ids)
    ignore = (r"bert\.pooler\..*", r"cls\.seq_relationship\..*", r"bert\.cls_projection_head\..*")
    params, _ = from_torch_names(load_tensors(folder), "bert_masked_lm", like, ignore=ignore)
    return config, {"params": params}


def load_resnet(weights: str | Path, depth: str = "50", **fields: Any) -> tuple[dict, dict]:
    """Loads a ResNet trunk saved under torchvision's names; the classifier `fc` is left out.

    Args:
        weights: file or folder (see `load_tensors`), or a hub repository 'owner/name'.
        depth, fields: of the target `ResNet`.

    Returns:
        (params, batch_stats), float32 numpy.

    Raises:
        FileNotFoundError, ValueError: as `load_bert`.
    """
    model = ResNet(depth=depth, **fields)
    image = jnp.zeros((1, 32, 32, model.in_channels))
    like = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    return from_torch_names(load_tensors(resolve_weights(weights)), "resnet", like, ignore=(r"fc\..*",))


def load_vit(weights: str | Path, model: ViT) -> dict:
    """Loads a ViT saved by timm or transformers; the spelling is recognised, classifiers are left out.

    Returns:
        {'params': ...}, float32 numpy. Mind `model.epsilon`: 1e-6 for timm, 1e-12 for transformers.

    Raises:
        FileNotFoundError, ValueError: as `load_bert`; a position table of another size is a shape mismatch.
    """
    tensors = load_tensors(resolve_weights(weights))
    image = jnp.zeros((1, model.image, model.image, model.in_channels))
    like = jax.eval_shape(lambda key: model.init(key, image), jax.random.key(0))
    if "patch_embed.proj.weight" in tensors:
        params, _ = from_torch_names(tensors, "vit_timm", like, ignore=(r"head\..*",))
    else:
        ignore = (r"classifier\..*",) if model.pooler else (r"classifier\..*", r"pooler\..*")
        params, _ = from_torch_names(tensors, "vit_transformers", like, ignore=ignore)
    return {"params": params}


def resolve_weights(weights: str | Path) -> Path:
    """A local path as it is; a hub repository 'owner/name' downloaded (or found in the cache).

    Safetensors are preferred; torch files are fetched only when a repository has nothing else.

    Raises:
        FileNotFoundError: neither a path that exists nor a repository that can be had.
    """
    path = Path(weights).expanduser()
    if path.exists():
        return path
    _check_repository(weights)
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(weights), allow_patterns=["config.json", "model*.safetensors*"]))
        if not list(folder.glob("*.safetensors*")):
            folder = Path(snapshot_download(str(weights), allow_patterns=["config.json", "pytorch_model*.bin*"]))
    except Exception as error:
        raise FileNotFoundError(
            f"{str(weights)!r} is no local path, and as a Hugging Face repository it could not be fetched "
            f"({type(error).__name__}). On a machine without network, copy the repository's config.json and "
            "model.safetensors into a folder and give that folder; a gated repository needs `hf auth login`."
        ) from error
    return folder


def _check_repository(weights: str | Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(weights)):
        raise FileNotFoundError(f"{str(weights)!r} is neither an existing path nor a hub repository 'owner/name'.")
