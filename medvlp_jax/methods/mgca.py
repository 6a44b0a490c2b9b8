"""MGCA: images with reports, words with patches of their pair, both with prototypes (Wang et al., NeurIPS 2022).

A ResNet gives a vector of the whole image and, from its third stage, one of every patch, or a ViT its class token and
patches (`preset=vit`, `released_vit`); the first six layers of a clinical BERT give a vector of the report and one of
every word (the sum of its pieces). Each of the four has an MLP with BatchNorm of its own into one small space. Three
losses: ITA contrasts whole images and reports over the batch; CTA contrasts, inside each pair, every word with what it
sees of the image against what the other words see, and every patch likewise, weighed by attention; CPA lets each side
predict the other's balanced assignment to prototypes.

    image --- trunk -+- stage4, mean --- image head --+
                     |                                +--- cosines B x B (ITA), prototypes (CPA)
    report -- BERT --+- pooled --------- text head ---+
       |             +- words ---------- word head ---+
       |                                              +--- attention and contrast inside each pair (CTA)
       image trunk, stage3, patches ---- region head -+

Reference for `preset='released'` (ResNet-50) and `'released_vit'` (ViT-B/16): HKU-MedAI/MGCA@680fe4a. Every difference
is one config field:

| field                               | released    | fixed (default)  | why                                           |
|-------------------------------------|-------------|------------------|-----------------------------------------------|
| `model.local.following_attention`   | True        | False            | every word was weighed by the next piece's    |
|                                     |             |                  | attention                                     |
| `model.local.drop_unclosed`         | True        | False            | a full text lost [SEP] and its last word      |
| `model.local.mask_statistics`       | False       | True             | padding words are no evidence for BatchNorm   |
| `loss.tokens.padding_is_negative`   | True        | False            | nor are they negatives                        |
| `loss.tokens.normalise_seen_words`  | True; False | True             | what patches see: not with the released ViT   |
| `loss.prototypes.straight_through`  | True        | False            | gradient through the normalisation, or not    |
| `loss.duplicates`                   | negative    | mask             | copies of a report are no negatives           |
| `loss.group_size`                   | 72          | 0 (whole batch)  | negatives and balance over all devices        |
| `model.bn.scope`                    | group (72)  | global           | statistics independent of the device count    |
| `text.split`                        | gloria      | simple           | that rule splits decimals, drops punctuation  |
| `text.dtype`                        | float32     | bfloat16         | as the trunk: half the memory                 |
| `image.mean`, `image.std`           | 0.5         | ImageNet's       | those of the trunk's first weights            |
| `image.augment`                     | crop        | and rotation,    | as the other methods here                     |
|                                     |             | contrast         |                                               |
| `optimizer.decay_mask`              | all         | matrices         | no decay on norms, biases and prototypes      |
| `optimizer.warmup_steps`            | 31,560      | 500              | 20 of 50 epochs of 1,578 steps                |
| `optimizer.final_learning_rate`     | 1e-8        | 0                |                                               |

Both presets normalise prototypes after every update and give them no gradient in the first epoch
(`loss.freeze_epochs`); AdamW's count of steps has run on by then, see `losses.prototypes.frozen_before`. The released
code drops reports of fewer than three words, and chooses checkpoints on the validation and the test split together:
neither is repeated. Cross-attention has no parameters, as released; the modules with learnt projections that the
released code makes and never calls are not built.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from medvlp_jax.encoders.bert import BertConfig, BertOutput, pool
from medvlp_jax.layers.heads import ProjectionHead, symmetric_uniform
from medvlp_jax.layers.text_units import drop_unclosed, segment_reduce, unit_attention, unit_mask
from medvlp_jax.losses.prototypes import frozen_before, prototype_loss
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import unit_rows
from medvlp_jax.losses.token_alignment import attention_weights, token_alignment_loss
from medvlp_jax.methods import local_towers, towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.groups import grouped, taking_part
from medvlp_jax.methods.two_towers import pair_terms


@struct.dataclass
class Embeddings:
    """What the losses need, projected, of any scale. B examples, V views, P patches, W words, K prototypes.

    mask_BxW: real words, [SEP] among them. weight_BxW: attention that [CLS] pays them, sums to one.
    patch_weight_BxVxP: attention that the class token of a ViT pays them, sums to one; None with a ResNet: all alike.
    prototype_BxKxD: the same for every example, so that embeddings split by examples like everything else.
    """

    image_BxVxD: Float[Array, "B V D"]
    text_BxD: Float[Array, "B D"]
    region_BxVxPxD: Float[Array, "B V P D"]
    word_BxWxD: Float[Array, "B W D"]
    mask_BxW: Bool[Array, "B W"]
    weight_BxW: Float[Array, "B W"]
    prototype_BxKxD: Float[Array, "B K D"]
    patch_weight_BxVxP: Float[Array, "B V P"] | None = None


class Mgca(nn.Module):
    """Trunk and BERT with two heads each, and prototypes.

    Attributes:
      model: `config.model`: `trunk`, `bn`, `features`, `prototypes` (how many), `upsample` (side of what the trunk
        sees, 0: views as they are), `head` (`image_hidden`, `text_hidden`, `region_hidden`, `word_hidden`) and `local`:
        `level` of the trunk, `following_attention`, `drop_unclosed`, `mask_statistics`.
      image, text: `config.image`, `config.text`. bert: shape of the text tower.
    """

    model: Any
    image: Any
    text: Any
    bert: BertConfig

    def setup(self):
        model, norm = self.model, towers.batch_norm(self.model)
        rest = {"features": model.features, "dtype": jnp.dtype(model.dtype)}
        of_image = {**norm, "views": self.image.views}
        self.trunk = towers.trunk(model, self.image)
        self.image_head = ProjectionHead(model.head.image_hidden, norm=of_image, **rest)
        self.region_head = ProjectionHead(model.head.region_hidden, norm=of_image, **rest)
        self.text_head = ProjectionHead(model.head.text_hidden, norm=norm, **rest)
        self.word_head = ProjectionHead(model.head.word_hidden, norm=norm, **rest)
        self.text_tower = towers.trained_bert(self.bert, self.text)
        init = symmetric_uniform(1.0 / math.sqrt(model.features))
        self.prototypes = self.param("prototypes", init, (model.prototypes, model.features), jnp.float32)

    @property
    def section(self) -> str:
        """The text that images are aligned with."""
        return self.text.sections[0]

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`regions`: what each place of the last map contributes to the image's vector, their mean; with a ViT what its
        patches add to the class token."""
        return self._image(image_BxVxHxWx1, train)[0]

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """From `<section>_ids`, `_mask` and `_segment` (words, B×L)."""
        text_BxE = self._text(batch)[0]
        has_text_B = batch.get(f"has_{self.section}")
        return TextEmbedding({self.section: self.text_head(text_BxE, train=train, valid_N=has_text_B)})

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        image, region_BxVxPxD, patch_weight_BxVxP = self._image(batch["image"], train)
        text_BxE, word_BxWxE, mask_BxW, attention_BxW = self._text(batch)
        has_text_B = batch[f"has_{self.section}"]
        counted_BxW = mask_BxW & has_text_B[:, None] if self.model.local.mask_statistics else None
        return Embeddings(
            image.aligned[self.section],
            self.text_head(text_BxE, train=train, valid_N=has_text_B),
            region_BxVxPxD,
            self.word_head(word_BxWxE, train=train, valid_N=counted_BxW),
            mask_BxW,
            attention_weights(jnp.where(mask_BxW, attention_BxW, 0.0)),
            jnp.broadcast_to(self.prototypes, (text_BxE.shape[0], *self.prototypes.shape)),
            patch_weight_BxVxP,
        )

    def _image(self, image_BxVxHxWx1: Array, train: bool) -> tuple[ImageEmbedding, Array, Array | None]:
        shape, seen = image_BxVxHxWx1.shape[:2], (image_BxVxHxWx1, self.image, self.model)
        levels, region_NxhxwxD = local_towers.levels_and_regions(self.trunk, self.region_head, *seen, train=train)
        region_NxPxD = local_towers.flat_regions(region_NxhxwxD)
        whole_NxC = levels["cls" if "cls" in levels else "pooled"].astype(jnp.float32)
        image_BxVxD = self.image_head(whole_NxC, train=train).reshape(*shape, -1)
        weight_BxVxP, class_part_NxhxwxC = None, levels.pop("class_parts", None)
        if "attention" in levels:
            paid_NxP = jnp.mean(levels.pop("attention")[:, :, 0, 1:], axis=1)
            weight_BxVxP = attention_weights(paid_NxP).reshape(*shape, -1)
        maps = {name: x for name, x in levels.items() if x.ndim == 4}
        summed = levels if class_part_NxhxwxC is None else {"patches": class_part_NxhxwxC, "pooled": whole_NxC}
        regions = {self.section: towers.regions(self.image_head, summed, shape)} if "pooled" in summed else {}
        embedding = ImageEmbedding({self.section: image_BxVxD}, whole_NxC.reshape(*shape, -1), maps, regions)
        return embedding, region_NxPxD.reshape(*shape, *region_NxPxD.shape[1:]), weight_BxVxP

    def _text(self, batch: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
        """The report B×E; words B×W×E, which are real, the attention that [CLS] pays them, W = L - 1: without [CLS]."""
        ids_BxL, mask_BxL, segment_BxL = local_towers.tokens_of(batch, self.section)
        length, local = ids_BxL.shape[1], self.model.local
        if local.drop_unclosed:
            segment_BxL = drop_unclosed(segment_BxL)

        def read(output: BertOutput, mask_Bxl: Array, segment_Bxl: Array) -> tuple[Array, Array, Array]:
            text_BxE = pool(output.last.astype(jnp.float32), mask_Bxl, self.text.pooling)
            unit_BxLxE = segment_reduce(output.last.astype(jnp.float32), segment_Bxl, length, "sum")
            paid_Bxl = jnp.mean(output.attention[:, :, 0], axis=1)
            paid_BxL = unit_attention(paid_Bxl, segment_Bxl, length, following_piece=local.following_attention)
            return text_BxE, unit_BxLxE[:, 1:], paid_BxL[:, 1:]

        text_BxE, word_BxWxE, paid_BxW = towers.of_tokens(self.text_tower, read, ids_BxL, mask_BxL, segment_BxL)
        return text_BxE, word_BxWxE, unit_mask(segment_BxL, length, skip=(1, 0))[:, 1:], paid_BxW


def build(config: Any, bert: BertConfig | None = None) -> Mgca:
    """The module for a full run config (`configs/mgca.py`).

    Args: bert: shape of the text tower, BERT-base when none is given.
    Raises: ValueError for a frozen text tower, other units than words, or no prototypes.
    """
    if config.model.prototypes < 1:
        raise ValueError(f"model.prototypes={config.model.prototypes}: MGCA needs at least one; 500 as published.")
    return Mgca(config.model, config.image, config.text, local_towers.text_tower(config, bert, "words"))


def constrain(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with prototypes of length one, after every update."""
    return {**params, "prototypes": unit_rows(params["prototypes"])}


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = ITA + CTA + CPA`, weighed by `loss.weights`.

    Args:
      embeddings: from `Mgca.__call__`; terms are means over views.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding. Texts
        without a word take no part in the token terms.
      config: the run config; reads `text.sections` and `loss`: `temperature` of ITA, `tokens` (see
        `token_alignment_loss`), `prototypes` (see `prototype_loss`), `freeze_epochs`, `weights`, `duplicates`,
        `group_size`.
      epoch: whole epochs seen before this step: prototypes get no gradient before `freeze_epochs`.
      sweep: how pairs of ITA are tiled; dense when omitted.

    Returns: float32 scalar; terms `pairs` (ITA), `words` and `patches` (CTA), `prototypes` (CPA), before their weights.
    Raises: ValueError as `two_towers.pair_terms`.
    Source: HKU-MedAI/MGCA@680fe4a.
    """
    (section,), rule, sweep = config.text.sections, config.loss, sweep or Sweep()
    terms = pair_terms(
        embeddings, batch, config, sweep, kind="softmax", temperature=rule.temperature, directions=(1.0, 1.0)
    )

    def inside(e: Embeddings, used: dict[str, Array]) -> dict[str, Array]:
        valid_B = used[f"has_{section}"]
        with_words_B = valid_B & jnp.any(e.mask_BxW, axis=1)
        prototype_KxD = frozen_before(e.prototype_BxKxD[0], epoch, rule.freeze_epochs)
        found = []
        for view in range(e.image_BxVxD.shape[1]):
            seen = (e.word_BxWxD, e.region_BxVxPxD[:, view], e.mask_BxW, e.weight_BxW)
            patch_weight_BxP = None if e.patch_weight_BxVxP is None else e.patch_weight_BxVxP[:, view]
            words, patches = token_alignment_loss(*seen, patch_weight_BxP, **rule.tokens, valid_B=with_words_B)
            shared = prototype_loss(
                e.image_BxVxD[:, view], e.text_BxD, prototype_KxD, **rule.prototypes, valid_B=valid_B
            )
            found.append({"words": words, "patches": patches, "prototypes": shared})
        return {name: sum(view[name] for view in found) / len(found) for name in found[0]}

    terms |= grouped(inside, embeddings, taking_part(batch, (section,)), rule.group_size, sweep)
    tokens = terms["words"] + terms["patches"]
    weights = rule.weights
    total = weights.pairs * terms["pairs"] + weights.tokens * tokens + weights.prototypes * terms["prototypes"]
    return total, terms
