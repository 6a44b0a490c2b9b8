"""Weights and inputs that are functions of their names and shapes, the same with and without torch."""

import zlib

import numpy as np


def uniform(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return (low + (high - low) * rng.random(shape)).astype(np.float32)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Torch names -> values of a trained model's size; variances are positive."""
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.zeros(shape, np.int64)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            tensors[name] = uniform(name, shape, 0.5, 1.5)
        elif len(shape) == 1 or "embeddings" in name:
            tensors[name] = uniform(name, shape, -0.5, 0.5)
        else:
            tensors[name] = uniform(name, shape) * np.float32(np.sqrt(6 / np.prod(shape[1:])))
    return tensors


def image(n: int, side: int, channels: int = 3) -> np.ndarray:
    """NHWC float32."""
    return uniform(f"image{n}x{side}", (n, side, side, channels), -2, 2)


def tokens(n: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, mask (last row full, others shorter) and token types, int32."""
    ids = (uniform("ids", (n, length), 0, 1) * vocabulary).astype(np.int32)
    mask = (np.arange(length)[None] <= np.arange(length - n, length)[:, None]).astype(np.int32)
    types = (np.arange(length)[None] > length // 2).astype(np.int32) * np.ones((n, 1), np.int32)
    return ids, mask, types


RESNETS = {
    "basic": {"block": "basic", "stage_sizes": (1, 2, 1, 1), "width": 8},
    "bottleneck": {"block": "bottleneck", "stage_sizes": (2, 1, 1, 1), "width": 8},
}
BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
VIT = {"width": 32, "layers": 2, "heads": 4, "hidden": 48, "patch": 8, "image": 32}
