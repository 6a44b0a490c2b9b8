"""Name tables: where each leaf of a Linen encoder lives in torch, and in which layout.

A table is a list of rows (regular expression over 'collection/path/of/leaf', torch name template, layout). Exactly one
row matches a leaf; a leaf no row matches is an error, so a new parameter cannot slip past.

Layouts, torch -> Linen: `same`; `linear` (out, in) -> (in, out); `conv` (O, I, H, W) -> (H, W, I, O);
`heads_in` (H*D, in) -> (in, H, D); `heads_bias` (H*D,) -> (H, D); `heads_out` (out, H*D) -> (H, D, out).
"""

import re
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One line of a table; groups of `pattern` fill `{0}`, `{1}`, ... of `name`."""

    pattern: str
    name: str
    layout: str = "same"


class TensorPlace(NamedTuple):
    """Torch name and layout of one leaf."""

    name: str
    layout: str


def _dense(pattern: str, name: str) -> list[Row]:
    return [Row(f"params/{pattern}/kernel", f"{name}.weight", "linear"), Row(f"params/{pattern}/bias", f"{name}.bias")]


def _layer_norm(pattern: str, name: str) -> list[Row]:
    return [Row(f"params/{pattern}/scale", f"{name}.weight"), Row(f"params/{pattern}/bias", f"{name}.bias")]


def _batch_norm(pattern: str, name: str) -> list[Row]:
    return [
        *_layer_norm(pattern, name),
        Row(f"batch_stats/{pattern}/mean", f"{name}.running_mean"),
        Row(f"batch_stats/{pattern}/var", f"{name}.running_var"),
    ]


def _head_projection(pattern: str, name: str) -> list[Row]:
    return [
        Row(f"params/{pattern}/kernel", f"{name}.weight", "heads_in"),
        Row(f"params/{pattern}/bias", f"{name}.bias", "heads_bias"),
    ]


def _head_output(pattern: str, name: str) -> list[Row]:
    return [
        Row(f"params/{pattern}/kernel", f"{name}.weight", "heads_out"),
        Row(f"params/{pattern}/bias", f"{name}.bias"),
    ]


def _projection_head(pattern: str, name: str) -> list[Row]:
    return [
        *_dense(rf"{pattern}/linear(\d)", f"{name}.linear{{0}}"),
        *_batch_norm(rf"{pattern}/norm(\d)", f"{name}.norm{{0}}"),
    ]


RESNET = [
    Row("params/stem_conv/kernel", "conv1.weight", "conv"),
    *_batch_norm("stem_norm", "bn1"),
    Row(r"params/stage(\d+)_block(\d+)/conv(\d)/kernel", "layer{0}.{1}.conv{2}.weight", "conv"),
    *_batch_norm(r"stage(\d+)_block(\d+)/norm(\d)", "layer{0}.{1}.bn{2}"),
    Row(r"params/stage(\d+)_block(\d+)/shortcut_conv/kernel", "layer{0}.{1}.downsample.0.weight", "conv"),
    *_batch_norm(r"stage(\d+)_block(\d+)/shortcut_norm", "layer{0}.{1}.downsample.1"),
]

BERT = [
    Row("params/word/embedding", "embeddings.word_embeddings.weight"),
    Row("params/position/embedding", "embeddings.position_embeddings.weight"),
    Row("params/token_type/embedding", "embeddings.token_type_embeddings.weight"),
    *_layer_norm("norm", "embeddings.LayerNorm"),
    *_head_projection(r"layer_(\d+)/attention/(query|key|value)", "encoder.layer.{0}.attention.self.{1}"),
    *_head_output(r"layer_(\d+)/attention/out", "encoder.layer.{0}.attention.output.dense"),
    *_layer_norm(r"layer_(\d+)/attention_norm", "encoder.layer.{0}.attention.output.LayerNorm"),
    *_dense(r"layer_(\d+)/feed_forward/up", "encoder.layer.{0}.intermediate.dense"),
    *_dense(r"layer_(\d+)/feed_forward/down", "encoder.layer.{0}.output.dense"),
    *_layer_norm(r"layer_(\d+)/feed_forward_norm", "encoder.layer.{0}.output.LayerNorm"),
    *_dense("pooler", "pooler.dense"),
]

BERT_MASKED_LM = [
    *(Row(row.pattern.replace("params/", "params/bert/"), f"bert.{row.name}", row.layout) for row in BERT),
    *_dense("mlm_head/transform", "cls.predictions.transform.dense"),
    *_layer_norm("mlm_head/norm", "cls.predictions.transform.LayerNorm"),
    Row("params/mlm_head/bias", "cls.predictions.bias"),
]

VIT_TRANSFORMERS = [
    Row("params/cls", "embeddings.cls_token"),
    Row("params/positions", "embeddings.position_embeddings"),
    Row("params/patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", "conv"),
    Row("params/patch_embedding/bias", "embeddings.patch_embeddings.projection.bias"),
    *_layer_norm(r"block_(\d+)/attention_norm", "encoder.layer.{0}.layernorm_before"),
    *_head_projection(r"block_(\d+)/attention/(query|key|value)", "encoder.layer.{0}.attention.attention.{1}"),
    *_head_output(r"block_(\d+)/attention/out", "encoder.layer.{0}.attention.output.dense"),
    *_layer_norm(r"block_(\d+)/feed_forward_norm", "encoder.layer.{0}.layernorm_after"),
    *_dense(r"block_(\d+)/feed_forward/up", "encoder.layer.{0}.intermediate.dense"),
    *_dense(r"block_(\d+)/feed_forward/down", "encoder.layer.{0}.output.dense"),
    *_layer_norm("norm", "layernorm"),
    *_dense("pooler", "pooler.dense"),
]

VIT_TIMM = [
    Row("params/cls", "cls_token"),
    Row("params/positions", "pos_embed"),
    Row("params/patch_embedding/kernel", "patch_embed.proj.weight", "conv"),
    Row("params/patch_embedding/bias", "patch_embed.proj.bias"),
    *_layer_norm(r"block_(\d+)/attention_norm", "blocks.{0}.norm1"),
    *_head_projection(r"block_(\d+)/attention/(query|key|value)", "blocks.{0}.attn.qkv/{1}"),
    *_head_output(r"block_(\d+)/attention/out", "blocks.{0}.attn.proj"),
    *_layer_norm(r"block_(\d+)/feed_forward_norm", "blocks.{0}.norm2"),
    *_dense(r"block_(\d+)/feed_forward/up", "blocks.{0}.mlp.fc1"),
    *_dense(r"block_(\d+)/feed_forward/down", "blocks.{0}.mlp.fc2"),
    *_layer_norm("norm", "norm"),
]

READ_BRANCH = [
    Row("params/read/attention/cls", "read.attention.cls"),
    Row("params/read/attention/positions", "read.attention.positions"),
    *_head_projection("read/attention/(query|key|value)", "read.attention.{0}"),
    *_head_output("read/attention/out", "read.attention.out"),
    *_projection_head("read/head", "read.head"),
]

CROSS_ATTENTION = [
    *_dense("cross_attention/(key|value|out)", "cross_attention.{0}"),
    *_batch_norm("cross_attention/norm", "cross_attention.norm"),
]

IMITATE_HEADS = [
    *READ_BRANCH,
    *_projection_head("diagnosis_head", "diagnosis_head"),
    *_projection_head("text_head", "text_head"),
]

TWO_TOWERS_HEADS = [
    *_dense(r"(image|text)_head/linear(\d)", "{0}_head.linear{1}"),
    *_batch_norm(r"(image|text)_head/norm(\d)", "{0}_head.norm{1}"),
    Row("params/logits/(log_scale|bias)", "logits.{0}"),
]

LOCAL_TOWERS_HEADS = [
    *_dense(r"(image|text|region|word|sentence)_head/linear(\d)", "{0}_head.linear{1}"),
    *_batch_norm(r"(image|text|region|word|sentence)_head/norm(\d)", "{0}_head.norm{1}"),
    Row("params/prototypes", "prototypes"),
]

LOVT_HEADS = [
    *_dense(r"(image|text|region|sentence)_head/linear(\d)", "{0}_head.linear{1}"),
    *_batch_norm(r"(image|text|region|sentence)_head/norm1", "{0}_head.norm1"),
    *_head_projection("(image|text)_pool/(query|key|value)", "{0}_pool.{1}"),
    *_head_output("(image|text)_pool/out", "{0}_pool.out"),
    *CROSS_ATTENTION,
]

COMPOSED_HEADS = [
    *_dense(r"(image|text|region|unit)_head/linear(\d)", "{0}_head.linear{1}"),
    *_batch_norm(r"(image|text|region|unit)_head/norm(\d)", "{0}_head.norm{1}"),
    Row("params/logits/(log_scale|bias)", "logits.{0}"),
    *READ_BRANCH,
    *CROSS_ATTENTION,
]

TABLES: dict[str, list[Row]] = {
    "resnet": RESNET,
    "bert": BERT,
    "bert_masked_lm": BERT_MASKED_LM,
    "vit_transformers": VIT_TRANSFORMERS,
    "vit_timm": VIT_TIMM,
    "imitate_heads": IMITATE_HEADS,
    "two_towers_heads": TWO_TOWERS_HEADS,
    "local_towers_heads": LOCAL_TOWERS_HEADS,
    "lovt_heads": LOVT_HEADS,
    "composed_heads": COMPOSED_HEADS,
}


def place(table: list[Row], path: str) -> TensorPlace:
    """Torch name and layout of the leaf at 'collection/path'. Raises KeyError when the table does not know it."""
    for row in table:
        match = re.fullmatch(row.pattern, path)
        if match:
            return TensorPlace(row.name.format(*match.groups()), row.layout)
    raise KeyError(f"No torch name is known for the variable {path!r}.")


def to_linen(array: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Torch layout -> Linen `shape`; None when the shapes cannot belong together."""
    if tuple(array.shape) != torch_shape(layout, shape):
        return None
    if layout == "conv":
        return array.transpose(2, 3, 1, 0)
    if layout in ("linear", "heads_in", "heads_out"):
        return array.T.reshape(shape)
    return array.reshape(shape)


def to_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """Linen layout -> torch layout, a contiguous copy."""
    shape = torch_shape(layout, array.shape)
    if layout == "conv":
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    if layout in ("linear", "heads_in", "heads_out"):
        return np.ascontiguousarray(array.reshape(shape[::-1]).T)
    return np.ascontiguousarray(array).reshape(shape)


def torch_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in torch of a leaf of Linen `shape`."""
    if layout == "conv":
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    if layout == "linear":
        return tuple(shape[::-1])
    if layout == "heads_in":
        return (shape[1] * shape[2], shape[0])
    if layout == "heads_bias":
        return (shape[0] * shape[1],)
    if layout == "heads_out":
        return (shape[2], shape[0] * shape[1])
    return tuple(shape)
