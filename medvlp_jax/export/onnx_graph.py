"""The image embedder as an ONNX graph, built node by node from the exported tensors: no tracing, no torch.

Input `image`: uint8 [N, S, S, 1], evaluation views. Outputs: per text section that images are aligned with [N, D], and
`pooled` [N, C]. Weights keep their PyTorch names, so that the file can be read beside the safetensors.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.layers.channel_tokens import pooling_matrix
from medvlp_jax.methods.towers import aligned_corners

OPSET, IR_VERSION = 17, 9  # what ONNX Runtime has read since 1.14


def available() -> bool:
    """True when the `onnx` package is installed."""
    return importlib.util.find_spec("onnx") is not None


def build(model: Mapping[str, Any], trunk: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]) -> Any:
    """The graph. Args: model: the content of `model.json`; trunk, heads: its tensors. Returns: onnx.ModelProto.

    Raises: ValueError for a trunk that is no ResNet.
    """
    import onnx

    if model["trunk"]["kind"] != "resnet":
        raise ValueError(f"ONNX export knows ResNet trunks only, not {model['trunk']['kind']!r}.")
    graph = _Graph({**{f"trunk.{name}": array for name, array in trunk.items()}, **heads}, model["trunk"]["epsilon"])
    stages = _trunk(graph, model)
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", stages[-1]), axis=1)
    if model["kind"] == "imitate":
        outputs = {"findings": _read(graph, stages, model), "impression": _head(graph, pooled, "diagnosis_head")}
    elif model["kind"] == "composed":
        of = {
            "pooled": lambda: _head(graph, pooled, "image_head"),
            "levels": lambda: _read(graph, stages, model),
        }
        outputs = {section: of[vector]() for section, vector in model["aligned"].items()}
    else:
        vector = _attention_pool(graph, stages[-1], model) if model["kind"] == "lovt" else pooled
        outputs = {section: _head(graph, vector, "image_head") for section in model["sections"]}
    outputs |= {"pooled": pooled}
    for name, value in outputs.items():
        graph.nodes.append(onnx.helper.make_node("Identity", [value], [name]))
    widths = dict.fromkeys(outputs, model["heads"]["features"]) | {"pooled": model["heads"]["image_width"]}
    size, tensor_type = model["image"]["size"], onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            f"{model['method']}_image_embedder",
            [tensor_type("image", onnx.TensorProto.UINT8, ["N", size, size, 1])],
            [tensor_type(name, onnx.TensorProto.FLOAT, ["N", width]) for name, width in widths.items()],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="medvlp_jax",
        doc_string=__doc__,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def save(path: Path, proto: Any) -> None:
    """Writes the graph. Raises: OSError."""
    path.write_bytes(proto.SerializeToString())


class _Graph:
    """Nodes and constants under construction; every method returns the name of its result."""

    def __init__(self, tensors: Mapping[str, np.ndarray], epsilon: float):
        self.tensors, self.epsilon = tensors, epsilon
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        result = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [result], **attributes))
        return result

    def constant(self, array: Any, dtype: str = "float32", name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype)
        return name

    def weight(self, name: str) -> str:
        return self.constant(self.tensors[name], name=name)

    def norm(self, x: str, name: str) -> str:
        """BatchNorm with running statistics, where there is one."""
        if f"{name}.running_mean" not in self.tensors:
            return x
        mean = self.tensors[f"{name}.running_mean"]
        scale = self.tensors.get(f"{name}.weight", np.ones_like(mean))
        bias = self.tensors.get(f"{name}.bias", np.zeros_like(mean))
        affine = [self.constant(scale, name=f"{name}.weight"), self.constant(bias, name=f"{name}.bias")]
        statistics = [self.weight(f"{name}.running_mean"), self.weight(f"{name}.running_var")]
        return self.add("BatchNormalization", x, *affine, *statistics, epsilon=self.epsilon)

    def linear(self, x: str, name: str) -> str:
        """Over the last axis of any rank."""
        kernel = self.constant(self.tensors[f"{name}.weight"].T, name=f"{name}.weight")
        product = self.add("MatMul", x, kernel)
        return self.add("Add", product, self.weight(f"{name}.bias")) if f"{name}.bias" in self.tensors else product

    def conv(self, x: str, name: str, stride: int, kernel: np.ndarray | None = None) -> str:
        kernel = self.tensors[f"{name}.weight"] if kernel is None else kernel
        pads = [kernel.shape[-1] // 2] * 4
        return self.add("Conv", x, self.constant(kernel, name=f"{name}.weight"), strides=[stride, stride], pads=pads)

    def reshape(self, x: str, shape: list[int]) -> str:
        """0 keeps a dimension, -1 takes what is left."""
        return self.add("Reshape", x, self.constant(shape, "int64"))


def _trunk(graph: _Graph, model: Mapping[str, Any]) -> list[str]:
    """Pixels -> the maps of all stages, NCHW."""
    config, image = model["trunk"], model["image"]
    x = graph.add("Transpose", graph.add("Cast", "image", to=1), perm=[0, 3, 1, 2])
    if image.get("upsample"):
        matrix = aligned_corners(image["size"], image["upsample"])
        x = graph.add("MatMul", graph.constant(matrix), graph.add("MatMul", x, graph.constant(matrix.T)))
    x = graph.add("Div", x, graph.constant(255.0))
    x = graph.add("Sub", x, graph.constant(np.reshape(image["mean"], (1, -1, 1, 1))))
    x = graph.add("Div", x, graph.constant(np.reshape(image["std"], (1, -1, 1, 1))))
    kernel = graph.tensors["trunk.conv1.weight"]
    if len(image["mean"]) == 1:
        kernel = kernel.sum(axis=1, keepdims=True)
    stride = {"imagenet": 2, "stride4": 4, "small": 1}[config["stem"]]
    x = graph.add("Relu", graph.norm(graph.conv(x, "trunk.conv1", stride, kernel), "trunk.bn1"))
    if config["stem"] == "imagenet":
        x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    stages = []
    for s, (size, stride) in enumerate(zip(config["stage_sizes"], config["strides"], strict=True), start=1):
        for b in range(size):
            x = _block(graph, x, f"trunk.layer{s}.{b}", stride if b == 0 else 1, config["block"])
        stages.append(x)
    return stages


def _block(graph: _Graph, x: str, name: str, stride: int, block: str) -> str:
    strides = [1, stride, 1] if block == "bottleneck" else [stride, 1]
    y = x
    for i, step in enumerate(strides, start=1):
        y = graph.norm(graph.conv(y, f"{name}.conv{i}", step), f"{name}.bn{i}")
        y = graph.add("Relu", y) if i < len(strides) else y
    if f"{name}.downsample.0.weight" in graph.tensors:
        x = graph.norm(graph.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    return graph.add("Relu", graph.add("Add", x, y))


def _head(graph: _Graph, x: str, name: str) -> str:
    if f"{name}.linear1.weight" in graph.tensors:
        x = graph.add("Relu", graph.norm(graph.linear(x, f"{name}.linear1"), f"{name}.norm1"))
    return graph.norm(graph.linear(x, f"{name}.linear2"), f"{name}.norm2")


def _read(graph: _Graph, stages: list[str], model: Mapping[str, Any]) -> str:
    """IMITATE's read branch: the mean over the fixed channel draws."""
    config = model["read"]
    grid, maps = config["grid"], []
    for stage, side in zip(stages, _sides(model), strict=True):
        matrix = pooling_matrix(side, grid)
        x = graph.add("MatMul", graph.constant(matrix), graph.add("MatMul", stage, graph.constant(matrix.T)))
        maps.append(graph.reshape(x, [0, 0, grid * grid]))
    vectors = []
    for draw in config["channels"]:
        chosen = [graph.add("Gather", m, graph.constant(i, "int64"), axis=1) for m, i in zip(maps, draw, strict=True)]
        tokens = graph.add("Concat", *chosen, axis=1)
        summary = _attention(graph, tokens, sum(map(len, draw)), config)
        vectors.append(_head(graph, summary, "read.head"))
    total = graph.add("Sum", *vectors)
    return graph.add("Div", total, graph.constant(float(len(vectors))))


def _attention(graph: _Graph, tokens: str, count: int, config: Mapping[str, Any]) -> str:
    """`layers.channel_tokens.ChannelAttention`; what no image changes (query, CLS, padding) is a constant."""
    tensor, heads = graph.tensors, config["heads"]
    positions, cls = tensor["read.attention.positions"], tensor["read.attention.cls"]
    cls_T = cls + positions[0]
    padding = 0 if config["mask_padding"] else config["tokens"] - count
    added = np.concatenate([positions[1 : 1 + count + padding], cls_T[None]])
    pads = graph.constant([0, 0, 0, 0, 1 + padding, 0], "int64")
    x = graph.add("Add", graph.add("Pad", tokens, pads), graph.constant(added))
    width = len(cls_T) // heads
    query = tensor["read.attention.query.weight"] @ cls_T + tensor["read.attention.query.bias"]
    query = graph.constant(query.reshape(heads, 1, width) / math.sqrt(width))
    split = lambda name, perm: graph.add(  # noqa: E731
        "Transpose", graph.reshape(graph.linear(x, f"read.attention.{name}"), [0, 0, heads, width]), perm=perm
    )
    weights = graph.add("Softmax", graph.add("MatMul", query, split("key", [0, 2, 3, 1])), axis=-1)
    mixed = graph.reshape(graph.add("MatMul", weights, split("value", [0, 2, 1, 3])), [0, -1])
    return graph.add("Add", graph.linear(mixed, "read.attention.out"), graph.constant(cls_T))


def _attention_pool(graph: _Graph, stage: str, model: Mapping[str, Any]) -> str:
    """`layers.attention_pool.AttentionPool` over the places of the last map."""
    heads, channels = model["pool"]["heads"], model["heads"]["image_width"]
    width = channels // heads
    places = graph.add("Transpose", graph.reshape(stage, [0, channels, -1]), perm=[0, 2, 1])
    mean = graph.add("ReduceMean", places, axes=[1], keepdims=1)
    split = lambda x, name, perm: graph.add(  # noqa: E731
        "Transpose", graph.reshape(graph.linear(x, f"image_pool.{name}"), [0, 0, heads, width]), perm=perm
    )
    query = graph.add("Div", split(mean, "query", [0, 2, 1, 3]), graph.constant(math.sqrt(width)))
    weights = graph.add("Softmax", graph.add("MatMul", query, split(places, "key", [0, 2, 3, 1])), axis=-1)
    mixed = graph.add("MatMul", weights, split(places, "value", [0, 2, 1, 3]))
    return graph.linear(graph.reshape(mixed, [0, -1]), "image_pool.out")


def _sides(model: Mapping[str, Any]) -> list[int]:
    """Side of the map of every stage."""
    half = lambda side, stride: (side - 1) // stride + 1  # noqa: E731
    stem = model["trunk"]["stem"]
    side = half(model["image"]["size"], {"imagenet": 2, "stride4": 4, "small": 1}[stem])
    side = half(side, 2) if stem == "imagenet" else side
    sides = []
    for stride in model["trunk"]["strides"]:
        side = half(side, stride)
        sides.append(side)
    return sides
