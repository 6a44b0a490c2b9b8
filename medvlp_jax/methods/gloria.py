"""GLoRIA: whole images with sentences, and every word with the regions that it looks at (Huang et al., ICCV 2021).

A ResNet gives a vector of the whole image and, from its third stage, one of every region; a BERT that is trained gives
word vectors, sums of pieces and of its last layers, and their mean for the whole sentence. The global loss contrasts
cosines of images and sentences. The local loss scores every image against every sentence: each word attends over the
regions, the cosine of word and attended region is pooled over words by log-sum-exp, and the scores are contrasted both
ways. Training reads one sentence, drawn anew at every access; evaluation reads the whole text.

    image --- trunk -+- stage3 --- region head (1x1) --- R regions -+
                     |                                              +--- word-region scores B x B --- local loss
                     |    text --- BERT, last layers --- W words ---+
                     |                        +--------- mean ------+
                     |                                              +--- cosines B x B -------------- global loss
                     +- stage4, mean --- image head ----------------+

Reference for `preset='released'`: marshuang80/gloria@416466a. Every difference is one config field:

| field                          | released        | fixed (default) | why                                             |
|--------------------------------|-----------------|-----------------|-------------------------------------------------|
| `model.local.tokens`           | cls_and_words   | words           | [CLS] is no word                                |
| `model.local.text_mean`        | padded          | real            | over all positions or those of the text: one    |
|                                |                 |                 | cosine, another length                          |
| `loss.local.form`              | double_softmax  | double_softmax  | `single_softmax`: cosines, over regions alone   |
| `loss.local.length_normalised` | False           | False           | True takes off what long texts have by length   |
| `loss.duplicates`              | negative        | mask            | equal sentences are no negatives                |
| `loss.group_size`              | 48              | 0 (whole batch) | negatives from all devices                      |
| `model.bn.scope`               | group (48)      | global          | statistics independent of the device count      |
| `text.sections`                | impression      | report          | findings say where and how                      |
| `text.split`                   | gloria          | simple          | that rule splits decimals, drops punctuation    |
| `image.mean`, `image.std`      | 0.5             | ImageNet's      | those of the trunk's first weights              |
| `image.augment`                | crop            | and rotation,   | as the other methods here                       |
|                                |                 | contrast        |                                                 |
| `optimizer.name`, `betas`      | adam, 0.5       | adamw, 0.9      | decay apart from the gradient                   |
| `optimizer.weight_decay`       | 1e-6            | 0.05            | for that optimizer                              |
| `optimizer.decay_mask`         | all             | matrices        | no decay on norms and biases                    |
| `optimizer.schedule`           | constant        | cosine, warm-up | see below                                       |
| `optimizer.clip_norm`          | 0.25            | 1               | as the other methods here                       |
| `batch_size`                   | 48              | 96              | more negatives                                  |

The released schedule halves the rate when the validation loss stands still; that is not built, its rate stays constant.
A word that is unknown to the vocabulary ([UNK]) costs the released code one word at the end of the text; here it counts
as a word in both presets. Zero-shot counts the words of a prompt, where the released code counts characters and so
takes in [SEP] and padding; its retriever, which skips the first word, is not repeated. Training is float32 or bfloat16
(`model.dtype`, `text.dtype`), not float16.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from medvlp_jax.encoders.bert import BertConfig, BertOutput, at_shortest_length
from medvlp_jax.layers.heads import ProjectionHead
from medvlp_jax.layers.text_units import segment_reduce, unit_mask
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.word_region import word_region_loss, word_region_scores
from medvlp_jax.methods import local_towers, towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.groups import grouped, taking_part
from medvlp_jax.methods.two_towers import normalized_targets, pair_terms

TOKENS = {"words": (1, 1), "cls_and_words": (0, 1)}  # units left out at the start and the end of a text
TEXT_MEANS = ("real", "padded")


class Words(NamedTuple):
    """word_BxWxD: vectors of [CLS], words and [SEP], then zeros. mask_BxW: those that are compared with regions."""

    word_BxWxD: Array
    mask_BxW: Array


@struct.dataclass
class Embeddings:
    """What the losses need, D wide as the text tower, of any scale. B examples, V views, R regions, W words."""

    image_BxVxD: Float[Array, "B V D"]
    text_BxD: Float[Array, "B D"]
    region_BxVxRxD: Float[Array, "B V R D"]
    word_BxWxD: Float[Array, "B W D"]
    mask_BxW: Bool[Array, "B W"]


class Gloria(nn.Module):
    """Trunk with a head for the image and one for its regions; BERT without any.

    Attributes:
      model: `config.model`: `trunk`, `bn`, `last_layers` (of BERT, that are summed), `upsample` (side of what the trunk
        sees, 0: views as they are) and `local`: `level` of the trunk, `tokens`, `text_mean`.
      image, text: `config.image`, `config.text`. bert: shape of the text tower.
    """

    model: Any
    image: Any
    text: Any
    bert: BertConfig

    def setup(self):
        rest = {"features": self.bert.hidden_size, "norm": None, "dtype": jnp.dtype(self.model.dtype)}
        self.trunk = towers.trunk(self.model, self.image)
        self.image_head = ProjectionHead(0, **rest)
        self.region_head = ProjectionHead(0, **rest, use_bias=False)
        self.text_tower = towers.trained_bert(self.bert, self.text)

    @property
    def section(self) -> str:
        """The text that images are aligned with."""
        return self.text.sections[0]

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`local` and `regions`: the regions that words look at, of the mean of whose words a text's vector is made."""
        shape, seen = image_BxVxHxWx1.shape[:2], (image_BxVxHxWx1, self.image, self.model)
        levels, region_NxhxwxD = local_towers.levels_and_regions(self.trunk, self.region_head, *seen, train=train)
        image_BxVxD = self.image_head(levels["pooled"], train=train).reshape(*shape, -1)
        regions = {self.section: region_NxhxwxD.reshape(*shape, *region_NxhxwxD.shape[1:])}
        pooled_BxVxC = levels.pop("pooled").reshape(*shape, -1)
        local = local_towers.flat_regions(region_NxhxwxD)
        return ImageEmbedding({self.section: image_BxVxD}, pooled_BxVxC, levels, regions, local)

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """From `<section>_ids`, `_mask` and `_segment` (words, B×L). `local`: `Words`, without [CLS] and [SEP]."""
        text_BxD, word_BxWxD, segment_BxL = self._text(batch)
        mask_BxW = unit_mask(segment_BxL, segment_BxL.shape[1], skip=TOKENS["words"])
        return TextEmbedding({self.section: text_BxD}, Words(word_BxWxD, mask_BxW))

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        image = self.embed_image(batch["image"], train=train)
        text_BxD, word_BxWxD, segment_BxL = self._text(batch)
        mask_BxW = unit_mask(segment_BxL, segment_BxL.shape[1], skip=TOKENS[self.model.local.tokens])
        region_BxVxRxD = image.local.reshape(*batch["image"].shape[:2], *image.local.shape[1:])
        return Embeddings(image.aligned[self.section], text_BxD, region_BxVxRxD, word_BxWxD, mask_BxW)

    def _text(self, batch: dict[str, Array]) -> tuple[Array, Array, Array]:
        ids_BxL, mask_BxL, segment_BxL = local_towers.tokens_of(batch, self.section)
        length = ids_BxL.shape[1]

        def read(output: BertOutput, mask_Bxl: Array, segment_Bxl: Array) -> tuple[Array, Array]:
            piece_BxlxE = sum(hidden.astype(jnp.float32) for hidden in output.hidden[-self.model.last_layers :])
            total_BxE = jnp.sum(jnp.where(mask_Bxl[..., None], piece_BxlxE, 0.0), axis=1)
            real_Bx1 = jnp.maximum(jnp.sum(mask_Bxl, axis=1, keepdims=True), 1)
            text_BxE = total_BxE / (self.text.max_length if self.model.local.text_mean == "padded" else real_Bx1)
            return text_BxE, segment_reduce(piece_BxlxE, segment_Bxl, length, "sum")

        return *towers.of_tokens(self.text_tower, read, ids_BxL, mask_BxL, segment_BxL), segment_BxL


def build(config: Any, bert: BertConfig | None = None) -> Gloria:
    """The module for a full run config (`configs/gloria.py`).

    Args: bert: shape of the text tower, BERT-base when none is given.
    Raises: ValueError for a frozen text tower, other units than words, more layers than it has, another width than its
      own, or an unknown choice of `model.local`.
    """
    bert, model = local_towers.text_tower(config, bert, "words"), config.model
    if model.features not in (0, bert.hidden_size):
        raise ValueError(
            f"model.features={model.features}: GLoRIA compares images with the vectors of the text tower as they are, "
            f"{bert.hidden_size} wide. Use --config.model.features=0."
        )
    if not 1 <= model.last_layers <= bert.num_hidden_layers:
        raise ValueError(
            f"model.last_layers={model.last_layers}: the text tower has {bert.num_hidden_layers} layers. Use "
            f"--config.model.last_layers={bert.num_hidden_layers} or less, at least 1."
        )
    for name, known in (("tokens", TOKENS), ("text_mean", TEXT_MEANS)):
        if model.local[name] not in known:
            raise ValueError(f"model.local.{name}={model.local[name]!r} is unknown. Choose one of {', '.join(known)}.")
    return Gloria(model, config.image, config.text, bert)


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = local_weight * local + global_weight * pairs`, each the sum of both directions' cross entropies.

    Args:
      embeddings: from `Gloria.__call__`; terms are means over views.
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B), `_mask` (bool B) where examples are padding. Texts
        without a word take no part in the local term.
      config: the run config; reads `text.sections` and `loss`: `temperature`, `local` (see `word_region_loss`),
        `local_weight`, `global_weight`, `duplicates`, `group_size`.
      epoch: not used. sweep: how pairs of the global term are tiled; dense when omitted. The local term is always taken
        by tiles, over the mesh of the sweep, and as wide as the batch's longest text.

    Returns: float32 scalar; terms `pairs` (global) and `local`, before their weights.
    Raises: ValueError as `two_towers.pair_terms`.
    Source: marshuang80/gloria@416466a.
    """
    (section,), rule, sweep = config.text.sections, config.loss, sweep or Sweep()
    directions = (1.0, 1.0)
    terms = pair_terms(
        embeddings, batch, config, sweep, kind="softmax", temperature=rule.temperature, directions=directions
    )
    # Groups are mapped over, and lie wherever their examples do.
    tiles = Sweep("chunked", mesh=None if rule.group_size else sweep.mesh)

    def local(e: Embeddings, used: dict[str, Array]) -> dict[str, Array]:
        valid_B = used[f"has_{section}"] & jnp.any(e.mask_BxW, axis=1)
        targets = normalized_targets(used[f"{section}_hash"], rule.duplicates, valid_B, Sweep())
        values = [
            word_region_loss(
                e.region_BxVxRxD[:, view],
                e.word_BxWxD,
                e.mask_BxW,
                **rule.local,
                directions=directions,
                targets=targets,
                valid_B=valid_B,
                sweep=tiles,
            )
            for view in range(e.region_BxVxRxD.shape[1])
        ]
        return {"local": sum(values) / len(values)}

    used = taking_part(batch, (section,))

    def at_width(word_BxwxD: Array, mask_Bxw: Array) -> dict[str, Array]:
        cut = embeddings.replace(word_BxWxD=word_BxwxD, mask_BxW=mask_Bxw)
        return grouped(local, cut, used, rule.group_size, sweep)

    terms |= at_shortest_length(at_width, embeddings.word_BxWxD, embeddings.mask_BxW)
    return rule.local_weight * terms["local"] + rule.global_weight * terms["pairs"], terms


def scores(image_local: Array, text_local: Words, config: Any) -> Float[Array, "N M"]:
    """Local scores of all images with all texts, as GLoRIA classifies: `similarity` times the greatest cosine of a word
    with what it sees, or as in training, by log-sum-exp (`model.local.pool`).

    Args: image_local: regions N×R×D. text_local: words of M texts.
    Returns: float32; a text without words scores 0.
    """
    rule, pool = config.loss.local, config.model.local.pool
    same = {name: rule[name] for name in ("attention", "similarity", "form", "images_per_tile", "texts_per_tile")}
    normalised = rule.length_normalised and pool == "logsumexp"

    def at_width(word_MxwxD: Array, mask_Mxw: Array) -> Array:
        rest = {**same, "pool": pool, "length_normalised": normalised, "sweep": Sweep("chunked")}
        return word_region_scores(image_local, word_MxwxD, mask_Mxw, **rest)

    return at_shortest_length(at_width, *text_local)
