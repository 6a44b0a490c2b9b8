"""Weights in and out: Linen variables <-> files under the names of torchvision, timm and transformers."""

from medvlp_jax.interop.blocks import attention_from_torch, attention_to_torch, layers_from_torch, layers_to_torch
from medvlp_jax.interop.convert import from_torch_names, to_torch_names
from medvlp_jax.interop.load import (
    load_bert,
    load_bert_config,
    load_masked_lm,
    load_resnet,
    load_vit,
    resolve_weights,
    save_bert,
)
from medvlp_jax.interop.tensors import load_tensors, save_safetensors

__all__ = [
    "attention_from_torch",
    "attention_to_torch",
    "from_torch_names",
    "layers_from_torch",
    "layers_to_torch",
    "load_bert",
    "load_bert_config",
    "load_masked_lm",
    "load_resnet",
    "load_tensors",
    "load_vit",
    "resolve_weights",
    "save_bert",
    "save_safetensors",
    "to_torch_names",
]
