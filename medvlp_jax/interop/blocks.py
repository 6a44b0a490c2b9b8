"""Small torch blocks <-> Linen sub-trees: attention, and stacks of Linear, BatchNorm, LayerNorm or Conv."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlp_jax.interop.names import to_linen, to_torch

# kind -> ((collection, Linen leaf, torch leaf, layout), ...)
KINDS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "linear": (("params", "kernel", "weight", "linear"), ("params", "bias", "bias", "same")),
    "conv": (("params", "kernel", "weight", "conv"), ("params", "bias", "bias", "same")),
    "layer_norm": (("params", "scale", "weight", "same"), ("params", "bias", "bias", "same")),
    "batch_norm": (
        ("params", "scale", "weight", "same"),
        ("params", "bias", "bias", "same"),
        ("batch_stats", "mean", "running_mean", "same"),
        ("batch_stats", "var", "running_var", "same"),
    ),
}
_OPTIONAL = {"bias", "scale"}  # bias-free layers and norms without affine parameters


def attention_from_torch(tensors: Mapping[str, np.ndarray], prefix: str, heads: int) -> dict[str, dict]:
    """`torch.nn.MultiheadAttention` (one width for query, key and value) -> {query, key, value, out}.

    Args:
        tensors: holds `{prefix}in_proj_weight` [3E, E], `in_proj_bias`, `out_proj.weight`, `out_proj.bias`.
        prefix: with its trailing dot, or ''.
        heads: number of heads; must divide E.

    Returns:
        kernels [E, H, D] for query, key, value and [H, D, E] for out; biases [H, D] and [E] where torch has them.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    weight = _get(tensors, f"{prefix}in_proj_weight")
    width = weight.shape[-1]
    if weight.shape != (3 * width, width) or width % heads:
        raise ValueError(f"{prefix}in_proj_weight has shape {weight.shape}, which does not fit heads={heads}.")
    tree: dict[str, dict] = {}
    bias = tensors.get(f"{prefix}in_proj_bias")
    for i, name in enumerate(("query", "key", "value")):
        rows = slice(i * width, (i + 1) * width)
        tree[name] = {"kernel": np.ascontiguousarray(weight[rows].T).reshape(width, heads, width // heads)}
        if bias is not None:
            tree[name]["bias"] = np.array(bias[rows]).reshape(heads, width // heads)
    out = _get(tensors, f"{prefix}out_proj.weight")
    tree["out"] = {"kernel": np.ascontiguousarray(out.T).reshape(heads, width // heads, width)}
    if f"{prefix}out_proj.bias" in tensors:
        tree["out"]["bias"] = np.array(tensors[f"{prefix}out_proj.bias"])
    return tree


def attention_to_torch(tree: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, np.ndarray]:
    """Inverse of `attention_from_torch`."""
    parts = [tree[name] for name in ("query", "key", "value")]
    tensors = {
        f"{prefix}in_proj_weight": np.concatenate([to_torch(np.asarray(p["kernel"]), "heads_in") for p in parts]),
        f"{prefix}out_proj.weight": to_torch(np.asarray(tree["out"]["kernel"]), "heads_out"),
    }
    if "bias" in parts[0]:
        tensors[f"{prefix}in_proj_bias"] = np.concatenate([np.asarray(p["bias"]).reshape(-1) for p in parts])
    if "bias" in tree["out"]:
        tensors[f"{prefix}out_proj.bias"] = np.asarray(tree["out"]["bias"])
    return tensors


def layers_from_torch(tensors: Mapping[str, np.ndarray], layers: Mapping[str, tuple[str, str]]) -> tuple[dict, dict]:
    """A stack of simple layers -> (params, batch_stats).

    Args:
        tensors: torch state dict.
        layers: Linen name -> (torch prefix without dot, kind of `KINDS`), e.g.
            {'linear1': ('mlp.0', 'linear'), 'norm1': ('mlp.1', 'batch_norm'), 'linear2': ('mlp.3', 'linear')}.

    Raises:
        ValueError: an unknown kind, or a missing tensor (biases and affine parameters may be absent).
    """
    trees: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for linen_name, (prefix, kind) in layers.items():
        for collection, leaf, torch_leaf, layout in _kind(kind):
            name = f"{prefix}.{torch_leaf}"
            if name not in tensors and leaf in _OPTIONAL:
                continue
            array = _get(tensors, name)
            shape = _linen_shape(array, layout)
            trees[collection].setdefault(linen_name, {})[leaf] = np.array(to_linen(array, layout, shape), order="C")
    return trees["params"], trees["batch_stats"]


def layers_to_torch(
    params: Mapping[str, Any], batch_stats: Mapping[str, Any], layers: Mapping[str, tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Inverse of `layers_from_torch`; batch norms get `num_batches_tracked`."""
    trees = {"params": params, "batch_stats": batch_stats}
    tensors: dict[str, np.ndarray] = {}
    for linen_name, (prefix, kind) in layers.items():
        for collection, leaf, torch_leaf, layout in _kind(kind):
            leaves = trees[collection].get(linen_name, {})
            if leaf in leaves:
                tensors[f"{prefix}.{torch_leaf}"] = to_torch(np.asarray(leaves[leaf]), layout)
            elif leaf not in _OPTIONAL:
                raise ValueError(f"{collection}/{linen_name}/{leaf} is missing from the variables.")
        if kind == "batch_norm":
            tensors[f"{prefix}.num_batches_tracked"] = np.asarray(0, np.int64)
    return tensors


def _kind(kind: str):
    if kind not in KINDS:
        raise ValueError(f"Layer kind {kind!r} is unknown. Choose one of {', '.join(KINDS)}.")
    return KINDS[kind]


def _get(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"The tensor {name!r} is missing; the file has e.g. {sorted(tensors)[:5]}.")
    return tensors[name]


def _linen_shape(array: np.ndarray, layout: str) -> tuple[int, ...]:
    if layout == "conv":
        outputs, inputs, height, width = array.shape
        return (height, width, inputs, outputs)
    return tuple(array.shape[::-1]) if layout == "linear" else tuple(array.shape)
