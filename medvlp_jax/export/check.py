"""Does the exported folder compute what the run computes? JAX beside plain PyTorch and ONNX Runtime."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from medvlp_jax import methods, text_tower
from medvlp_jax.data import preprocess
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.sections import study_texts
from medvlp_jax.data.sentences import rejoined
from medvlp_jax.methods.embeddings import default_section
from medvlp_jax.trained import Trained, embed_text_fields, text_reader

LIMIT = 1e-4  # largest difference, relative to the largest value of the output
TIE = 1e-5  # cosines closer than this may change places
IMAGES = 64
SENTENCES = (
    "No acute cardiopulmonary abnormality.",
    "Small left pleural effusion with adjacent atelectasis.",
    "The heart is enlarged. There is no pneumothorax.",
    "Right lower lobe opacity, likely pneumonia.",
    "Lungs are clear.",
    "Mild interstitial edema.",
    "Stable cardiomegaly. No focal consolidation is seen in either lung.",
    "Healing fracture of a left rib.",
)


def check(trained: Trained, folder: Path, say: Callable[[str], None] = print) -> bool:
    """Compares every output on the same images and texts; says the largest relative differences.

    Both sides compute in float32, whatever the run's own compute type. Returns: True when all differences are within
    `LIMIT` and images rank the texts in the same order, ties aside.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    view_NxSxSx1, texts, origin = inputs(trained)
    say(f"check     {len(view_NxSxSx1)} images and {len(texts)} texts, {origin}")
    ours = reference(trained, view_NxSxSx1, texts)
    model = loader(folder).load(folder)
    pixels = torch.from_numpy(view_NxSxSx1).permute(0, 3, 1, 2)
    theirs = {name: tensor.numpy() for name, tensor in model.embed_image(pixels).items()}
    if "regions" in ours:
        theirs["regions"] = model.image_regions(pixels).numpy()
    vectors = model.encode_text(texts)
    theirs |= {"text": model.embed_text(vectors).numpy()}
    theirs |= {"text vectors": vectors.numpy()} if "text vectors" in ours else {}
    good = _compare("torch", ours, theirs, say)
    for name in trained.config.text.sections:
        good &= _same_order(name, ours, theirs, say)
    onnx_file = folder / "image_embedder.onnx"
    if onnx_file.exists() and importlib.util.find_spec("onnxruntime"):
        good &= _compare("onnx", ours, run_onnx(onnx_file, view_NxSxSx1), say)
    elif onnx_file.exists():
        say("  onnx    not compared: pip install 'medvlp_jax[onnx]'")
    dtype = str(trained.config.model.dtype)
    if dtype != "float32":
        own = jax.device_get(trained.embed_images(view_NxSxSx1)).aligned
        for name, value_Nx1xD in own.items():
            gap = relative_difference(ours[name], value_Nx1xD[:, 0])
            say(f"  note    the run computes in {dtype}; its own {name} differs from float32 by {gap:.1e}")
    say("check     passed" if good else f"check     FAILED: the limit is {LIMIT:.0e}")
    return good


def inputs(trained: Trained) -> tuple[UInt8[np.ndarray, "N S S 1"], list[str], str]:
    """Evaluation views and texts of the run's test split; seeded random views and fixed texts where it is not here."""
    config = trained.config
    try:
        source = RecordSource(config.data.dir, config.data.name, config.data.test_split)
    except (FileNotFoundError, ValueError):
        size = config.image.size
        views = np.random.default_rng(0).integers(0, 256, (8, size, size, 1), np.uint8)
        return views, list(SENTENCES), "random: the run's data is not here"
    records = [source[i] for i in range(min(IMAGES, len(source)))]
    views = np.stack([trained.view(preprocess.decode_grey(record["image"])) for record in records])
    rule = trained.config.text
    rows = [study_texts(record, "mask", tuple(rule.report)) for record in records]
    found = dict.fromkeys(row[section] for row in rows for section in rule.sections)
    texts = [rejoined(text, rule.split) if rule.get("split", "simple") != "simple" else text for text in found if text]
    texts = [text for text in texts if text] or list(SENTENCES)
    return views, texts[:IMAGES], f"{config.data.name}/{config.data.test_split}"


def reference(trained: Trained, view_NxSxSx1: UInt8[np.ndarray, "N S S 1"], texts: list[str]) -> dict[str, np.ndarray]:
    """Every output as JAX computes it in float32."""
    model, embed = trained.model, trained.image_tower
    if {str(trained.config.model.dtype), str(trained.config.text.dtype)} != {"float32"}:
        config = trained.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.dtype = config.text.dtype = "float32"
        model = methods.get(config.method).build(config, trained.tower.config)
        embed = jax.jit(lambda variables, image: model.apply(variables, image, method="embed_image"))
    with jax.default_matmul_precision("highest"):
        image = jax.device_get(embed(trained.variables, jnp.asarray(view_NxSxSx1)[:, None]))
        outputs = _texts(trained, model, texts, default_section(image.regions, image.aligned))
    outputs |= {name: value[:, 0] for name, value in image.aligned.items()}
    section = default_section(image.regions, image.aligned)
    outputs |= {"pooled": image.pooled_BxVxC[:, 0]}
    outputs |= {"regions": image.regions[section][:, 0]} if section in image.regions else {}
    return outputs


def _texts(trained: Trained, model: Any, texts: list[str], section: str) -> dict[str, np.ndarray]:
    """Texts in the space of a section, and the vectors of the text tower where a head takes them on."""
    tower = trained.tower._replace(dtype=jnp.dtype("float32"))
    if trained.config.text.get("units", ""):
        read = text_reader(model, trained.config, tower)
        return {"text": read(trained.variables, texts).aligned[section]}
    vectors = text_tower.encode_function(tower)(texts)
    fields = {"embedding": jnp.asarray(vectors)}
    read = embed_text_fields(model, trained.variables, fields, tuple(trained.config.text.sections))
    return {"text vectors": vectors, "text": jax.device_get(read.aligned[section])}


def loader(folder: Path) -> ModuleType:
    """The folder's own `modeling.py` as a module, without leaving compiled files beside it."""
    path = folder / "modeling.py"
    module = ModuleType("exported_modeling")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def run_onnx(path: Path, view_NxSxSx1: UInt8[np.ndarray, "N S S 1"]) -> dict[str, np.ndarray]:
    """The outputs of the ONNX file by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": view_NxSxSx1}), strict=True))


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference, divided by the largest absolute value of `ours`; inf where shapes differ or NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    gap = float(np.max(np.abs(ours - theirs)) / max(float(np.max(np.abs(ours))), 1e-30))
    return gap if np.isfinite(gap) else float("inf")


def order_changes(ours_NxM: Float[np.ndarray, "N M"], theirs_NxM: Float[np.ndarray, "N M"]) -> int:
    """Neighbours in the ranking of `theirs` that stand the other way round in `ours`, by more than `TIE`."""
    order_NxM = np.argsort(-theirs_NxM, axis=1, kind="stable")
    ranked_NxM = np.take_along_axis(ours_NxM, order_NxM, axis=1)
    return int(np.sum(ranked_NxM[:, 1:] - np.minimum.accumulate(ranked_NxM, axis=1)[:, :-1] > TIE))


def _compare(side: str, ours: dict[str, Any], theirs: dict[str, Any], say: Callable[[str], None]) -> bool:
    gaps = {name: relative_difference(np.asarray(ours[name]), np.asarray(theirs[name])) for name in theirs}
    for name, gap in gaps.items():
        say(f"  {side:6s}  {name:14s}{gap:9.1e}{'' if gap <= LIMIT else '  <- too large'}")
    return max(gaps.values()) <= LIMIT


def _same_order(name: str, ours: dict[str, Any], theirs: dict[str, Any], say: Callable[[str], None]) -> bool:
    cosines = [_unit(side[name]) @ _unit(side["text"]).T for side in (ours, theirs)]
    changes = order_changes(*cosines)
    same = int(np.sum(np.argmax(cosines[0], axis=1) == np.argmax(cosines[1], axis=1)))
    rank = "the same" if not changes else f"{changes} places differ"
    say(f"  torch   order of texts by {name}: {rank}; the first is the same for {same} of {len(cosines[0])} images")
    return not changes


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
