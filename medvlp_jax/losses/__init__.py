"""Pure loss functions: arrays in, scalars out, statistics in float32.

`contrastive` holds the pairwise losses, `targets` and `clinical_prior` what they are trained towards, `schedules` how
all pairs are tiled over chunks and devices, `streamed` the losses over such tiles.
"""
