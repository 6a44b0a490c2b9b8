"""What an exported folder says of a model: tensors under PyTorch names, and JSON that `modeling.py` builds it from."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from medvlp_jax.data import preprocess
from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.encoders.vit import ViT
from medvlp_jax.interop import save_bert, to_torch_names
from medvlp_jax.methods import imitate
from medvlp_jax.text_tower import TextTower
from medvlp_jax.trained import Trained

Tensors = dict[str, np.ndarray]
TRUNK, HEADS, MODEL, PREPROCESSOR = "trunk.safetensors", "heads.safetensors", "model.json", "preprocessor.json"


def trunk_arch(trunk: nn.Module) -> str:
    """The name table of an encoder; ViTs with a pooler are transformers', those without are timm's.

    Raises: ValueError for an encoder without a table.
    """
    if isinstance(trunk, ResNet):
        return "resnet"
    if isinstance(trunk, ViT):
        return "vit_transformers" if trunk.pooler else "vit_timm"
    raise ValueError(f"The trunk {type(trunk).__name__} has no PyTorch names yet. Known: ResNet, ViT.")


def describe_trunk(trunk: nn.Module) -> dict[str, Any]:
    """What `modeling.build_trunk` takes: `kind` and the fields of its class (of a ViTConfig for `vit_transformers`)."""
    kind = trunk_arch(trunk)
    if isinstance(trunk, ResNet):
        block, stage_sizes, widths, strides = trunk.plan()
        return {
            "kind": kind,
            "block": block,
            "stage_sizes": list(stage_sizes),
            "widths": list(widths),
            "strides": list(strides),
            "stem": "imagenet" if trunk.stem == "space_to_depth" else trunk.stem,  # equal numbers
            "stem_width": trunk.width,
            "in_channels": trunk.in_channels,
            "epsilon": trunk.bn_epsilon,
        }
    fields = ("width", "layers", "heads", "hidden", "patch", "image", "in_channels", "epsilon", "activation")
    theirs = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size"),
        *("num_channels", "layer_norm_eps", "hidden_act"),
    )
    names = theirs if kind == "vit_transformers" else fields
    return {"kind": kind, **{name: getattr(trunk, field) for name, field in zip(names, fields, strict=True)}}


def split(variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of a method -> those of its trunk, and those of its heads; a text tower is in neither."""
    trunk = {name: tree["trunk"] for name, tree in variables.items() if "trunk" in tree}
    apart = ("trunk", "text_tower")
    heads = {name: {k: v for k, v in tree.items() if k not in apart} for name, tree in variables.items()}
    return trunk, heads


def trunk_of(model: nn.Module, variables: Mapping[str, Any]) -> nn.Module:
    """The trunk module of a method, unbound."""
    return model.bind(variables).trunk.clone(parent=None, name=None)


def tensors(trained: Trained) -> tuple[Tensors, Tensors]:
    """(trunk, heads) under PyTorch names. Raises: ValueError for a method or encoder without a name table."""
    known(trained.config.method)
    variables = jax.device_get(dict(trained.variables))
    trunk, heads = split(variables)
    arch = trunk_arch(trunk_of(trained.model, variables))
    return to_torch_names(trunk, arch), to_torch_names(heads, heads_arch(trained.config.method))


def heads_arch(method: str) -> str:
    """The name table of a method's heads. Raises: ValueError listing the methods that can be exported."""
    return f"{known(method).kind}_heads"


def describe(trained: Trained) -> dict[str, Any]:
    """The content of `model.json`."""
    config = trained.config
    image = {"size": config.image.size, "mean": list(config.image.mean), "std": list(config.image.std)}
    image |= {"upsample": config.model.upsample} if "upsample" in config.model else {}
    text = {"pooling": trained.tower.pooling, "max_length": trained.tower.max_length}
    return {
        "format": 1,
        "method": config.method,
        "kind": known(config.method).kind,
        "sections": list(config.text.sections),
        "image": image,
        "trunk": describe_trunk(trunk_of(trained.model, trained.variables)),
        "text": text,
        **known(config.method).describe(trained),
    }


class Exportable(NamedTuple):
    """kind: the class in `modeling.py`, and the name table of the heads. describe: what `model.json` holds beside
    trunk and image, and instead of text where that says more."""

    kind: str
    describe: Callable[[Trained], dict[str, Any]]


def _embedding_shapes(trained: Trained) -> Any:
    size = trained.config.image.size
    image = jax.ShapeDtypeStruct((1, 1, size, size, 1), "uint8")
    embed = lambda variables, image: trained.model.apply(variables, image, method="embed_image")  # noqa: E731
    return jax.eval_shape(embed, trained.variables, image)


def _head_sizes(trained: Trained) -> dict[str, int]:
    """Widths of the heads of methods with one for images and one for texts."""
    model = trained.config.model
    return {
        "features": model.features,
        "image_width": _embedding_shapes(trained).pooled_BxVxC.shape[-1],
        "image_hidden": model.head.image_hidden,
        "text_width": trained.tower.width,
        "text_hidden": model.head.text_hidden,
    }


def _two_towers(trained: Trained) -> dict[str, Any]:
    model = trained.config.model
    return {
        "heads": {**_head_sizes(trained), "bias": model.head.use_bias, "norm": model.head.norm},
        "logits": ["log_scale", *(["bias"] if "bias" in model.logits else [])] if "logits" in model else [],
    }


def _read_branch(trained: Trained, levels: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of IMITATE's read branch, and the channels that evaluation reads."""
    read = trained.config.model.read
    draws = imitate.evaluation_channels(read, [levels[stage].shape[-1] for stage in imitate.STAGES])
    return {
        "channels": [[np.asarray(stage).tolist() for stage in draw] for draw in draws],
        **{name: read[name] for name in ("grid", "tokens", "heads", "mask_padding", "hidden")},
    }


def _imitate(trained: Trained) -> dict[str, Any]:
    config, embedding = trained.config.model, _embedding_shapes(trained)
    return {
        "read": _read_branch(trained, embedding.levels),
        "heads": {
            "features": config.features,
            "image_width": embedding.pooled_BxVxC.shape[-1],
            "diagnosis_hidden": config.diagnosis_hidden,
            "text_width": trained.tower.width,
            "text_hidden": config.text_hidden,
        },
    }


def _heads(trained: Trained) -> dict[str, dict[str, Any]]:
    """Every head with its sizes, read from its variables: what `modeling.ProjectionHead` takes."""
    params, statistics, heads = trained.variables["params"], trained.variables["batch_stats"], {}
    for name in sorted(name for name in params if name.endswith("_head")):
        head, norms = params[name], statistics.get(name, {})
        first = head.get("linear1", head["linear2"])["kernel"]
        heads[name.removesuffix("_head")] = {
            "inputs": first.shape[0],
            "hidden": first.shape[1] if "linear1" in head else 0,
            "norm": bool(norms),
            "bias": "bias" in head["linear2"],
            "norm_output": "norm2" in norms,
        }
    return heads


def _local_towers(trained: Trained) -> dict[str, Any]:
    """Every head with its sizes; what is summed and divided on the text side."""
    config, params, heads = trained.config, trained.variables["params"], _heads(trained)
    text = {"pooling": trained.tower.pooling, "max_length": trained.tower.max_length}
    text |= {"layers": config.model.get("last_layers", 1), "split": config.text.split}
    if config.model.local.get("text_mean") == "padded":
        text["mean_over"] = config.text.max_length
    features = params["image_head"]["linear2"]["kernel"].shape[1]
    return {
        "heads": {"features": features, "image_width": heads["image"]["inputs"], "parts": heads},
        "local_level": config.model.local.level,
        "maps": "region" if config.method == "gloria" else "class" if "vit" in config.model.trunk else "image",
        "prototypes": list(params["prototypes"].shape) if "prototypes" in params else [],
        "text": text,
    }


def _lovt(trained: Trained) -> dict[str, Any]:
    model, text = trained.config.model, trained.config.text
    return {
        "heads": _head_sizes(trained),
        "pool": {"heads": model.pool.heads, "mean_over_padding": model.pool.mean_over_padding},
        "text": {
            "pooling": text.pooling,
            "max_length": trained.tower.max_length,
            "units": text.units,
            "max_sentences": text.max_sentences,
        },
    }


def _composed(trained: Trained) -> dict[str, Any]:
    """Every part that some term has brought; for each text the vector of the image that it is compared with."""
    config, params, embedding = trained.config, trained.variables["params"], _embedding_shapes(trained)
    text = {"pooling": config.text.pooling, "max_length": trained.tower.max_length, "units": config.text.units}
    if config.text.units == "sentences":
        text["max_sentences"] = config.text.max_sentences
    sizes = {"features": config.model.features, "image_width": embedding.pooled_BxVxC.shape[-1]}
    return {
        **({"read": _read_branch(trained, embedding.levels)} if "read" in params else {}),
        "heads": {**sizes, "parts": _heads(trained)},
        "aligned": dict(trained.model.aligned),
        "cross_attention": "cross_attention" in params,
        "logits": sorted(params.get("logits", {})),
        "text": text,
    }


EXPORTABLE: dict[str, Exportable] = {
    "imitate": Exportable("imitate", _imitate),
    **dict.fromkeys(("clip", "convirt", "m_flag", "siglip"), Exportable("two_towers", _two_towers)),
    **dict.fromkeys(("gloria", "mgca"), Exportable("local_towers", _local_towers)),
    "lovt": Exportable("lovt", _lovt),
    "composed": Exportable("composed", _composed),
}


def known(method: str) -> Exportable:
    """How a method is exported. Raises: ValueError listing the methods that can be."""
    if method not in EXPORTABLE:
        raise ValueError(f"The method {method!r} cannot be exported yet. Known: {', '.join(sorted(EXPORTABLE))}.")
    return EXPORTABLE[method]


def preprocessor(config: Any) -> dict[str, Any]:
    """The content of `preprocessor.json`, from the evaluation preprocessing. Raises: ValueError without `center`."""
    string = config.image.evaluate.format(size=config.image.size, views=config.image.views)
    operations = [op for op in preprocess.parse(string) if op.name != "decode"]
    centers = [op for op in operations if op.name == "center"]
    if not centers:
        raise ValueError(f"image.evaluate={config.image.evaluate!r} has no center(...): it is no evaluation view.")
    bound = inspect.signature(preprocess.center).bind(*centers[0].args, **dict(centers[0].kwargs))
    bound.apply_defaults()
    size, crop_from, fit = (bound.arguments[name] for name in ("size", "crop_from", "fit"))
    return {
        "input": "upright grey radiograph, 0 black (MONOCHROME1 inverted), 8 bit",
        "operations": "|".join(map(str, operations)),
        "steps": [op.name for op in operations],
        "size": size,
        "frame": crop_from or size,
        "crop": "center",
        "fit": fit,
        "pad_value": 0,
        "interpolation": {"shrink": "area", "enlarge": "bicubic"},
        "channels": 1,
        "value_range": [0, 255],
        "rescale": 1 / 255,
        "mean": list(config.image.mean),
        "std": list(config.image.std),
    }


def write_text(folder: Path, tower: TextTower) -> None:
    """The text tower as a transformers folder: config.json, model.safetensors, tokenizer files."""
    save_bert(folder, tower.config, tower.variables)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"pad_token_id": tower.tokenizer.pad_id, "torch_dtype": "float32"})
    tower.tokenizer.save(folder)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    names["pad"] = tower.tokenizer.tokens([tower.tokenizer.pad_id])[0]
    vocabulary = set(tower.tokenizer.tokens(range(tower.tokenizer.vocab_size)))
    settings = {f"{role}_token": name for role, name in names.items() if name in vocabulary}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tower.max_length}
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline; a list of plain numbers stays on one line."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[([^\[\]{}\"]*)\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")
