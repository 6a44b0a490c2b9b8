"""GLoRIA's local loss: every text is scored against every image by its words' attention over the image's regions.

The attended region of a word, `c = sum_m A_m v_m`, enters a score by its cosine with the word alone, and so does not
have to be formed: `c . t = sum_m A_m (v_m . t)` holds the dot products that attention was made from, and
`|c|^2 = A G A^T` needs the products `G` of an image's regions with each other, which all texts share. That is R x R
numbers per word and pair instead of R x D.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.contrastive import score_loss
from medvlp_jax.losses.local import local_scores
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product
from medvlp_jax.losses.targets import MASKED, Targets

FORMS = ("double_softmax", "single_softmax")
POOLS = ("logsumexp", "max")
TINY = 1e-24


class Regions(NamedTuple):
    """Images, as scores need them: regions [..., R, D] and their products with each other [..., R, R], in one dtype;
    one over the lengths of regions [..., R], and what squared lengths of their means are taken as at least [...].
    """

    region: Array
    gram: Array
    inverse_length: Array
    floor: Array


class Words(NamedTuple):
    """Texts, as scores need them: words [..., W, D], which are real [..., W], one over their lengths [..., W]."""

    word: Array
    mask: Array
    inverse_length: Array


def word_region_attention(
    region_RxD: Float[Array, "R D"],
    word_WxD: Float[Array, "W D"],
    mask_W: Bool[Array, " W"],
    *,
    attention: float = 4.0,
    form: str = "double_softmax",
) -> Float[Array, "W R"]:
    """How much every word looks at every region: a heat map per word, float32, rows sum to one.

    Args:
      region_RxD, word_WxD: of one image and one text, any scale.
      mask_W: real words. Rows of the others say nothing.
      attention: what the second softmax is sharpened with (`double_softmax`), or the only one (`single_softmax`).
      form: `double_softmax`: dot products are normalised over the words of the text, then, times `attention`, over the
        regions (GLoRIA as released). `single_softmax`: cosines, times `attention`, are normalised over the regions.

    Raises: ValueError for another form.
    """
    _check(form)
    dot_WxR = product(word_WxD, region_RxD.T)
    return _attention(dot_WxR, _regions(region_RxD), _words(word_WxD, mask_W), attention, form)


def word_region_loss(
    region_BxRxD: Float[Array, "B R D"],
    word_BxWxD: Float[Array, "B W D"],
    mask_BxW: Bool[Array, "B W"],
    *,
    attention: float = 4.0,
    similarity: float = 5.0,
    contrast: float = 10.0,
    form: str = "double_softmax",
    length_normalised: bool = False,
    directions: tuple[float, float] = (1.0, 1.0),
    targets: Targets | Array | None = None,
    valid_B: Bool[Array, " B"] | None = None,
    sweep: Sweep | None = None,
    images_per_tile: int = 16,
    texts_per_tile: int = 16,
) -> Float[Array, ""]:
    """GLoRIA's local loss: cross entropies of `contrast * word_region_scores`, images and texts in turn as queries.

    Args:
      region_BxRxD: region vectors, B×361×768 in GLoRIA. word_BxWxD: word vectors, B×97×768; neither is normalised.
      mask_BxW: words that take part (see `layers.text_units`).
      attention, similarity, contrast: multipliers, i.e. inverse temperatures, 4, 5 and 10 as released.
      form, length_normalised: see `word_region_scores`.
      directions: weights of the images' and the texts' losses, each a mean: the released loss is their sum.
      targets: as in `contrastive.contrastive`; identity when omitted.
      valid_B: pairs that take part; those with at least one word, when omitted.
      sweep, images_per_tile, texts_per_tile: see `local_scores`; by tiles of 16 texts, unless told otherwise.

    Returns: float32 scalar, zero when no pair is valid.
    Source: marshuang80/gloria@416466a (Huang et al., ICCV 2021).
    """
    score_BxB = word_region_scores(
        region_BxRxD,
        word_BxWxD,
        mask_BxW,
        attention=attention,
        similarity=similarity,
        form=form,
        length_normalised=length_normalised,
        sweep=sweep or Sweep("chunked"),
        images_per_tile=images_per_tile,
        texts_per_tile=texts_per_tile,
    )
    valid_B = jnp.any(mask_BxW, axis=1) if valid_B is None else valid_B
    return score_loss(contrast * score_BxB, targets=targets, valid_N=valid_B, directions=directions)


def word_region_scores(
    region_NxRxD: Float[Array, "N R D"],
    word_MxWxD: Float[Array, "M W D"],
    mask_MxW: Bool[Array, "M W"],
    *,
    attention: float = 4.0,
    similarity: float = 5.0,
    form: str = "double_softmax",
    pool: str = "logsumexp",
    length_normalised: bool = False,
    sweep: Sweep | None = None,
    images_per_tile: int = 16,
    texts_per_tile: int = 16,
) -> Float[Array, "N M"]:
    """Score of every image with every text, float32.

    A word is compared with what it sees, `c`, the mean of regions by `word_region_attention`. The score is the
    log-sum-exp over the words of `similarity * cos(c, word)`; `pool='max'` takes the largest instead, as GLoRIA's
    zero-shot classification does. Padding words take no part in any softmax nor in the pooling; a text without words
    scores 0.

    Args:
      region_NxRxD, word_MxWxD, mask_MxW: as in `word_region_loss`; N images and M texts.
      form: see `word_region_attention`.
      length_normalised: subtract the log of the number of words, which longer texts else have in their favour.
      sweep, images_per_tile, texts_per_tile: see `local_scores`.

    Raises: ValueError for another form or pool.
    """
    _check(form, pool)
    rule = {"attention": attention, "similarity": similarity, "form": form, "pool": pool}
    return local_scores(
        jax.vmap(_regions)(region_NxRxD),
        jax.vmap(_words)(word_MxWxD, mask_MxW),
        functools.partial(_score, **rule, length_normalised=length_normalised),
        sweep=sweep,
        images_per_tile=images_per_tile,
        texts_per_tile=texts_per_tile,
    )


def _check(form: str, pool: str = POOLS[0]) -> None:
    if form not in FORMS:
        raise ValueError(f"Unknown attention of words over regions {form!r}. Choose one of {', '.join(FORMS)}.")
    if pool not in POOLS:
        raise ValueError(f"Unknown pooling of words {pool!r}. Choose one of {', '.join(POOLS)}.")


def _regions(region_RxD: Array) -> Regions:
    gram_RxR = product(region_RxD, region_RxD.T)
    squared_R = jnp.diagonal(gram_RxR)
    floor = lax.stop_gradient(jnp.max(squared_R)) * 1e-7  # below it rounding decides
    return Regions(region_RxD, gram_RxR.astype(region_RxD.dtype), lax.rsqrt(jnp.maximum(squared_R, TINY)), floor)


def _words(word_WxD: Array, mask_W: Array) -> Words:
    squared_W = jnp.sum(jnp.square(word_WxD.astype(jnp.float32)), axis=1)
    return Words(word_WxD, mask_W, lax.rsqrt(jnp.maximum(squared_W, TINY)))


def _attention(dot_WxR: Array, image: Regions, text: Words, attention: float, form: str) -> Array:
    if form == "single_softmax":
        score_WxR = dot_WxR * text.inverse_length[:, None] * image.inverse_length
    else:
        score_WxR = jax.nn.softmax(jnp.where(text.mask[:, None], dot_WxR, MASKED), axis=0)
    return jax.nn.softmax(attention * score_WxR, axis=1)


def _score(
    image: Regions, text: Words, *, attention: float, similarity: float, form: str, pool: str, length_normalised: bool
) -> Array:
    dot_WxR = product(text.word, image.region.T)
    attention_WxR = _attention(dot_WxR, image, text, attention, form)
    dot_W = jnp.sum(attention_WxR * dot_WxR, axis=1)
    squared_W = jnp.sum(product(attention_WxR.astype(image.gram.dtype), image.gram) * attention_WxR, axis=1)
    cosine_W = dot_W * lax.rsqrt(jnp.maximum(squared_W, image.floor + TINY)) * text.inverse_length
    cosine_W = jnp.where(text.mask, similarity * cosine_W, MASKED)
    score = jnp.max(cosine_W) if pool == "max" else jax.nn.logsumexp(cosine_W)
    if length_normalised:
        score = score - jnp.log(jnp.maximum(jnp.sum(text.mask), 1))
    return jnp.where(jnp.any(text.mask), score, 0.0)
