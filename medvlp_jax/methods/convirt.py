"""ConVIRT: one sentence of the report against one view of the image, image-to-text weighted higher (arXiv 2010.00747).

A ResNet and a clinical BERT, whose embeddings and lower half are held, meet through two small MLPs. The text is one
sentence of findings and impression, drawn anew at every access; its tokens are pooled by their element-wise maximum.
Temperature and the weights of the two directions are fixed. Evaluation embeds whole reports and prompts.

There is no official code. Reference for `preset='released'`: the re-implementation in philip-mueller/lovt@f548985.
`preset='mgca_variant'`: the one in HKU-MedAI/MGCA@680fe4a, which differs much; say which one a number belongs to.

| field                  | released   | fixed (default) | mgca_variant | why                                 |
|------------------------|------------|-----------------|--------------|-------------------------------------|
| `loss.duplicates`      | negative   | mask            | negative     | equal sentences are no negatives    |
| `loss.group_size`      | 32         | 0 (whole batch) | 72           | negatives from all devices          |
| `model.bn.scope`       | group (32) | global          | group (72)   | independent of the device count     |
| `loss.temperature`     | 0.1        | 0.1             | 0.07         |                                     |
| `loss.image_to_text`   | 0.75       | 0.75            | 1            | weight of the rows' losses          |
| `loss.text_to_image`   | 0.25       | 0.25            | 1            | weight of the columns' losses       |
| `model.features`       | 512        | 512             | 128          |                                     |
| `text.draw`            | sentence   | sentence        | whole        | what a text is                      |
| `text.dtype`           | float32    | bfloat16        | float32      | as the trunk: half the memory       |
| `image.augment` flip   | 0.5        | none            | none         | flips contradict "left" and "right" |
| `optimizer.name`       | adam       | adamw           | adamw        | decay apart from the gradient       |
| `optimizer.schedule`   | constant   | cosine          | cosine       | see below                           |
| `optimizer.decay_mask` | all        | matrices        | all          | no decay on norms and biases        |

The released schedule halves the rate when the validation loss stands still; that is not built, its rate stays constant.
"""

from typing import Any

from jaxtyping import Array

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods.two_towers import Embeddings, build, pair_terms

__all__ = ["build", "loss"]


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = mean_i [image_to_text * CE_over_texts(i) + text_to_image * CE_over_images(i)]` of `cos / temperature`.

    Args:
      embeddings: from `TwoTowers.__call__`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding.
      config: the run config; reads `text.sections` and `loss`: `temperature`, `image_to_text`, `text_to_image`,
        `duplicates`, `group_size`.
      epoch: not used. sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar; term `pairs` (the loss).
    Raises: ValueError as `two_towers.pair_terms`.
    Source: arXiv 2010.00747 section 3; philip-mueller/lovt@f548985.
    """
    rule = config.loss
    directions = (rule.image_to_text, rule.text_to_image)
    terms = pair_terms(
        embeddings, batch, config, sweep, kind="softmax", temperature=rule.temperature, directions=directions
    )
    return terms["pairs"], terms
