"""The terms of composed objectives: what each kind needs, checks that it is there, and its loss.

See `methods.composed` for the table of kinds.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.orthogonality import orthogonality_loss
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.word_region import word_region_loss
from medvlp_jax.methods import lovt, two_towers
from medvlp_jax.methods.groups import grouped, taking_part

IMAGES = ("pooled", "levels")
REDUCE = {"sentences": "max", "words": "sum"}  # of pieces to units, as in LoVT and GLoRIA


@struct.dataclass
class Embeddings:
    """What the terms need, and nothing that no term does. B examples, V views, places h×w, U units.

    image: `pooled` and `levels`, B×V×D. text: vectors of sections, B×D. unit, mask: words or sentences of sections,
    B×U×D and B×U. region_seen, unit_seen: by sections, what regions see of sentences (B×V×R×D), and back (B×V×U×D).
    latent_BxVxC: pooled features. scale_B, bias_B: see `two_towers.Embeddings`.
    """

    image: dict[str, Array]
    text: dict[str, Array]
    unit: dict[str, Array]
    mask: dict[str, Array]
    region_seen: dict[str, Array]
    unit_seen: dict[str, Array]
    region_BxVxhxwxD: Float[Array, "B V h w D"] | None = None
    latent_BxVxC: Float[Array, "B V C"] | None = None
    scale_B: Float[Array, " B"] | None = None
    bias_B: Float[Array, " B"] | None = None


class Kind(NamedTuple):
    """loss(embeddings, batch, config, term, sweep): float32 scalar. fields: of a term, beside `kind` and `weight`.

    units: what it reads of its text: `vector`, `sentences` or `words`; "" for terms without a text.
    """

    loss: Callable[..., Array]
    fields: tuple[str, ...]
    units: str = ""


def _vectors(kind: str) -> Callable[..., Array]:
    def loss(e: Embeddings, batch: dict[str, Array], config: Any, term: Any, sweep: Sweep) -> Array:
        learnt = kind == "sigmoid" or not term.temperature
        asked = SimpleNamespace(
            text=SimpleNamespace(sections=(term.text,)),
            loss=SimpleNamespace(duplicates=term.duplicates, group_size=config.loss.group_size),
        )
        sides = two_towers.Embeddings(e.image[term.image], e.text[term.text], e.scale_B, e.bias_B)
        rule = {"temperature": None if learnt else term.temperature}
        if kind == "softmax":
            rule["directions"] = (term.image_to_text, term.text_to_image)
        return two_towers.pair_terms(sides, batch, asked, sweep, kind=kind, **rule)["pairs"]

    return loss


def _sentences(e: Embeddings, batch: dict[str, Array], config: Any, term: Any, sweep: Sweep) -> Array:
    mask_BxM, (batch_size, views, *grid) = e.mask[term.text], e.region_BxVxhxwxD.shape[:4]
    rule = SimpleNamespace(
        local_temperature=term.temperature, threshold=term.threshold, beta=term.beta, smoothing=term.smoothing
    )
    parts = lovt.Embeddings(
        image_BxVxD=e.region_BxVxhxwxD[:, :, 0, 0],  # of which the views are counted
        text_BxD=e.unit[term.text][:, 0],
        region_BxVxhxwxD=e.region_BxVxhxwxD,
        region_seen_BxVxRxD=e.region_seen[term.text],
        region_weight_BxVxR=jnp.ones((batch_size, views, grid[0] * grid[1])),
        sentence_BxMxD=e.unit[term.text],
        sentence_seen_BxVxMxD=e.unit_seen[term.text],
        sentence_weight_BxM=mask_BxM.astype(jnp.float32),
        mask_BxM=mask_BxM,
    )

    def local(parts: lovt.Embeddings, used: dict[str, Array]) -> dict[str, Array]:
        valid_B = used[f"has_{term.text}"] & jnp.any(parts.mask_BxM, axis=1)
        return {"sum": sum(lovt.local_terms(parts, valid_B, rule).values())}

    return grouped(local, parts, taking_part(batch, (term.text,)), config.loss.group_size, sweep)["sum"]


def _words(e: Embeddings, batch: dict[str, Array], config: Any, term: Any, sweep: Sweep) -> Array:
    # Groups are mapped over, and lie wherever their examples do.
    tiles = Sweep("chunked", mesh=None if config.loss.group_size else sweep.mesh)
    rule = {name: term[name] for name in ("attention", "similarity", "contrast", "form", "length_normalised")}
    region_BxVxRxD = e.region_BxVxhxwxD.reshape(*e.region_BxVxhxwxD.shape[:2], -1, e.region_BxVxhxwxD.shape[-1])

    def local(parts: tuple[Array, Array, Array], used: dict[str, Array]) -> dict[str, Array]:
        region_BxVxRxD, word_BxWxD, mask_BxW = parts
        valid_B = used[f"has_{term.text}"] & jnp.any(mask_BxW, axis=1)
        targets = two_towers.normalized_targets(used[f"{term.text}_hash"], term.duplicates, valid_B, Sweep())
        shared = {**rule, "targets": targets, "valid_B": valid_B, "sweep": tiles}
        values = [
            word_region_loss(region_BxVxRxD[:, view], word_BxWxD, mask_BxW, **shared)
            for view in range(region_BxVxRxD.shape[1])
        ]
        return {"mean": sum(values) / len(values)}

    parts = (region_BxVxRxD, e.unit[term.text], e.mask[term.text])
    return grouped(local, parts, taking_part(batch, (term.text,)), config.loss.group_size, sweep)["mean"]


def _views(e: Embeddings, batch: dict[str, Array], config: Any, term: Any, sweep: Sweep) -> Array:
    def between(image_BxVxD: Array, used: dict[str, Array]) -> dict[str, Array]:
        rule = {"temperature": term.temperature, "valid_N": used.get("_mask"), "sweep": sweep}
        return {"value": contrastive(image_BxVxD[:, 0], image_BxVxD[:, 1], **rule)}

    used = taking_part(batch, ())
    return grouped(between, e.image[term.image], used, config.loss.group_size, sweep)["value"]


def _orthogonality(e: Embeddings, batch: dict[str, Array], config: Any, term: Any, sweep: Sweep) -> Array:
    rule = {"off_diagonal": term.off_diagonal, "centre": term.centre}

    def shape(latent_BxVxC: Array, used: dict[str, Array]) -> dict[str, Array]:
        views = range(latent_BxVxC.shape[1])
        values = [orthogonality_loss(latent_BxVxC[:, v], **rule, valid_B=used.get("_mask")) for v in views]
        return {"mean": sum(values) / len(values)}

    return grouped(shape, e.latent_BxVxC, taking_part(batch, ()), config.loss.group_size, sweep)["mean"]


KINDS: dict[str, Kind] = {
    "pairs": Kind(
        _vectors("softmax"),
        ("image", "text", "temperature", "image_to_text", "text_to_image", "duplicates"),
        "vector",
    ),
    "sigmoid": Kind(_vectors("sigmoid"), ("image", "text", "duplicates"), "vector"),
    "sentences": Kind(_sentences, ("text", "temperature", "threshold", "beta", "smoothing"), "sentences"),
    "words": Kind(
        _words,
        ("text", "attention", "similarity", "contrast", "form", "length_normalised", "duplicates"),
        "words",
    ),
    "views": Kind(_views, ("image", "temperature")),
    "orthogonality": Kind(_orthogonality, ("off_diagonal", "centre")),
}


def terms_of(config: Any) -> dict[str, Any]:
    """The terms of `config.loss.terms` that have a weight, by name.

    Raises: ValueError naming the term, what it lacks or what nobody knows, and what helps.
    """
    terms = {name: term for name, term in config.loss.terms.items() if term.get("weight", 1.0)}
    if not terms:
        raise ValueError("loss.terms has no term with a weight: there is nothing to learn from.")
    for name, term in terms.items():
        _check_fields(name, term)
        _check_inputs(name, term, config)
    vectors = {name: term for name, term in terms.items() if KINDS[term.kind].units == "vector"}
    if not vectors:
        raise ValueError(
            f"loss.terms {', '.join(terms)} are missing a vector of image and text: evaluation compares those. Add a "
            "term of kind pairs or sigmoid."
        )
    for name, term in vectors.items():
        for other, twin in vectors.items():
            if term.text == twin.text and term.image != twin.image:
                raise ValueError(
                    f"loss.terms.{name} and {other} compare {term.text} with {term.image} and {twin.image}: a text is "
                    "compared with one vector of the image. Name another text for one of them."
                )
    read = {term.text for term in terms.values() if "text" in KINDS[term.kind].fields}
    unread = [section for section in config.text.sections if section not in read]
    if unread:
        raise ValueError(
            f"text.sections names {unread[0]}, which no term reads. Leave it out, or name it in a term: "
            f"{', '.join(terms)}."
        )
    return terms


def _check_fields(name: str, term: Any) -> None:
    kind = term.get("kind", "")
    if kind not in KINDS:
        raise ValueError(f"loss.terms.{name}.kind={kind!r} is unknown. Choose one of {', '.join(KINDS)}.")
    fields = {"kind", "weight", *KINDS[kind].fields}
    wrong = [f"is missing {field!r}" for field in sorted(fields - set(term))]
    wrong += [f"has {field!r}, which its kind does not take" for field in sorted(set(term) - fields)]
    if wrong:
        raise ValueError(f"loss.terms.{name} {wrong[0]}. Fields of {kind}: {', '.join(sorted(fields))}.")


def _check_inputs(name: str, term: Any, config: Any) -> None:
    kind, text, where = KINDS[term.kind], config.text, f"loss.terms.{name} ({term.kind})"
    sections = tuple(text.sections)
    if "image" in kind.fields and term.image not in IMAGES:
        raise ValueError(f"loss.terms.{name}.image={term.image!r} is unknown. Choose one of {', '.join(IMAGES)}.")
    if kind.units and term.text not in sections:
        raise ValueError(
            f"{where} is missing the text {term.text!r}: text.sections={sections}. Add it there, or name one of these."
        )
    if kind.units in REDUCE and not text.trained:
        raise ValueError(
            f"{where} is missing {kind.units}: a frozen tower gives one vector per text. Use "
            "--config.text.trained=True --config.text.cache=False, or leave the term out with weight 0."
        )
    if kind.units in REDUCE and text.units != kind.units:
        raise ValueError(
            f"{where} is missing {kind.units}: text.units={text.units!r}, and pieces are told apart by one kind of "
            f"unit. Use --config.text.units={kind.units}, or leave the term out with weight 0."
        )
    if kind.units == "sentences" and (text.split != "simple" or text.max_sentences < 1):
        raise ValueError(
            f"{where} is missing sentences as they were written, so many at most: text.split={text.split!r}, "
            f"text.max_sentences={text.max_sentences}. Use --config.text.split=simple --config.text.max_sentences=32."
        )
    if term.kind == "views" and config.image.views != 2:
        raise ValueError(f"{where} is missing a second view: image.views={config.image.views}. Use 2 views.")
    if learns_scale(term) and "logits" not in config.model:
        raise ValueError(f"{where} is missing model.logits, whose scale it learns; or give it a temperature above 0.")


def learns_scale(term: Any) -> bool:
    """Whether a term takes the learnt scale and bias of the model."""
    return term.kind == "sigmoid" or (term.kind == "pairs" and not term.temperature)
