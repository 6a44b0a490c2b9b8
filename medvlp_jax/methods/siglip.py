"""SigLIP: every pair of an image and a text is a match or none, judged on its own (arXiv 2303.15343).

The towers are CLIP's. The loss is a logistic one over all pairs of the batch, of `l = scale * cos + bias` with learnt
scale and bias: no softmax, so no sum over the batch joins the pairs, and tiles of them can be taken one at a time
(`pairs.schedule`: `dense`, `chunked` or `ring`, equal values).

Reference for `preset='released'`: google-research/big_vision@0127fb6, the COCO recipe, which holds the image tower
(locked-image tuning). Its encoders are a ViT and a text transformer; here trunk and text tower are those of the config.
Every other difference is one config field:

| field                     | released   | fixed (default)   | why                                 |
|---------------------------|------------|-------------------|-------------------------------------|
| `model.logits.bias`       | -2.71      | -10               | mlfoundations/open_clip@89fb801     |
| `loss.duplicates`         | negative   | mask              | copies of a report are no negatives |
| `optimizer.rates`         | trunk held | everything learns | natural images are far from X-rays  |
| `model.bn.scope`          | frozen     | global            | a held trunk keeps its statistics   |
| `optimizer.learning_rate` | 1e-3       | 1e-4              | the whole trunk learns              |
| `optimizer.decay_mask`    | all        | matrices          | no decay on norms, scale and bias   |
| `optimizer.weight_decay`  | 0.01       | 0.05              | as the other methods here           |
| `batch_size`              | 512        | 1024              | more pairs                          |
| `text.max_length`         | 16         | 256               | a report is longer than a caption   |
| `text.dtype`              | float32    | bfloat16          | as the trunk: half the memory       |
| `image.augment` flips     | 0.5        | none              | flips contradict "left" and "right" |

The released recipe's RandAugment is not built; its flip is.
"""

from typing import Any

from jaxtyping import Array

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods.two_towers import Embeddings, build, pair_terms

__all__ = ["build", "loss"]


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = mean_i sum_j -log sigmoid(z_ij l_ij)`, `z_ij` 1 for a match and -1 for none: a sum over texts, a mean over
    images of the whole batch.

    Args:
      embeddings: from `TwoTowers.__call__`, with `scale_B` and `bias_B`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding.
      config: the run config; reads `text.sections`, `loss.duplicates`, `loss.group_size`.
      epoch: not used. sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar; terms `pairs` (the loss), `scale` and `bias`.
    Raises: ValueError as `two_towers.pair_terms`.
    Source: arXiv 2303.15343 section 3; google-research/big_vision@0127fb6.
    """
    terms = pair_terms(embeddings, batch, config, sweep, kind="sigmoid")
    return terms["pairs"], {**terms, "scale": embeddings.scale_B[0], "bias": embeddings.bias_B[0]}
