"""IMITATE: clinical-prior guided hierarchical vision-language pretraining (arXiv 2310.07355).

Two augmented views of a chest X-ray go through one ResNet. The *read* embedding summarises randomly drawn channels of
all four stages and is aligned with the FINDINGS; the *diagnosis* embedding is the pooled last stage and is aligned
with the IMPRESSION. Text comes from a frozen clinical BERT and one trainable MLP shared by both sections. Targets are
softened by the correlation of the frozen report vectors. View-view terms are added.

Reference for `preset='released'`: cheliu-computation/IMITATE-TMI2024@cd1c575. Every difference is one config field:

| field                     | released      | fixed (default) | why                                              |
|---------------------------|---------------|-----------------|--------------------------------------------------|
| `text.missing`            | space         | mask            | an absent section is not a text to align with    |
| `loss.prior.mass`         | released      | batch_invariant | unscaled targets change objective with the batch |
| `loss.prior.centre`       | False         | False           | True only in `small`: see `clinical_prior`        |
| `loss.group_size`         | 128           | 0 (whole batch) | negatives from all devices                       |
| `loss.duplicates`         | negative      | mask            | identical reports are no negatives of each other |
| `model.bn.scope`          | group (128)   | global          | statistics independent of the device count       |
| `model.read.mask_padding` | False         | True            | zero tokens carry no evidence                    |
| `image.augment` flips     | 0.5 and 0.5   | none            | flips contradict "left" and "right" in the text  |
| `optimizer.schedule`      | warm_restarts | cosine          | one cosine over the true steps, with warm-up     |
| `optimizer.decay_mask`    | all           | matrices        | no decay on norms, biases and positions          |
| `data.reshuffle`          | False         | True            | the released loader repeats one order            |

The released code runs the trunk twice per view to draw channels twice. Drawing twice from one pass gives the same
losses (BatchNorm running averages aside), so both presets make one pass per view and set `model.read.draws=2`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from medvlp_jax.encoders.bert import BertConfig
from medvlp_jax.layers.channel_tokens import ChannelAttention, channel_tokens, sample_channels, shrink_maps
from medvlp_jax.layers.heads import ProjectionHead
from medvlp_jax.losses.clinical_prior import prior_targets
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import towers
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding
from medvlp_jax.methods.groups import grouped, taking_part

STAGES = ("stage1", "stage2", "stage3", "stage4")
SECTIONS = ("findings", "impression")
DUPLICATES = ("mask", "negative")


@struct.dataclass
class Embeddings:
    """Every array the loss needs. B examples, V views, P channel draws per view.

    read_BxVxPxD, diagnosis_BxVxD: image side. findings_BxD, impression_BxD: projected text.
    findings_BxE, impression_BxE: frozen text vectors, for the prior.
    """

    read_BxVxPxD: Float[Array, "B V P D"]
    diagnosis_BxVxD: Float[Array, "B V D"]
    findings_BxD: Float[Array, "B D"]
    impression_BxD: Float[Array, "B D"]
    findings_BxE: Float[Array, "B E"]
    impression_BxE: Float[Array, "B E"]


class ReadBranch(nn.Module):
    """Channel tokens -> attention with CLS -> head. Takes the tokens, so that it is a function of plain arrays."""

    config: Any
    features: int
    norm: dict
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, token_NxKxT: Float[Array, "N K T"], *, train: bool) -> Float[Array, "N D"]:
        summary_NxT = ChannelAttention(
            tokens=self.config.tokens,
            heads=self.config.heads,
            mask_padding=self.config.mask_padding,
            dtype=self.dtype,
            name="attention",
        )(token_NxKxT)
        head = ProjectionHead(self.config.hidden, self.features, self.norm, self.dtype, name="head")
        return head(summary_NxT, train=train)


class Imitate(nn.Module):
    """The two towers.

    Attributes: model: `config.model`; image: `config.image` (normalisation statistics, number of views).
    RNG: `channels` when training.
    """

    model: Any
    image: Any

    def setup(self):
        model, views = self.model, self.image.views
        dtype = jnp.dtype(model.dtype)
        norm = towers.batch_norm(model)
        self.trunk = towers.trunk(model, self.image)
        self.read = ReadBranch(model.read, model.features, {**norm, "views": views * model.read.draws}, dtype)
        self.diagnosis_head = ProjectionHead(model.diagnosis_hidden, model.features, {**norm, "views": views}, dtype)
        self.text_head = ProjectionHead(model.text_hidden, model.features, norm, dtype)

    def embed_image(self, image_BxVxHxWx1: Array, *, train: bool = False) -> ImageEmbedding:
        """`aligned['findings']` is the read vector, averaged over draws; `aligned['impression']` the diagnosis.

        `regions["impression"]`: what each place of the last map contributes to the diagnosis, whose head is taken as
        linear around the pooled features: the mean of the regions is the image's vector.
        """
        read_BxVxPxD, diagnosis_BxVxD, levels = self._image(image_BxVxHxWx1, train)
        batch, views = image_BxVxHxWx1.shape[:2]
        aligned = {"findings": jnp.mean(read_BxVxPxD, axis=2), "impression": diagnosis_BxVxD}
        regions = {"impression": towers.regions(self.diagnosis_head, levels, (batch, views))}
        pooled_NxC = levels.pop("pooled")
        return ImageEmbedding(aligned, pooled_NxC.reshape(batch, views, -1), levels, regions)

    def embed_text(self, batch: dict[str, Array], *, train: bool = False) -> TextEmbedding:
        """Text embeddings from `findings_embedding` and `impression_embedding` (frozen vectors, B×E)."""
        return TextEmbedding(
            {
                section: self.text_head(batch[f"{section}_embedding"], train=train, valid_N=batch[f"has_{section}"])
                for section in SECTIONS
            }
        )

    def __call__(self, batch: dict[str, Array], *, train: bool) -> Embeddings:
        read_BxVxPxD, diagnosis_BxVxD, _ = self._image(batch["image"], train)
        text = self.embed_text(batch, train=train).aligned
        return Embeddings(
            read_BxVxPxD,
            diagnosis_BxVxD,
            text["findings"],
            text["impression"],
            batch["findings_embedding"],
            batch["impression_embedding"],
        )

    def _image(self, image_BxVxHxWx1: Array, train: bool):
        batch, views = image_BxVxHxWx1.shape[:2]
        levels = self.trunk(towers.pixels(image_BxVxHxWx1, self.image), train=train)
        diagnosis_BxVxD = self.diagnosis_head(levels["pooled"], train=train).reshape(batch, views, -1)
        return self._read(levels, batch, views, train), diagnosis_BxVxD, dict(levels)

    def _read(self, levels: dict[str, Array], batch: int, views: int, train: bool) -> Float[Array, "B V P D"]:
        # Without training the draw is fixed, so that an image has one embedding.
        key = self.make_rng("channels") if train else None
        token_BxSxKxT = read_tokens(self.model.read, levels, (batch, views), key)
        read_NxD = self.read(token_BxSxKxT.reshape(-1, *token_BxSxKxT.shape[2:]), train=train)
        return read_NxD.reshape(batch, views, token_BxSxKxT.shape[1] // views, -1)


def read_tokens(
    read: Any, levels: dict[str, Array], shape: tuple[int, int], key: Array | None
) -> Float[Array, "B S K T"]:
    """The channel tokens of every view and draw, S = views * draws of them, view-major.

    Args: read: `config.model.read`. levels: of the trunk, example-major. shape: examples and views. key: of the draws
      in training; None in evaluation, whose draws are those of `evaluation_channels`.
    Raises: ValueError for a trunk without one of the four stages.
    """
    if missing := [stage for stage in STAGES if stage not in levels]:
        there = ", ".join(sorted(name for name, x in levels.items() if x.ndim == 4))
        raise ValueError(
            f"The read branch takes channels of {', '.join(STAGES)}: missing local level {missing[0]}. This trunk has "
            f"{there}. Use a ResNet of four stages, or compare images by their pooled features."
        )
    maps = shrink_maps([levels[stage] for stage in STAGES], grid=read.grid)
    maps = [stage_map.reshape(*shape, *stage_map.shape[1:]) for stage_map in maps]
    widths = [stage_map.shape[-1] for stage_map in maps]
    token_sets = []
    for view in range(shape[1]):
        if key is None:
            draws = evaluation_channels(read, widths)
        else:
            draws = [draw_channels(read, widths, key, view, draw) for draw in range(read.draws)]
        indices = [jnp.stack(of_stage) for of_stage in zip(*draws, strict=True)]
        token_sets.append(channel_tokens([m[:, view] for m in maps], indices, grid=read.grid))
    return jnp.concatenate(token_sets, axis=1)


def draw_channels(read: Any, widths: Sequence[int], key: Array, view: int, draw: int) -> tuple[Array, ...]:
    """The channels per stage of one draw for one view. Args: read: `config.model.read`; widths: of the stages."""
    view_key = jax.random.fold_in(jax.random.fold_in(key, view), draw)
    return sample_channels(view_key, widths, read.keep, replace=read.replace)


def evaluation_channels(read: Any, widths: Sequence[int]) -> list[tuple[Array, ...]]:
    """The draws that `embed_image` averages over when it does not train; export carries them along."""
    key = jax.random.key(read.eval_seed)
    return [draw_channels(read, widths, key, 0, draw) for draw in range(read.eval_draws)]


def build(config: Any, bert: BertConfig | None = None) -> Imitate:
    """The module for a full run config (`configs/imitate.py`). Raises: ValueError for a text tower that is trained."""
    if config.text.trained or tuple(config.text.sections) != SECTIONS:
        raise ValueError(
            f"text.trained={config.text.trained}, text.sections={tuple(config.text.sections)}: IMITATE's text tower is "
            f"frozen and reads {' and '.join(SECTIONS)}. Leave both as configs/imitate.py has them."
        )
    return Imitate(model=config.model, image=config.image)


def read_weight(epoch: Array, *, hold: int = 30, stop: int = 50) -> Float[Array, ""]:
    """mu: weight of the findings terms; 1 up to epoch `hold`, then 1.3 - (epoch - hold)/20, 0.3 from epoch `stop` on.

    Source: cheliu-computation/IMITATE-TMI2024@cd1c575, the trainer's epoch rule.
    """
    epoch = jnp.asarray(epoch, jnp.float32)
    falling = 1.3 - (epoch - hold) / 20.0
    return jnp.where(epoch <= hold, 1.0, jnp.where(epoch < stop, falling, 0.3))


def loss(
    embeddings: Embeddings, batch: dict[str, Array], config: Any, epoch: Array, sweep: Sweep | None = None
) -> tuple[Array, dict[str, Array]]:
    """`L = diagnosis + mu * read + view_diagnosis + mu * view_read`, over groups of `config.loss.group_size` examples.

    Args:
      embeddings: from `Imitate.__call__`, with two views or one (then without view terms).
      batch: `has_findings`, `has_impression` (bool B), `findings_hash`, `impression_hash` (int32 B); `_mask` (bool B)
        where examples are padding.
      config: the run config; reads `config.loss`.
      epoch: whole epochs seen before this step, for mu.
      sweep: how pairs are tiled; dense when omitted.

    Returns: float32 scalar and the named terms, before weighting by mu.
    Raises: ValueError for a batch that does not split into groups, groups with a tiled schedule, or an unknown
      `duplicates` rule.
    Source: arXiv 2310.07355 section III.
    """
    cfg, sweep = config.loss, sweep or Sweep()
    if cfg.duplicates not in DUPLICATES:
        raise ValueError(f"loss.duplicates={cfg.duplicates!r} is unknown. Choose one of {', '.join(DUPLICATES)}.")
    used = taking_part(batch, SECTIONS)
    terms = grouped(lambda e, b: _terms(e, b, cfg, sweep), embeddings, used, cfg.group_size, sweep)
    mu = read_weight(epoch, hold=cfg.mu_hold, stop=cfg.mu_stop)
    total = terms["diagnosis"] + mu * terms["read"]
    if "view_read" in terms:
        total = total + terms["view_diagnosis"] + mu * terms["view_read"]
    return total, {**terms, "mu": mu}


def _terms(embeddings: Embeddings, batch: dict[str, Array], cfg: Any, sweep: Sweep) -> dict[str, Array]:
    views = embeddings.diagnosis_BxVxD.shape[1]
    diagnosis = [embeddings.diagnosis_BxVxD[:, v] for v in range(views)]
    read = [embeddings.read_BxVxPxD[:, v] for v in range(views)]

    def text_term(images: list[Array], text_BxD: Array, frozen_BxE: Array, section: str) -> Array:
        valid_B = batch[f"has_{section}"]
        hash_B = batch[f"{section}_hash"] if cfg.duplicates == "mask" else None
        rule = {**cfg.prior, "temperature": cfg.temperature_text, "sweep": sweep}
        targets = prior_targets(frozen_BxE, valid_B=valid_B, hash_B=hash_B, **rule)
        return sum(
            contrastive(
                image_BxD, text_BxD, temperature=cfg.temperature_text, targets=targets, valid_N=valid_B, sweep=sweep
            )
            for image_BxD in images
        )

    terms = {
        "diagnosis": text_term(diagnosis, embeddings.impression_BxD, embeddings.impression_BxE, "impression"),
        "read": text_term([r[:, 0] for r in read], embeddings.findings_BxD, embeddings.findings_BxE, "findings"),
    }
    if cfg.view_terms and views == 2:
        # The last draw of each view: the released code redraws channels for its view-view pass.
        rule = {**cfg.prior, "temperature": cfg.temperature_view, "sweep": sweep}
        targets = prior_targets(embeddings.impression_BxE, valid_B=batch["has_impression"], **rule)
        view = {"temperature": cfg.temperature_view, "valid_N": batch.get("_mask"), "sweep": sweep}
        terms["view_diagnosis"] = 2.0 * contrastive(*diagnosis, targets=targets, **view)
        terms["view_read"] = 2.0 * contrastive(read[0][:, -1], read[1][:, -1], **view)
    return terms
