"""A trained run, opened without its data set: model, weights, text tower. What prediction and export start from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from medvlp_jax import build, compiler, methods, sharding, text_tower
from medvlp_jax import config as configs
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.data import preprocess
from medvlp_jax.data.sentences import rejoined
from medvlp_jax.data.tokenizer import encode_units
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding


class Trained(NamedTuple):
    """One checkpoint of a run. `variables`: `params` and `batch_stats` of the model, on the first device.

    image_tower(variables, uint8 B×V×S×S×1): jitted. read_texts(variables, texts or vectors): see `text_reader`;
    `embed_images` and `embed_texts` are both with these variables. tower: the text tower, with the weights of this
    checkpoint where it was trained. view(grey uint8 H×W): the evaluation view of an upright image, 0 black: what the
    model was evaluated on.
    """

    workdir: Path
    step: int
    config: Any
    model: Any
    variables: Any
    tower: text_tower.TextTower
    image_tower: Callable[[Any, Array], ImageEmbedding]
    read_texts: Callable[..., TextEmbedding]
    view: Callable[[UInt8[np.ndarray, "H W"]], UInt8[np.ndarray, "S S 1"]]

    def embed_images(self, view_NxSxSx1: UInt8[np.ndarray, "N S S 1"]) -> ImageEmbedding:
        """Image tower on evaluation views; one view per image, so V is 1."""
        return self.image_tower(self.variables, jnp.asarray(view_NxSxSx1)[:, None])

    def embed_texts(self, texts: Sequence[str], vectors: Mapping[str, np.ndarray] | None = None) -> TextEmbedding:
        """Text tower on texts, each read as every section that the method knows. Args: vectors: of a frozen tower, as
        far as they are there already."""
        return self.read_texts(self.variables, texts, vectors=vectors)


def open_run(workdir: str | Path, *, step: int | None = None, data_dir: str | Path | None = None) -> Trained:
    """Opens the checkpoint of `step`, the newest by default, of a run.

    Args: data_dir: where prepared data and text towers are, when they moved since training.
    Raises: FileNotFoundError when the folder holds no run, no such checkpoint, or when the text tower is not there;
      CheckpointError for a checkpoint that cannot be read.
    """
    workdir = Path(workdir)
    config = configs.load(workdir)
    if data_dir is not None:
        with config.unlocked():
            config.data.dir = str(data_dir)
    tower = text_tower.of_config(config)
    model = methods.get(config.method).build(config, tower.config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        number = checkpoints.choose(step)
        variables = checkpoints.restore_partial(number, _target(model, config, tower))
    text_variables = trained_text(config, variables)
    if text_variables is not None:
        tower = tower.with_variables(jax.device_get(text_variables))
    return Trained(
        workdir,
        number,
        config,
        model,
        variables,
        tower,
        image_tower=compiler.jit(lambda variables, image: model.apply(variables, image, method="embed_image")),
        read_texts=text_reader(model, config, tower),
        view=evaluation_view(config),
    )


def evaluation_ops(config: Any) -> list[preprocess.Op]:
    """The operations of `config.image.evaluate` behind `decode`: grey uint8 [H, W] -> view uint8 [1, S, S, 1]."""
    string = config.image.evaluate.format(size=config.image.size, views=config.image.views)
    return [op for op in preprocess.parse(string) if op.name != "decode"]


def evaluation_view(config: Any):
    """The function grey uint8 [H, W] -> view uint8 [S, S, 1] of `config.image.evaluate`."""
    make = preprocess.build("|".join([*map(str, evaluation_ops(config)), "keep('image')"]))
    return lambda grey_HxW: make({"image": grey_HxW}, np.random.default_rng(0))["image"][0]


def text_reader(
    model: Any, config: Any, tower: text_tower.TextTower, *, places: Any = None
) -> Callable[..., TextEmbedding]:
    """`read(variables, texts, *, local=False, vectors=None) -> TextEmbedding`, NumPy: reads texts outside of batches.

    A tower that is trained reads tokens, inside the model. A frozen one gives every text one vector, once, which the
    model's head takes on; `vectors` are those that are there already. Every text is taken as each of the sections.
    `local`: with what local scores need.

    Args: places: sharding of the results.
    """
    sections, rule = tuple(config.text.sections), config.text.get("split", "simple")
    units, trained = config.text.get("units", ""), config.text.trained

    def embed(variables, fields, local):
        read = embed_text_fields(model, variables, fields, sections)
        return read if local else read.replace(local=None)

    embed = compiler.jit(embed, static_argnums=2, **({} if places is None else {"out_shardings": places}))

    def tokens(texts):
        cleaned = list(texts) if rule == "simple" else [rejoined(text, rule) for text in texts]
        lengths, most = text_tower.lengths(tower), config.text.get("max_sentences", 0)
        return encode_units(tower.tokenizer, cleaned, tower.max_length, units, lengths, max_sentences=most)

    def of_tokens(variables, texts, *, local=False, vectors=None):
        return text_tower.encode_all(lambda some: jax.device_get(embed(variables, tokens(some), local)), texts)

    known: dict[str, np.ndarray] = {}
    encode = None if trained else text_tower.encode_function(tower)

    def of_vectors(variables, texts, *, local=False, vectors=None):
        known.update(vectors or {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, text_tower.encode_all(encode, new), strict=True))
        return jax.device_get(embed(variables, {"embedding": np.stack([known[text] for text in texts])}, local))

    return of_tokens if trained else of_vectors


def embed_text_fields(model: Any, variables: Any, fields: dict[str, Array], sections: Sequence[str]) -> TextEmbedding:
    """`embed_text` of texts, each taken as every one of the sections.

    Args: fields: what a batch has of a section: `ids`, `mask` and, with units, `segment` [N, L], or `embedding` [N, E].
    """
    count = next(iter(fields.values())).shape[0]
    batch = {f"{section}_{name}": x for section in sections for name, x in fields.items()}
    batch |= {f"has_{section}": jnp.ones(count, bool) for section in sections}
    return model.apply(variables, batch, method="embed_text")


def trained_text(config: Any, variables: Any) -> Any:
    """The variables of the text tower inside a model's, when it is trained; None for a frozen one."""
    return {"params": variables["params"]["text_tower"]} if config.text.trained else None


def _target(model: Any, config: Any, tower: text_tower.TextTower) -> dict[str, Any]:
    """Shapes of `params` and `batch_stats`, placed on the first device."""
    batch = build.batch_shapes(config, tower.width)
    mesh = sharding.make_mesh(1, 1, devices=jax.local_devices()[:1])
    shapes = jax.eval_shape(lambda: steps.init_variables(model, batch, config.seed))
    place = sharding.replicated(mesh)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)
