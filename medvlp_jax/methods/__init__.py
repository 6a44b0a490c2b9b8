"""Pretraining methods: a Linen module plus a pure loss each, found by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from medvlp_jax.methods import imitate


class Method(NamedTuple):
    """What the trainer knows of a method.

    build(config): the Linen module; its `__call__(batch, train=...)` returns every array the loss needs, and it offers
      `embed_image(image, train=...)` and `embed_text(batch, train=...)` to evaluators.
    loss(embeddings, batch, config, epoch, sweep): scalar float32 and a dict of named float32 terms; `sweep` says how
      losses over all pairs are tiled.
    """

    build: Callable[[Any], Any]
    loss: Callable[..., tuple[Any, dict[str, Any]]]


METHODS: dict[str, Method] = {"imitate": Method(imitate.build, imitate.loss)}


def get(name: str) -> Method:
    """The method called `name`. Raises: ValueError listing the known names."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[name]
