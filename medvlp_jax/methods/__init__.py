"""Pretraining methods: a Linen module plus a pure loss each, found by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from medvlp_jax.methods import clip, composed, convirt, gloria, imitate, lovt, m_flag, mgca, siglip


class Method(NamedTuple):
    """What the trainer knows of a method.

    build(config, bert): the Linen module; its `__call__(batch, train=...)` returns every array the loss needs, and it
      offers `embed_image(image, train=...)` and `embed_text(batch, train=...)` to evaluators. `bert` is the shape of a
      text tower that is trained (`config.text.trained`), BERT-base when omitted; it then is `text_tower` of the module.
    loss(embeddings, batch, config, epoch, sweep): scalar float32 and a dict of named float32 terms; `sweep` says how
      losses over all pairs are tiled.
    scores(image_local, text_local, config): the method's own local score of all images with all texts, float32 [N, M],
      from `ImageEmbedding.local` and `TextEmbedding.local`; None for a method without.
    constrain(params): the parameters as they may be, after every update; None where all may be.
    """

    build: Callable[..., Any]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    scores: Callable[..., Any] | None = None
    constrain: Callable[[Any], Any] | None = None


METHODS: dict[str, Method] = {
    name: Method(module.build, module.loss, *(getattr(module, part, None) for part in ("scores", "constrain")))
    for name, module in {
        "clip": clip,
        "composed": composed,
        "convirt": convirt,
        "gloria": gloria,
        "imitate": imitate,
        "lovt": lovt,
        "m_flag": m_flag,
        "mgca": mgca,
        "siglip": siglip,
    }.items()
}


def get(name: str) -> Method:
    """The method called `name`. Raises: ValueError listing the known names."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[name]
