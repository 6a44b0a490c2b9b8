"""Data-set builders: raw files in, records of `medvlp_jax.data.records` out."""
