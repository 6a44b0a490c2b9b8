"""BERT (arXiv 1810.04805) with the arithmetic of `transformers.BertModel` and `BertForMaskedLM`."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from medvlp_jax.encoders.transformer import FeedForward, LayerNorm, SelfAttention, activation, key_bias


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT, under the names of a transformers `config.json`."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Reads the fields BERT needs; raises ValueError for another architecture or a variant this code lacks."""
        kind = config.get("model_type", "bert")
        if kind not in ("bert", "cxr-bert"):
            raise ValueError(f"config.json says model_type={kind!r}; expected 'bert' (or 'cxr-bert').")
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type={positions!r} is not supported; only 'absolute' is.")
        if config.get("is_decoder") or config.get("add_cross_attention"):
            raise ValueError("config.json describes a BERT decoder; only the bidirectional encoder is supported.")
        names = {field.name for field in dataclasses.fields(cls)}
        result = cls(**{name: value for name, value in config.items() if name in names})
        activation(result.hidden_act)
        return result

    @classmethod
    def from_json(cls, path: str | Path) -> "BertConfig":
        """Reads a transformers `config.json`."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers opens as a BertModel."""
        return {"model_type": "bert", "architectures": ["BertModel"], **dataclasses.asdict(self)}


class BertOutput(NamedTuple):
    """What `Bert` returns. Under `jit`, levels nobody reads cost nothing.

    last: [B, L, E], the last layer.
    hidden: layers + 1 arrays [B, L, E]; hidden[0] is the embedding output, hidden[-1] is `last`.
    attention: [B, H, L, L] float32, attention weights of the last layer.
    pooled: [B, E] tanh pooler of position 0, or None without `pooler`.
    """

    last: jax.Array
    hidden: tuple[jax.Array, ...]
    attention: jax.Array | None
    pooled: jax.Array | None


class Bert(nn.Module):
    """BERT encoder.

    Attributes:
        config: see `BertConfig`.
        pooler: add the tanh pooler.
        dropout: rate on embeddings, attention weights and block outputs while `train=True`; keep 0 when frozen.
        remat: recompute each layer in the backward pass.
        dtype: compute dtype; parameters stay float32.
    """

    config: BertConfig
    pooler: bool = False
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: jax.Array | None,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        train: bool = False,
        inputs_embeds: jax.Array | None = None,
        room: int = 0,
        queries: int | None = None,
    ) -> BertOutput:
        """Encodes token ids.

        Args:
            ids: [B, L] int in 0..vocab_size - 1; None when `inputs_embeds` [B, L, E] replaces the word embeddings.
            mask: [B, L] bool or 0/1; False positions are not attended to (their own outputs are meaningless).
            token_types: [B, L] int, default 0.
            train: apply dropout (rng 'dropout').
            room: with `remat`, the length that inputs of layers are kept at, at least L; see `at_shortest_length`.
            queries: how many of the first positions the last layer encodes; all without. `last` has no others then.

        Raises:
            ValueError: neither or both of ids and inputs_embeds, or more positions than the table has.
        """
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        if (ids is None) == (inputs_embeds is None):
            raise ValueError("Bert takes either ids or inputs_embeds, not both and not neither.")
        length = mask.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"Bert got {length} tokens but has {config.max_position_embeddings} positions. Truncate the text."
            )
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(ids)
        position = nn.Embed(config.max_position_embeddings, config.hidden_size, embedding_init=init, name="position")
        token_type = nn.Embed(config.type_vocab_size, config.hidden_size, embedding_init=init, name="token_type")
        if token_types is None:
            token_types = jnp.zeros((1, length), jnp.int32)
        x = inputs_embeds + token_type(token_types) + position(jnp.arange(length))
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        bias = key_bias(mask)
        layer_class = nn.remat(BertLayer, static_argnums=(3, 4)) if self.remat else BertLayer
        hidden, attention = [x], None
        x = _resized(x, max(room, length) if self.remat else length)
        for i in range(config.num_hidden_layers):
            last = queries if i == config.num_hidden_layers - 1 else None
            x, attention = layer_class(config, self.dropout, self.dtype, name=f"layer_{i}")(x, bias, train, last)
            hidden.append(_resized(x, last or length))
        pooled = None
        if self.pooler:
            dense = nn.Dense(config.hidden_size, dtype=self.dtype, kernel_init=init, name="pooler")
            pooled = jnp.tanh(dense(x[:, 0]))
        return BertOutput(hidden[-1], tuple(hidden), attention, pooled)

    @nn.nowrap
    def word_embeddings(self, ids: jax.Array) -> jax.Array:
        """Rows of the word table; called once, inside `__call__`."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        return nn.Embed(config.vocab_size, config.hidden_size, embedding_init=init, name="word")(ids)


class BertLayer(nn.Module):
    """Attention and feed-forward, each followed by residual and LayerNorm (post-norm).

    Of x [B, L, E] the first positions, as many as `bias` has, are encoded; the others come out as zeros. With `queries`
    only so many of them are, and no others come out.
    """

    config: BertConfig
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array, train: bool, queries: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        room, x = x.shape[1], _resized(x, bias.shape[-1])
        attended, weights = SelfAttention(
            config.num_attention_heads, self.dropout, kernel_init=init, dtype=self.dtype, name="attention"
        )(x, bias, train=train, queries=queries)
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="attention_norm")(x[:, :queries] + drop(attended))
        h = FeedForward(
            config.intermediate_size, config.hidden_act, kernel_init=init, dtype=self.dtype, name="feed_forward"
        )(x)
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="feed_forward_norm")(x + drop(h))
        return _resized(x, queries or room), weights


def _resized(x: jax.Array, length: int) -> jax.Array:
    """[B, L, E] cut, or filled up with zeros, to `length`."""
    missing = length - x.shape[1]
    if missing == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0))) if missing > 0 else x[:, :length]


class BertForMaskedLM(nn.Module):
    """BERT and the masked-language-model head, whose decoder is the word embedding table.

    Params: `bert` (as `Bert`) and `mlm_head/{transform,norm,bias}`.
    """

    config: BertConfig
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.bert = Bert(self.config, dropout=self.dropout, remat=self.remat, dtype=self.dtype)
        self.mlm_head = MaskedLMHead(self.config, dtype=self.dtype)

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits over the vocabulary, float32.

        Args:
            ids, mask, token_types: as for `Bert`.
            positions: [B, P] int; decode these positions only (the vocabulary product dominates small models).

        Returns:
            [B, L, vocab_size], or [B, P, vocab_size] with `positions`.
        """
        return self.decode(self.bert(ids, mask, token_types, train=train).last, positions)

    def decode(self, hidden: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Logits from the last hidden states of `bert`; `positions` and result as above."""
        if positions is not None:
            hidden = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        word_table = self.bert.variables["params"]["word"]["embedding"]
        return self.mlm_head(hidden, word_table)


class MaskedLMHead(nn.Module):
    """Dense, activation, LayerNorm, then the product with the word table plus a bias per word."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, word_table: jax.Array) -> jax.Array:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        h = nn.Dense(config.hidden_size, dtype=self.dtype, kernel_init=init, name="transform")(hidden)
        h = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(activation(config.hidden_act)(h))
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        logits = h @ word_table.astype(self.dtype).T
        return logits.astype(jnp.float32) + bias


def pool(hidden: jax.Array, mask: jax.Array, how: str) -> jax.Array:
    """One vector per text.

    Args:
        hidden: [B, L, E].
        mask: [B, L] bool or 0/1.
        how: 'cls' = position 0; 'mean', 'max' = over unmasked positions, element by element (zeros for a fully masked
            row).

    Returns:
        [B, E] in the dtype of `hidden`.
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "mean":
        weight = mask.astype(jnp.float32)[:, :, None]
        total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
        return (total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)).astype(hidden.dtype)
    if how == "max":
        real = mask.astype(bool)[:, :, None]
        # By place: the gradient of a maximum divides by how often it is found again, which is never (NaN) where the
        # compiler computes the same numbers twice and rounds them otherwise.
        masked = jnp.where(real, jax.lax.stop_gradient(hidden), jnp.finfo(hidden.dtype).min)
        highest = jnp.take_along_axis(hidden, jnp.argmax(masked, axis=1, keepdims=True), axis=1)[:, 0]
        return jnp.where(jnp.any(real, axis=1), highest, 0)
    raise ValueError(f"pool how={how!r} is unknown. Choose 'cls', 'mean' or 'max'.")


def padded_lengths(longest: int) -> tuple[int, ...]:
    """Token counts that texts are padded to: 32, for single sentences, multiples of 64, and `longest`. Each one is
    compiled."""
    return (*(length for length in (32, *range(64, longest, 64)) if length < longest), longest)


def token_counts(mask: jax.Array) -> jax.Array:
    """One more than the last unmasked position of every text: [..., L] -> [...]."""
    return jnp.max(mask.astype(jnp.int32) * (1 + jnp.arange(mask.shape[-1])), axis=-1)


def at_shortest_length(
    encode: Callable[[jax.Array, jax.Array], Any], ids: jax.Array, mask: jax.Array, longest: jax.Array | None = None
) -> Any:
    """`encode(ids, mask)` on texts cut to the shortest of `padded_lengths` that holds all of them.

    Shapes are static and the length is one number for all devices, so this runs under any sharding of the texts.
    Positions cut off are padding in every text; a text without any real token, whose vector means nothing, may come out
    different.

    For a backward pass every branch has arrays of its own, of which branches share those of one shape. So what `encode`
    keeps should have the same shape at all lengths, and be little: a `Bert` with `remat` and `room`.

    Args: encode: pure; its result must not depend on the length. ids, mask: [B, L]. longest: the greatest of
      `token_counts(mask)` when it is known.
    """
    lengths = padded_lengths(ids.shape[1])
    longest = jnp.max(token_counts(mask)) if longest is None else longest
    branches = [lambda ids, mask, length=length: encode(ids[:, :length], mask[:, :length]) for length in lengths]
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(lengths), longest), branches, ids, mask)
