"""Pure loss functions: arrays in, scalars out, statistics in float32.

`contrastive` holds the pairwise terms, `targets` the similarity matrices that soften them.
"""
