"""A trained run as files for others: safetensors under PyTorch names, a transformers folder, ONNX, a model card."""

from medvlp_jax.export.write import export

__all__ = ["export"]
