"""CLIP on chest X-rays and reports: symmetric cross entropy of cosines with a learnt temperature (arXiv 2103.00020).

One view of an image goes through a trunk, the report through a BERT that is trained along; a matrix each takes both
into one space. `Z = exp(s) cos(v, w)`; the loss is the mean of the cross entropies of rows (which text belongs to the
image) and of columns.

Reference for `preset='released'`: rajpurkarlab/CheXzero@5c341db, which fine-tunes OpenAI's CLIP on impressions. Its
objective, text and recipe are in this preset; its encoders (CLIP's ViT-B/32 and causal text transformer, from OpenAI's
weights) are not: trunk and text tower are those of the config. Every other difference is one config field:

| field                     | released      | fixed (default) | why                                         |
|---------------------------|---------------|-----------------|---------------------------------------------|
| `text.sections`           | impression    | report          | findings say where and how                  |
| `text.missing`            | placeholder   | mask            | "none reported" is not a text to align with |
| `text.dtype`              | float32       | bfloat16        | as the trunk: half the memory               |
| `loss.duplicates`         | negative      | mask            | identical texts are no negatives            |
| `loss.group_size`         | 16            | 0 (whole batch) | negatives from all devices                  |
| `model.bn.scope`          | group (16)    | global          | statistics independent of the device count  |
| `model.logits.highest`    | 0 (unbounded) | 100             | the scale must not run away                 |
| `optimizer.name`          | sgd, 0.9      | adamw           | towers of two kinds need rates of their own |
| `optimizer.learning_rate` | 1e-4          | 5e-5            | for the optimizer                           |
| `optimizer.schedule`      | constant      | cosine, warm-up | the script has no schedule                  |
| `optimizer.weight_decay`  | 0             | 0.05            | torch's SGD decays nothing untold           |
| `batch_size`              | 16            | 128             | more negatives                              |
| `image.mean`, `image.std` | 0.398, 0.327  | ImageNet's      | those of the trunk's first weights          |

The released image statistics are 101.48761 and 83.43944 of 0..255. A missing impression is the text "NO IMPRESSION"
there and "none reported" here.
"""

from typing import Any

from jaxtyping import Array

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods.two_towers import Embeddings, build, pair_terms

__all__ = ["build", "loss"]


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = (mean_i CE(Z_i, i) + mean_j CE(Z^T_j, j)) / 2` with `Z = scale * cos`.

    Args:
      embeddings: from `TwoTowers.__call__`, with `scale_B`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding.
      config: the run config; reads `text.sections`, `loss.duplicates`, `loss.group_size`.
      epoch: not used. sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar; terms `pairs` (the loss) and `scale`.
    Raises: ValueError as `two_towers.pair_terms`.
    Source: arXiv 2103.00020, figure 3; rajpurkarlab/CheXzero@5c341db.
    """
    terms = pair_terms(embeddings, batch, config, sweep, kind="softmax", directions=(0.5, 0.5))
    return terms["pairs"], {**terms, "scale": embeddings.scale_B[0]}
