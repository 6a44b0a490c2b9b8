"""Pure loss functions: arrays in, scalars out, statistics in float32.

`contrastive` holds the pairwise losses, `targets` and `clinical_prior` what they are trained towards, `schedules` how
all pairs are tiled over chunks and devices, `streamed` the losses over such tiles.

Losses of parts: `local` tiles any score of an image's and a text's parts, `word_region` is GLoRIA's. Inside a sample
`token_alignment` (MGCA) and `sentence_region` (LoVT) contrast units with what they see. `prototypes` (MGCA) and
`orthogonality` (M-FLAG) have no negatives.
"""
