"""LoVT: regions of an image and sentences of its report, contrasted inside each pair, under a global contrast.

A ResNet gives one vector per place of its last map, a BERT one per sentence: the element-wise maximum over the tokens
of the sentence, all sentences being read together. Attention pooling makes one vector of each side (its query is the
mean unit), and a head each takes pooled vectors and units into spaces of their own:

views -- trunk --+-- attention pooling -- image head ----------------------- global contrast over the batch
                 |         | weights                                         |
                 +-- region head ----+-- local terms: regions with what they see of the sentences
                                cross-attention                              |
                 +-- sentence head --+-- local terms: sentences with what they see of the regions
                 |         | weights                                         |
text --- BERT ---+-- attention pooling -- text head ------------------------ global contrast over the batch

`L = 0.75 image-to-text + 0.25 text-to-image + 0.375 (regions, both ways) + 0.375 (sentences, both ways)`; local targets
of regions are soft, by their distance on the grid (`losses.sentence_region`).

Reference for `preset='released'`: philip-mueller/lovt@f548985. Every difference is one config field:

| field                          | released   | fixed (default) | why                                             |
|--------------------------------|------------|-----------------|-------------------------------------------------|
| `model.pool.mean_over_padding` | True       | False           | a query should not shrink with padding          |
| `model.mask_statistics`        | False      | True            | padded sentences are no evidence for BatchNorm  |
| `loss.duplicates`              | negative   | mask            | identical reports are no negatives              |
| `loss.group_size`              | 32         | 0 (whole batch) | negatives from all devices                      |
| `model.bn.scope`               | group (32) | global          | statistics independent of the device count      |
| `batch_size`                   | 512        | 256             | 16 accumulated batches of 32 against one of 256 |
| `image.augment` flip           | 0.5        | none            | flips contradict "left" and "right"             |
| `optimizer.schedule`           | waves      | cosine, warm-up | one fall instead of rising every other epoch    |
| `optimizer.weight_decay`       | 1e-6       | 0.05            | as the other methods here                       |
| `optimizer.decay_mask`         | all        | matrices        | no decay on norms, biases and tables            |

In both: a report of one sentence has report terms of exactly 0. `loss.smoothing` is `exponential`; with `uniform` all
regions within the threshold count alike (what the released code does when smoothing is switched off), with `none` a
region has itself as its only positive.

Where both presets differ from the released code: padded sentences are those up to `text.max_sentences`, not up to the
longest report of a batch, so that a text has one embedding; a record is one image, so a study with two frontal images
is seen twice an epoch, where the released code draws one of them each time; sentences are split by rules
(`data.sentences`), not by Stanza; reports of fewer than three words are kept; early stopping on the validation loss,
the Gaussian blur and the data set's own grey statistics (`image.mean`, `image.std`) are not built in.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from medvlp_jax.encoders.bert import BertConfig, BertOutput
from medvlp_jax.layers.attention_pool import AttentionPool
from medvlp_jax.layers.cross_attention import SharedCrossAttention
from medvlp_jax.layers.heads import ProjectionHead
from medvlp_jax.layers.text_units import segment_reduce, unit_mask
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.sentence_region import (
    LocalTerms,
    Regions,
    Sentences,
    sentence_region_terms,
    sentence_scores,
    spatial_targets,
)
from medvlp_jax.methods import local_towers, towers, two_towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.groups import grouped, taking_part


@struct.dataclass
class Embeddings:
    """What the losses need: V views, places h×w of the last map, M sentences.

    image_BxVxD, text_BxD: of the pooled sides. `_seen`: what regions see of the sentences, and sentences of the
    regions. `_weight`: attention of the pooling. mask_BxM: real sentences.
    """

    image_BxVxD: Float[Array, "B V D"]
    text_BxD: Float[Array, "B D"]
    region_BxVxhxwxD: Float[Array, "B V h w D"]
    region_seen_BxVxRxD: Float[Array, "B V R D"]
    region_weight_BxVxR: Float[Array, "B V R"]
    sentence_BxMxD: Float[Array, "B M D"]
    sentence_seen_BxVxMxD: Float[Array, "B V M D"]
    sentence_weight_BxM: Float[Array, "B M"]
    mask_BxM: Bool[Array, "B M"]


class Lovt(nn.Module):
    """Trunk and BERT, attention pooling and two heads each, one cross-attention.

    Attributes:
      model: `config.model`: `trunk`, `bn`, `features`, `head` (`image_hidden`, `text_hidden`, `init`), `pool` (`heads`,
        `mean_over_padding`), `mask_statistics`.
      image, text: `config.image`, `config.text`: `pooling` of the tokens of a sentence (`max`), `max_sentences` (M).
      bert: shape of the text tower.
    """

    model: Any
    image: Any
    text: Any
    bert: BertConfig

    def setup(self):
        model, dtype = self.model, jnp.dtype(self.model.dtype)
        norm = towers.batch_norm(model)
        image_norm = {**norm, "views": self.image.views}
        head = {"features": model.features, "dtype": dtype, "init": model.head.init, "norm_output": False}
        self.trunk = towers.trunk(model, self.image)
        self.text_tower = towers.trained_bert(self.bert, self.text)
        self.image_pool = AttentionPool(model.pool.heads, dtype=dtype)
        self.text_pool = AttentionPool(model.pool.heads, model.pool.mean_over_padding, dtype=dtype)
        self.image_head, self.region_head = (
            ProjectionHead(model.head.image_hidden, norm=image_norm, **head) for _ in range(2)
        )
        self.text_head, self.sentence_head = (
            ProjectionHead(model.head.text_hidden, norm=norm, **head) for _ in range(2)
        )
        self.cross_attention = SharedCrossAttention(model.features, image_norm, model.mask_statistics, dtype)

    @property
    def section(self) -> str:
        """The text whose sentences images are aligned with."""
        return self.text.sections[0]

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`aligned`: the global vector. `regions`: what each place contributes to it, with the attention as it is and
        the head taken as linear around the pooled vector: their mean is the image's vector. `local`: what sentences
        see of the image, with statistics of evaluation.
        """
        shape = image_BxVxHxWx1.shape[:2]
        levels = self._levels(image_BxVxHxWx1, train)
        place_NxRxC = local_towers.flat_regions(towers.last_map(levels))
        pooled = self.image_pool(place_NxRxC, parts=True)
        image_BxVxD = self.image_head(pooled.vector, train=train).reshape(*shape, -1)
        region_NxRxD = self.image_head(pooled.part, train=False, gates_of_NxI=pooled.vector[:, None])
        regions = {self.section: region_NxRxD.reshape(*shape, *towers.last_map(levels).shape[1:3], -1)}
        gap_BxVxC = levels.pop("pooled").reshape(*shape, -1)
        local_NxRxD = self.region_head(place_NxRxC, train=False)
        local = Regions(self.cross_attention.asking(local_NxRxD), self.cross_attention.showing(local_NxRxD))
        return ImageEmbedding({self.section: image_BxVxD}, gap_BxVxC, levels, regions, local)

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """From `<section>_ids`, `<section>_mask` and `<section>_segment`, the sentence of every piece (B×L). `local`:
        sentences that look at images, with statistics of evaluation."""
        text_BxD, sentence_BxMxE, _, share_BxM = self._text(batch, train)
        sentence_BxMxD = self.sentence_head(sentence_BxMxE, train=False)
        local = Sentences(self.cross_attention.asking(sentence_BxMxD), sentence_BxMxD, share_BxM)
        return TextEmbedding({self.section: text_BxD}, local)

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        text_BxD, sentence_BxMxE, mask_BxM, sentence_weight_BxM = self._text(batch, train)
        has_text_Bx1 = jnp.any(mask_BxM, axis=1, keepdims=True)
        counted_BxM = mask_BxM if self.model.mask_statistics else jnp.broadcast_to(has_text_Bx1, mask_BxM.shape)
        sentence_BxMxD = self.sentence_head(sentence_BxMxE, train=train, valid_N=counted_BxM)

        shape, place_NxhxwxC = batch["image"].shape[:2], towers.last_map(self._levels(batch["image"], train))
        place_NxRxC = local_towers.flat_regions(place_NxhxwxC)
        pooled = self.image_pool(place_NxRxC)
        image_BxVxD = self.image_head(pooled.vector, train=train).reshape(*shape, -1)
        region_NxRxD = self.region_head(place_NxRxC, train=train)

        sentence_NxMxD, mask_NxM, has_text_N = (
            jnp.repeat(x, shape[1], axis=0) for x in (sentence_BxMxD, mask_BxM, has_text_Bx1[:, 0])
        )
        seen = self.cross_attention(region_NxRxD, sentence_NxMxD, mask_NxM, train=train, valid_B=has_text_N)
        return Embeddings(
            image_BxVxD,
            text_BxD,
            region_NxRxD.reshape(*shape, *place_NxhxwxC.shape[1:3], -1),
            seen.region.reshape(*shape, *seen.region.shape[1:]),
            pooled.weight.reshape(*shape, -1),
            sentence_BxMxD,
            seen.sentence.reshape(*shape, *seen.sentence.shape[1:]),
            sentence_weight_BxM,
            mask_BxM,
        )

    def _levels(self, image_BxVxHxWx1: Array, train: bool) -> dict[str, Array]:
        pixel_NxHxWxC = towers.pixels(image_BxVxHxWx1, self.image)
        return towers.with_pooled(self.trunk(pixel_NxHxWxC, train=train))

    def _text(self, batch: dict[str, Array], train: bool) -> tuple[Array, Array, Array, Array]:
        """The global vector B×D; sentences B×M×E, their mask and their weights B×M."""
        ids_BxL, mask_BxL, segment_BxL = local_towers.tokens_of(batch, self.section)
        units = self.text.max_sentences

        def read(output: BertOutput, _: Array, segment_Bxl: Array) -> Float[Array, "B M E"]:
            return segment_reduce(output.last.astype(jnp.float32), segment_Bxl, units, self.text.pooling)

        sentence_BxMxE = towers.of_tokens(self.text_tower, read, ids_BxL, mask_BxL, segment_BxL)
        mask_BxM = unit_mask(segment_BxL, units)
        pooled = self.text_pool(sentence_BxMxE, mask_BxM)
        # Examples without a text stay out of the statistics of the head.
        valid_B = jnp.any(mask_BxM, axis=1) & batch.get(f"has_{self.section}", True)
        text_BxD = self.text_head(pooled.vector, train=train, valid_N=valid_B)
        return text_BxD, sentence_BxMxE, mask_BxM, pooled.weight


def build(config: Any, bert: BertConfig | None = None) -> Lovt:
    """The module for a full run config (`configs/lovt.py`).

    Args: bert: shape of the text tower, BERT-base when none is given.
    Raises: ValueError for a frozen text tower, other units than sentences, sentences that are cleaned, or no limit.
    """
    bert, text = local_towers.text_tower(config, bert, "sentences"), config.text
    if text.split != "simple" or text.max_sentences < 1:
        raise ValueError(
            f"text.split={text.split!r}, text.max_sentences={text.max_sentences}: LoVT reads sentences as they were "
            "written, so many at most. Use --config.text.split=simple --config.text.max_sentences=32."
        )
    return Lovt(config.model, config.image, text, bert)


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = pairs + region_weight (region_to_seen + seen_to_region) + sentence_weight (sentence_to_seen +
    seen_to_sentence)`, with `pairs` as ConVIRT's loss; over groups of `config.loss.group_size` examples.

    Args:
      embeddings: from `Lovt.__call__`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding. Examples
        without a sentence take part in nothing.
      config: the run config; reads `text.sections` and `loss`: of the pairs `temperature`, `image_to_text`,
        `text_to_image`, `duplicates`; of the local terms `local_temperature`, `threshold`, `beta`, `smoothing`,
        `region_weight`, `sentence_weight`; `group_size`.
      epoch: not used. sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar; terms `pairs` and the four of `losses.sentence_region.LocalTerms`, before weighting.
    Raises: ValueError as `two_towers.pair_terms` and `spatial_targets`.
    Source: philip-mueller/lovt@f548985.
    """
    (section,), rule, sweep = config.text.sections, config.loss, sweep or Sweep()
    batch = {**batch, f"has_{section}": batch[f"has_{section}"] & jnp.any(embeddings.mask_BxM, axis=1)}
    pairs = two_towers.pair_terms(
        two_towers.Embeddings(embeddings.image_BxVxD, embeddings.text_BxD),
        batch,
        config,
        sweep,
        kind="softmax",
        temperature=rule.temperature,
        directions=(rule.image_to_text, rule.text_to_image),
    )
    used = taking_part(batch, (section,))
    local = grouped(lambda e, b: local_terms(e, b[f"has_{section}"], rule), embeddings, used, rule.group_size, sweep)
    of_regions = local["region_to_seen"] + local["seen_to_region"]
    of_sentences = local["sentence_to_seen"] + local["seen_to_sentence"]
    total = pairs["pairs"] + rule.region_weight * of_regions + rule.sentence_weight * of_sentences
    return total, {**pairs, **local}


def scores(image_local: Regions, text_local: Sentences, config: Any) -> Float[Array, "N M"]:
    """Local scores of all images with all texts: cosines of sentences with what they see, see `sentence_scores`.

    Args: config: not used.
    """
    return sentence_scores(image_local, text_local)


def local_terms(e: Embeddings, valid_B: Bool[Array, " B"], rule: Any) -> dict[str, Array]:
    """The four local terms by name, each a mean over views. Args: rule: `local_temperature`, `threshold`, `beta`,
    `smoothing`."""
    views, grid = range(e.image_BxVxD.shape[1]), e.region_BxVxhxwxD.shape[2:4]
    target_RxR = spatial_targets(*grid, threshold=rule.threshold, beta=rule.beta, smoothing=rule.smoothing)
    of_views = [
        sentence_region_terms(
            e.region_BxVxhxwxD[:, v].reshape(e.region_seen_BxVxRxD[:, v].shape),
            e.region_seen_BxVxRxD[:, v],
            e.sentence_BxMxD,
            e.sentence_seen_BxVxMxD[:, v],
            e.mask_BxM,
            e.region_weight_BxVxR[:, v],
            e.sentence_weight_BxM,
            target_RxR=target_RxR,
            temperature=rule.local_temperature,
            valid_B=valid_B,
        )
        for v in views
    ]
    return {name: sum(getattr(terms, name) for terms in of_views) / len(of_views) for name in LocalTerms._fields}
