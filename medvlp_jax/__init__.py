"""medvlp_jax: chest X-ray vision-language models pretrained, evaluated and shipped with JAX."""

__version__ = "0.1.0"
