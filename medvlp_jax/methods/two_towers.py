"""Two towers that meet in one space: what CLIP, ConVIRT, M-FLAG and SigLIP share. They differ in heads and losses.

views --- trunk --- mean over places --- image head ---+
                                                       +--- loss over all pairs
text  --- BERT  --- pooling ------------ text head ----+

The trunk is a ResNet, or a ViT whose places are its patches (`model.trunk.vit`).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from medvlp_jax.encoders.bert import BertConfig
from medvlp_jax.layers.heads import ProjectionHead
from medvlp_jax.layers.logit_scale import LogitScale
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.targets import Targets, identity, normalized, same_id, without_duplicates
from medvlp_jax.methods import towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.groups import grouped, taking_part

DUPLICATES = ("mask", "positive", "negative")


@struct.dataclass
class Embeddings:
    """What the losses need: projected images (of V views) and texts.

    scale_B, bias_B: of the logits, where they are learnt: one number, repeated for every example, so that embeddings
    split by examples like everything else. latent_BxVxC: pooled features of the trunk, for losses that shape them.
    """

    image_BxVxD: Float[Array, "B V D"]
    text_BxD: Float[Array, "B D"]
    scale_B: Float[Array, " B"] | None = None
    bias_B: Float[Array, " B"] | None = None
    latent_BxVxC: Float[Array, "B V C"] | None = None


class TwoTowers(nn.Module):
    """Trunk and BERT with a head each.

    Attributes:
      model: `config.model`: `trunk`, `bn`, `features`, `head` (`image_hidden`, `text_hidden`: 0 for one matrix;
        `use_bias`, `init`; `norm`: with BatchNorm), and `logits` (fields of `LogitScale`) where they are learnt.
      image, text: `config.image`, `config.text`.
      bert: shape of a text tower that is trained here; None when batches carry the vectors of a frozen one.
      latent: whether the loss also needs the trunk's pooled features.
    """

    model: Any
    image: Any
    text: Any
    bert: BertConfig | None = None
    latent: bool = False

    def setup(self):
        model, dtype = self.model, jnp.dtype(self.model.dtype)
        rest = {"features": model.features, "dtype": dtype, "use_bias": model.head.use_bias, "init": model.head.init}
        norm = towers.batch_norm(model) if model.head.norm else None
        image_norm = {**norm, "views": self.image.views} if norm else None
        self.trunk = towers.trunk(model, self.image)
        self.image_head = ProjectionHead(model.head.image_hidden, norm=image_norm, **rest)
        self.text_head = ProjectionHead(model.head.text_hidden, norm=norm, **rest)
        if self.bert is not None:
            self.text_tower = towers.trained_bert(self.bert, self.text)
        if "logits" in model:
            self.logits = LogitScale(**model.logits)

    @property
    def section(self) -> str:
        """The text unit that images are aligned with."""
        return self.text.sections[0]

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`regions`: what each place of the last map contributes to the image's vector, their mean."""
        shape = image_BxVxHxWx1.shape[:2]
        pixel_NxHxWxC = towers.pixels(image_BxVxHxWx1, self.image)
        levels = towers.with_pooled(self.trunk(pixel_NxHxWxC, train=train))
        image_BxVxD = self.image_head(levels["pooled"], train=train).reshape(*shape, -1)
        regions = {self.section: towers.regions(self.image_head, levels, shape)}
        pooled_BxVxC = levels.pop("pooled").reshape(*shape, -1)
        return ImageEmbedding({self.section: image_BxVxD}, pooled_BxVxC, levels, regions)

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """From `<section>_embedding` (vectors of a text tower, B×E), or `<section>_ids` and `<section>_mask` (B×L)."""
        if f"{self.section}_embedding" in batch:
            vector_BxE = batch[f"{self.section}_embedding"]
        else:
            ids_BxL, mask_BxL = batch[f"{self.section}_ids"], batch[f"{self.section}_mask"]
            vector_BxE = towers.text_vectors(self.text_tower, ids_BxL, mask_BxL, self.text.pooling)
        # Examples without a text stay out of the statistics of a head with BatchNorm.
        has_text_B = batch.get(f"has_{self.section}")
        return TextEmbedding({self.section: self.text_head(vector_BxE, train=train, valid_N=has_text_B)})

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        image = self.embed_image(batch["image"], train=train)
        text_BxD = self.embed_text(batch, train=train).aligned[self.section]
        scale_bias = (None, None)
        if "logits" in self.model:
            scale_bias = (jnp.broadcast_to(x, text_BxD.shape[:1]) for x in self.logits())
        latent_BxVxC = image.pooled_BxVxC if self.latent else None
        return Embeddings(image.aligned[self.section], text_BxD, *scale_bias, latent_BxVxC)


def build(config: Any, bert: BertConfig | None = None, *, latent: bool = False) -> TwoTowers:
    """The module for a full run config.

    Args: bert: shape of the text tower, BERT-base when it is trained and none is given.
    Raises: ValueError when `text.sections` does not name one unit.
    """
    one_section(config)
    bert = (bert or BertConfig()) if config.text.trained else None
    return TwoTowers(config.model, config.image, config.text, bert, latent)


def one_section(config: Any) -> str:
    """The text that images are aligned with. Raises: ValueError when `text.sections` does not name one unit."""
    sections = tuple(config.text.sections)
    if len(sections) != 1:
        raise ValueError(
            f"text.sections={sections}: {config.method} aligns images with one text. Name one of findings, impression, "
            "report, such as --config.text.sections=\"('report',)\"."
        )
    return sections[0]


def pair_terms(
    embeddings: Embeddings,
    batch: dict[str, Array],
    config: Any,
    sweep: Sweep | None,
    *,
    kind: str,
    temperature: float | None = None,
    directions: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Array]:
    """The pairwise loss of every view with the texts, averaged over views: {"pairs": float32 scalar}.

    Args:
      batch: `has_<section>` (bool B), `<section>_hash` (int32 B); `_mask` (bool B) where examples are padding.
      config: the run config; reads `text.sections` and, of `loss`, `duplicates` (what identical texts of a batch are to
        each other: `mask`: nothing, `positive` or `negative`) and `group_size`.
      kind, directions: see `losses.contrastive`. temperature: fixed; None for the embeddings' own scale and bias.
    Raises: ValueError for an unknown `duplicates` rule, and as `groups.grouped`.
    """
    (section,), cfg, sweep = config.text.sections, config.loss, sweep or Sweep()

    def terms(e: Embeddings, used: dict[str, Array]) -> dict[str, Array]:
        valid_B = used[f"has_{section}"]
        logits = {"temperature": temperature}
        if temperature is None:
            logits = {"temperature": 1.0 / jnp.mean(e.scale_B), "bias": jnp.mean(e.bias_B)}
        rule = {"kind": kind, "directions": directions, "sweep": sweep, **logits}
        hash_B = used[f"{section}_hash"]
        if kind == "softmax":
            targets = normalized_targets(hash_B, cfg.duplicates, valid_B, sweep)
        else:
            targets = pair_targets(hash_B, cfg.duplicates)
        views = range(e.image_BxVxD.shape[1])
        values = [contrastive(e.image_BxVxD[:, v], e.text_BxD, targets=targets, valid_N=valid_B, **rule) for v in views]
        return {"pairs": sum(values) / len(values)}

    return grouped(terms, embeddings, taking_part(batch, (section,)), cfg.group_size, sweep)


def normalized_targets(hash_B: Array, rule: str, valid_B: Array, sweep: Sweep) -> Targets:
    """`pair_targets` for cross entropies: several positives share a weight of one. Args: valid_B: who takes part."""
    targets = pair_targets(hash_B, rule)
    return normalized(targets, valid_N=valid_B, valid_M=valid_B, sweep=sweep) if rule == "positive" else targets


def pair_targets(hash_B: Array, rule: str) -> Targets:
    """Row i belongs to column i; what columns with the same hash are to it, `rule` (`loss.duplicates`) says.

    Raises: ValueError for another rule than `DUPLICATES`.
    """
    if rule not in DUPLICATES:
        raise ValueError(f"loss.duplicates={rule!r} is unknown. Choose one of {', '.join(DUPLICATES)}.")
    if rule == "positive":
        return same_id(hash_B)
    targets = identity(hash_B.shape[0])
    return without_duplicates(targets, hash_B) if rule == "mask" else targets
