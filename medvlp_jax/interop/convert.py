"""Parameter trees <-> torch state dicts, strict in both directions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from medvlp_jax.interop import names

Tensors = dict[str, np.ndarray]


def from_torch_names(
    tensors: Mapping[str, np.ndarray], arch: str, like: Mapping[str, Any], *, ignore: Sequence[str] = ()
) -> tuple[dict, dict]:
    """Converts a state dict into Linen variables.

    Args:
        tensors: torch names -> arrays. Accepted spellings: for BERT with or without the prefix `bert.` and with
            `LayerNorm.gamma/beta`; for transformers' ViT with or without `vit.`, and both the names on disk
            (`encoder.layer.0...`) and those in memory (`layers.0...`). `num_batches_tracked` and `position_ids` are
            dropped; so is a tied decoder that equals the word table.
        arch: 'resnet', 'bert', 'bert_masked_lm', 'vit_transformers', 'vit_timm', or the heads of a method, all but its
            trunk and text tower: 'imitate_heads', 'two_towers_heads'.
        like: variables of the target model, arrays or `jax.ShapeDtypeStruct` (from `jax.eval_shape`): its shapes.
        ignore: regular expressions of (canonical) torch names that may be left over, e.g. r'fc\\..*'.

    Returns:
        (params, batch_stats) in the dtype of `like`; batch_stats is empty for models without.

    Raises:
        ValueError: unknown arch; or one message listing missing names, unexpected names and shape mismatches.
    """
    table = _table(arch)
    tensors = _CANONICAL[arch](tensors)
    leaves = _flatten(like)
    places = {path: names.place(table, path) for path in leaves}

    missing = sorted(place.name for place in places.values() if place.name not in tensors)
    used = {place.name for place in places.values()}
    unexpected = sorted(
        name for name in tensors if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignore)
    )
    converted: dict[str, np.ndarray] = {}
    mismatched: list[str] = []
    for path, place in places.items():
        if place.name not in tensors:
            continue
        shape = tuple(leaves[path].shape)
        array = names.to_linen(tensors[place.name], place.layout, shape)
        if array is None:
            expected = names.torch_shape(place.layout, shape)
            mismatched.append(f"{place.name}: {tuple(tensors[place.name].shape)} in the file, {expected} in the model")
        else:
            converted[path] = np.array(array, dtype=leaves[path].dtype, order="C")
    if missing or unexpected or mismatched:
        raise ValueError(_report(arch, missing, unexpected, mismatched))
    variables = traverse_util.unflatten_dict(converted, sep="/")
    return variables.get("params", {}), variables.get("batch_stats", {})


def to_torch_names(variables: Mapping[str, Any], arch: str) -> Tensors:
    """Converts Linen variables {'params': ..., 'batch_stats': ...} into a state dict that torch loads strictly.

    BERT comes without the `bert.` prefix ('bert') or with it ('bert_masked_lm'); ViT with the names transformers writes
    to disk. Batch norms get their `num_batches_tracked`.

    Raises:
        ValueError: unknown arch. KeyError: a variable without a torch name.
    """
    table = _table(arch)
    tensors: Tensors = {}
    for path, leaf in _flatten(variables).items():
        place = names.place(table, path)
        tensors[place.name] = names.to_torch(np.asarray(leaf), place.layout)
    norms = [name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")]
    tensors |= {f"{norm}.num_batches_tracked": np.asarray(0, np.int64) for norm in norms}
    if arch == "vit_timm":
        tensors = _fuse_qkv(tensors)
    return tensors


def _table(arch: str) -> list[names.Row]:
    if arch not in names.TABLES:
        raise ValueError(f"arch={arch!r} is unknown. Choose one of {', '.join(names.TABLES)}.")
    return names.TABLES[arch]


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    tree = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    if not tree:
        raise ValueError(f"Expected variables with 'params' (and 'batch_stats'), got keys {sorted(variables)}.")
    return traverse_util.flatten_dict(tree, sep="/")


def _report(arch: str, missing: list[str], unexpected: list[str], mismatched: list[str]) -> str:
    lines = [f"These weights do not fit the {arch} model:"]
    for title, items in (("missing", missing), ("unexpected", unexpected), ("shape mismatch", mismatched)):
        if items:
            more = f", and {len(items) - 20} more" if len(items) > 20 else ""
            lines.append(f"  {title} ({len(items)}): {', '.join(items[:20])}{more}")
    return "\n".join(lines)


def _without_counters(tensors: Mapping[str, np.ndarray]) -> Tensors:
    return {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}


def _canonical_bert(tensors: Mapping[str, np.ndarray]) -> Tensors:
    result: Tensors = {}
    for name, array in tensors.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        new = new.removeprefix("bert.")
        if new == "embeddings.position_ids":
            continue
        if new in result:
            raise ValueError(f"Two tensors of the file are spellings of {new!r}; keep one of them.")
        result[new] = array
    return result


def _canonical_bert_masked_lm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    result = _canonical_bert(tensors)
    # Older files store the tied decoder again. A decoder that is not tied cannot be represented, and stays unexpected.
    ties = {"decoder.weight": "embeddings.word_embeddings.weight", "decoder.bias": "cls.predictions.bias"}
    for copy, original in ties.items():
        copy = f"cls.predictions.{copy}"
        if copy in result and original in result and np.array_equal(result[copy], result[original]):
            del result[copy]
    return {name if name.startswith("cls.") else f"bert.{name}": array for name, array in result.items()}


_VIT_IN_MEMORY = (
    (r"layers\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.attention.query."),
    (r"layers\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.attention.key."),
    (r"layers\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.attention.value."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.layernorm_", r"encoder.layer.\1.layernorm_"),
)


def _canonical_vit_transformers(tensors: Mapping[str, np.ndarray]) -> Tensors:
    result: Tensors = {}
    for name, array in tensors.items():
        name = name.removeprefix("vit.")
        for pattern, replacement in _VIT_IN_MEMORY:
            name = re.sub(f"^{pattern}", replacement, name)
        if name in result:
            raise ValueError(f"Two tensors of the file are spellings of {name!r}; keep one of them.")
        result[name] = array
    return result


def _canonical_vit_timm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    result: Tensors = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.qkv)\.(weight|bias)", name)
        if match and array.shape[0] % 3 == 0:
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                result[f"{match[1]}/{part}.{match[2]}"] = piece
        else:
            result[name] = array
    return result


def _fuse_qkv(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for name, array in tensors.items():
        if "/" not in name:
            result[name] = array
        elif "/query." in name:
            parts = [tensors[name.replace("/query.", f"/{part}.")] for part in ("query", "key", "value")]
            result[name.replace("/query.", ".")] = np.concatenate(parts)
    return result


_CANONICAL: dict[str, Callable[[Mapping[str, np.ndarray]], Tensors]] = {
    "resnet": _without_counters,
    "bert": _canonical_bert,
    "bert_masked_lm": _canonical_bert_masked_lm,
    "vit_transformers": _canonical_vit_transformers,
    "vit_timm": _canonical_vit_timm,
    "imitate_heads": _without_counters,
    "two_towers_heads": _without_counters,
    "local_towers_heads": _without_counters,
    "lovt_heads": _without_counters,
    "composed_heads": _without_counters,
}
