"""Composed objectives: terms of several methods over the same towers, each with a weight. None of the papers.

`loss.terms` of a config names the terms; each says its `kind`, its `weight`, which text it is about and, for kinds that
compare whole images, which vector of the image it takes:

| kind            | compares                                | with           | from                          |
|-----------------|-----------------------------------------|----------------|-------------------------------|
| `pairs`         | vectors of images, `pooled` or `levels` | those of texts | CLIP, ConVIRT, IMITATE        |
| `sigmoid`       | the same                                | the same       | SigLIP: every pair on its own |
| `sentences`     | regions of an image                     | sentences      | LoVT's local terms, summed;   |
|                 |                                         |                | all units weigh alike         |
| `words`         | regions of an image                     | words          | GLoRIA's local loss           |
| `views`         | vectors of one view                     | of the other   | IMITATE, without its prior    |
| `orthogonality` | dimensions of the pooled features       | each other     | M-FLAG                        |

`pooled` is the mean of the last map through a head, `levels` IMITATE's read branch: channels of all stages through one
layer of attention. So IMITATE's hierarchy is two terms, `levels` with the findings and `pooled` with the impression.

views -- trunk --+-- channels of all stages -- read branch -- `levels` ---+
                 +-- mean over places -------- image head --- `pooled` ---+-- pairs, sigmoid, views
text --- BERT ---+-- pooling ----------------- text head -----------------+
                 +-- words or sentences ------ unit head ------+
views -- trunk -- places of the last map ----- region head ----+-- words, or sentences by cross-attention

A term of weight 0 is left out, and with it what no other term needs. What terms share is there once: one head per
vector of the image, one for all texts, one for regions, one for units. What the inputs do not allow is refused by
`build` with the name of the term and of what it lacks.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool

from medvlp_jax.encoders.bert import BertConfig, BertOutput, pool
from medvlp_jax.layers.cross_attention import SharedCrossAttention
from medvlp_jax.layers.heads import ProjectionHead
from medvlp_jax.layers.logit_scale import LogitScale
from medvlp_jax.layers.text_units import segment_reduce, unit_mask
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import imitate, local_towers, towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.terms import KINDS, REDUCE, Embeddings, learns_scale, terms_of

__all__ = ["Composed", "build", "loss"]


class Composed(nn.Module):
    """Trunk and text tower with a head for everything that a term reads.

    Attributes:
      model: `config.model`: `trunk`, `bn`, `features`, `head` (as of `TwoTowers`), `read` (as of IMITATE), and `logits`
        where a term learns the scale.
      image, text: `config.image`, `config.text`. terms: of `terms_of`.
      bert: shape of a text tower that is trained here; None when batches carry the vectors of a frozen one.
    RNG: `channels` when training, for `levels`.
    """

    model: Any
    image: Any
    text: Any
    terms: Any
    bert: BertConfig | None = None

    def setup(self):
        model, dtype, views = self.model, jnp.dtype(self.model.dtype), self.image.views
        rest = {"features": model.features, "dtype": dtype, "use_bias": model.head.use_bias, "init": model.head.init}
        norm = towers.batch_norm(model) if model.head.norm else None
        image_norm = {**norm, "views": views} if norm else None
        images = {term.image for term in self.terms.values() if "image" in term}
        self.trunk = towers.trunk(model, self.image)
        if "pooled" in images:
            self.image_head = ProjectionHead(model.head.image_hidden, norm=image_norm, **rest)
        if "levels" in images:
            read_norm = {**towers.batch_norm(model), "views": views * model.read.draws}
            self.read = imitate.ReadBranch(model.read, model.features, read_norm, dtype)
        if self.aligned:
            self.text_head = ProjectionHead(model.head.text_hidden, norm=norm, **rest)
        if self.by_units:
            self.region_head = ProjectionHead(model.head.image_hidden, norm=image_norm, **rest, norm_output=False)
            self.unit_head = ProjectionHead(model.head.text_hidden, norm=norm, **rest, norm_output=False)
        if "sentences" in self.by_units.values():
            unit_norm = {**towers.batch_norm(model), "views": views}
            self.cross_attention = SharedCrossAttention(model.features, unit_norm, dtype=dtype)
        if self.bert is not None:
            self.text_tower = towers.trained_bert(self.bert, self.text)
        if any(map(learns_scale, self.terms.values())):
            self.logits = LogitScale(**model.logits)

    @property
    def aligned(self) -> dict[str, str]:
        """Section -> the vector of the image that it is compared with."""
        return {term.text: term.image for term in self.terms.values() if KINDS[term.kind].units == "vector"}

    @property
    def by_units(self) -> dict[str, str]:
        """Section -> which of its units are compared with regions."""
        kinds = [(term.text, KINDS[term.kind].units) for term in self.terms.values() if "text" in term]
        return {section: units for section, units in kinds if units in REDUCE}

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`regions`, of texts that are compared with `pooled`: what each place contributes to it, their mean."""
        shape = image_BxVxHxWx1.shape[:2]
        levels = self._levels(image_BxVxHxWx1, train)
        image = self._images(levels, shape, train)
        regions = {s: towers.regions(self.image_head, levels, shape) for s, x in self.aligned.items() if x == "pooled"}
        pooled_BxVxC = levels.pop("pooled").reshape(*shape, -1)
        return ImageEmbedding({s: image[x] for s, x in self.aligned.items()}, pooled_BxVxC, levels, regions)

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """From `<section>_embedding`, or `<section>_ids`, `_mask` and, with units, `_segment`."""
        return TextEmbedding(
            {
                section: self._text_vector(self._read_text(batch, section)[0], batch, section, train)
                for section in self.aligned
            }
        )

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        shape = batch["image"].shape[:2]
        levels = self._levels(batch["image"], train)
        kinds = {term.kind for term in self.terms.values()}
        e = Embeddings(self._images(levels, shape, train), {}, {}, {}, {}, {})
        if "orthogonality" in kinds:
            e = e.replace(latent_BxVxC=levels["pooled"].reshape(*shape, -1))
        if self.by_units:
            region_NxhxwxD = self.region_head(towers.last_map(levels), train=train)
            e = e.replace(region_BxVxhxwxD=region_NxhxwxD.reshape(*shape, *region_NxhxwxD.shape[1:]))
        for section in self.text.sections:
            vector_BxE, unit_BxUxE, mask_BxU = self._read_text(batch, section)
            if section in self.aligned:
                e.text[section] = self._text_vector(vector_BxE, batch, section, train)
            if section not in self.by_units:
                continue
            e.unit[section] = self.unit_head(unit_BxUxE, train=train, valid_N=mask_BxU)
            e.mask[section] = mask_BxU
            if self.by_units[section] == "sentences":
                unit_NxUxD, mask_NxU = (jnp.repeat(x, shape[1], axis=0) for x in (e.unit[section], mask_BxU))
                seen = self.cross_attention(
                    local_towers.flat_regions(region_NxhxwxD),
                    unit_NxUxD,
                    mask_NxU,
                    train=train,
                    valid_B=jnp.any(mask_NxU, axis=1),
                )
                e.region_seen[section] = seen.region.reshape(*shape, *seen.region.shape[1:])
                e.unit_seen[section] = seen.sentence.reshape(*shape, *seen.sentence.shape[1:])
        if any(map(learns_scale, self.terms.values())):
            scale_B, bias_B = (jnp.broadcast_to(x, shape[:1]) for x in self.logits())
            e = e.replace(scale_B=scale_B, bias_B=bias_B)
        return e

    def _levels(self, image_BxVxHxWx1: Array, train: bool) -> dict[str, Array]:
        pixel_NxHxWxC = towers.pixels(image_BxVxHxWx1, self.image)
        return towers.with_pooled(self.trunk(pixel_NxHxWxC, train=train))

    def _images(self, levels: dict[str, Array], shape: tuple[int, int], train: bool) -> dict[str, Array]:
        """The vectors of images that terms compare, B×V×D each; of `levels` the mean over its draws."""
        vectors = {}
        for name in {term.image: None for term in self.terms.values() if "image" in term}:
            if name == "pooled":
                vectors[name] = self.image_head(levels["pooled"], train=train).reshape(*shape, -1)
            else:
                key = self.make_rng("channels") if train else None
                token_BxSxKxT = imitate.read_tokens(self.model.read, levels, shape, key)
                read_NxD = self.read(token_BxSxKxT.reshape(-1, *token_BxSxKxT.shape[2:]), train=train)
                vectors[name] = jnp.mean(read_NxD.reshape(*shape, token_BxSxKxT.shape[1] // shape[1], -1), axis=2)
        return vectors

    def _read_text(
        self, batch: dict[str, Array], section: str
    ) -> tuple[Array, Array | None, Bool[Array, "B U"] | None]:
        """What the tower gives for a section: its vector B×E; where a term reads them, units B×U×E and their mask."""
        if f"{section}_embedding" in batch:
            return batch[f"{section}_embedding"], None, None
        units = self.by_units.get(section)
        if units is None:
            ids_BxL, mask_BxL = batch[f"{section}_ids"], batch[f"{section}_mask"]
            return towers.text_vectors(self.text_tower, ids_BxL, mask_BxL, self.text.pooling), None, None
        ids_BxL, mask_BxL, segment_BxL = local_towers.tokens_of(batch, section)
        count = self.text.max_sentences if units == "sentences" else ids_BxL.shape[1]

        def read(output: BertOutput, mask_Bxl: Array, segment_Bxl: Array) -> tuple[Array, Array]:
            vector_BxE = pool(output.last.astype(jnp.float32), mask_Bxl, self.text.pooling)
            return vector_BxE, segment_reduce(output.last.astype(jnp.float32), segment_Bxl, count, REDUCE[units])

        vector_BxE, unit_BxUxE = towers.of_tokens(self.text_tower, read, ids_BxL, mask_BxL, segment_BxL)
        skip = (1, 1) if units == "words" else (0, 0)
        return vector_BxE, unit_BxUxE, unit_mask(segment_BxL, count, skip=skip)

    def _text_vector(self, vector_BxE: Array, batch: dict[str, Array], section: str, train: bool) -> Array:
        # Examples without a text stay out of the statistics of a head with BatchNorm.
        return self.text_head(vector_BxE, train=train, valid_N=batch.get(f"has_{section}"))


def build(config: Any, bert: BertConfig | None = None) -> Composed:
    """The module for a full run config (`configs/hierarchical_local.py`).

    Args: bert: shape of the text tower, BERT-base when it is trained and none is given.
    Raises: ValueError as `terms_of`.
    """
    terms = terms_of(config)
    bert = (bert or BertConfig()) if config.text.trained else None
    return Composed(config.model, config.image, config.text, terms, bert)


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = sum of weight * term` over `config.loss.terms`.

    Args:
      embeddings: from `Composed.__call__`.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding.
      config: the run config; reads `loss.terms` and `loss.group_size`.
      epoch: not used. sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar; every term by name, before its weight; `scale` and `bias` where they are learnt.
    Raises: ValueError as `terms_of` and `groups.grouped`.
    """
    sweep, terms = sweep or Sweep(), terms_of(config)
    values = {name: KINDS[term.kind].loss(embeddings, batch, config, term, sweep) for name, term in terms.items()}
    total = sum(terms[name].weight * value for name, value in values.items())
    if embeddings.scale_B is not None:
        values |= {"scale": embeddings.scale_B[0], "bias": embeddings.bias_B[0]}
    return total, values
