"""M-FLAG: a frozen language model, alignment without negatives, an image latent kept orthonormal (arXiv 2307.08347).

The report, impression first, is one frozen vector; image and text meet through an MLP with BatchNorm each. The loss
pulls pairs together (`4 - 4 cos`) and has no negatives; that the image latent does not collapse is left to a second
term, which pushes the dimensions of the trunk's pooled features towards orthonormal over the batch.

Reference for `preset='released'`: cheliu-computation/M-FLAG-MICCAI2023@a7fea3c. Every difference is one config field:

| field                      | released      | fixed (default) | why                                          |
|----------------------------|---------------|-----------------|----------------------------------------------|
| `loss.group_size`          | 512           | 0 (whole batch) | one batch, one latent                        |
| `model.bn.scope`           | group (512)   | global          | statistics independent of the device count   |
| `image.augment` rotation   | 90 degrees    | 10              | chests stand upright                         |
| `optimizer.schedule`       | warm_restarts | cosine          | one cosine over the true steps, with warm-up |
| `optimizer.restart_factor` | 1             | (unused)        |                                              |
| `optimizer.decay_mask`     | all           | matrices        | no decay on norms and biases                 |
| `epochs`                   | 51            | 50              | the released loop counts one more            |

The released rotation goes from 0 to 90 degrees, the one here to both sides. The released code forms the latent's
products in half precision and normalises afterwards, which may overflow; here they are accumulated in float32.
"""

from typing import Any

from jaxtyping import Array

from medvlp_jax.encoders.bert import BertConfig
from medvlp_jax.losses.orthogonality import cosine_alignment, orthogonality_loss
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import two_towers
from medvlp_jax.methods.groups import grouped, taking_part
from medvlp_jax.methods.two_towers import Embeddings, TwoTowers


def build(config: Any, bert: BertConfig | None = None) -> TwoTowers:
    """The module for a full run config (`configs/m_flag.py`). Raises: ValueError for a text tower that is trained."""
    if config.text.trained:
        raise ValueError("text.trained=True: M-FLAG's text tower is frozen. Use --config.text.trained=False.")
    return two_towers.build(config, latent=True)


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = alignment + orthogonality`, over groups of `config.loss.group_size` examples.

    Args:
      embeddings: from `TwoTowers.__call__`, with `latent_BxVxC`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding.
      config: the run config; reads `text.sections` and `loss`: `off_diagonal`, `centre`, `group_size`.
      epoch: not used. sweep: not used but for its check of groups: no pairs are formed.

    Returns: float32 scalar and its two terms, each a mean over views.
    Raises: ValueError for a batch that does not split into groups.
    Source: arXiv 2307.08347; cheliu-computation/M-FLAG-MICCAI2023@a7fea3c.
    """
    (section,), rule = config.text.sections, config.loss

    def terms(e: Embeddings, used: dict[str, Array]) -> dict[str, Array]:
        views = range(e.image_BxVxD.shape[1])
        pairs_B, real_B = used[f"has_{section}"], used.get("_mask")
        latent = {"off_diagonal": rule.off_diagonal, "centre": rule.centre, "valid_B": real_B}
        return {
            "alignment": sum(cosine_alignment(e.image_BxVxD[:, v], e.text_BxD, valid_B=pairs_B) for v in views)
            / len(views),
            "orthogonality": sum(orthogonality_loss(e.latent_BxVxC[:, v], **latent) for v in views) / len(views),
        }

    found = grouped(terms, embeddings, taking_part(batch, (section,)), rule.group_size, sweep or Sweep())
    return found["alignment"] + found["orthogonality"], found
