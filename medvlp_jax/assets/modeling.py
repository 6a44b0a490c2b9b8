# Copyright: the medvlp_jax authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
"""An exported model in plain PyTorch. Needs torch and safetensors; texts need transformers.

    from modeling import load
    model = load("path/of/this/folder")
    image = model.embed_image(model.view(grey)[None])            # grey: uint8 [H, W], 0 black
    text = model.embed_text(model.encode_text(["No pleural effusion."]))
    print(torch.cosine_similarity(image["impression"], text))    # or another of model.config["sections"]

Images are 0..255, uint8 or float, and are normalised inside. One channel is what the model was trained on; three
channels are averaged to grey first, so a grey picture stored as RGB gives the same embedding.
"""

from __future__ import annotations

import json
import runpy
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


def load(folder: str | Path = ".") -> Model:
    """The exported model, in evaluation mode; every tensor of the files must fit."""
    from safetensors.torch import load_file

    folder = Path(folder)
    config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    kinds = {
        "imitate": Imitate,
        "two_towers": TwoTowers,
        "local_towers": LocalTowers,
        "lovt": Lovt,
        "composed": Composed,
    }
    model = kinds[config["kind"]](config, folder)
    model.trunk.load_state_dict(load_file(folder / "trunk.safetensors"), strict=True)
    heads = load_file(folder / "heads.safetensors")
    trunk = {f"trunk.{name}": tensor for name, tensor in model.trunk.state_dict().items()}
    model.load_state_dict({**heads, **trunk}, strict=True)
    return model.eval()


def build_trunk(config: dict) -> nn.Module:
    """The image encoder that `model.json` describes under "trunk"."""
    fields = {name: value for name, value in config.items() if name != "kind"}
    return {"resnet": ResNet, "vit_timm": VisionTransformer}[config["kind"]](**fields)


# ---- trunks: torchvision's and timm's parameter names -----------------------------------------------------------


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) residual block; the first 3x3 carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, epsilon: float):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, width, width, outputs] if bottleneck else [inputs, width, outputs]
        self.depth = len(plan)
        for i, (size, step) in enumerate(plan):
            self.add_module(f"conv{i + 1}", convolution(widths[i], widths[i + 1], size, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1], eps=epsilon))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            norm = nn.BatchNorm2d(outputs, eps=epsilon)
            self.downsample = nn.Sequential(convolution(inputs, outputs, 1, stride), norm)

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, for any stage sizes, widths, strides and stem.

    stem: `imagenet` (7x7 stride 2, max-pool), `stride4` (7x7 stride 4) or `small` (3x3). A one-channel image meets a
    three-channel stem three times, once per channel.
    """

    def __init__(self, block, stage_sizes, widths, strides, stem, stem_width, in_channels=3, epsilon=1e-5):
        super().__init__()
        size, stride = {"imagenet": (7, 2), "stride4": (7, 4), "small": (3, 1)}[stem]
        self.conv1 = convolution(in_channels, stem_width, size, stride)
        self.bn1 = nn.BatchNorm2d(stem_width, eps=epsilon)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inputs, self.stages, bottleneck = stem_width, len(stage_sizes), block == "bottleneck"
        for s, (size, width, stride) in enumerate(zip(stage_sizes, widths, strides, strict=True)):
            blocks = []
            for b in range(size):
                blocks.append(Block(inputs, width, stride if b == 0 else 1, bottleneck, epsilon))
                inputs = width * (4 if bottleneck else 1)
            self.add_module(f"layer{s + 1}", nn.Sequential(*blocks))

    def forward(self, image):
        """Normalised [N, 1 or C, H, W] -> {"stage1" ...: [N, C, h, w], "pooled": [N, C]}."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image.expand(-1, self.conv1.in_channels, -1, -1)))))
        levels = {}
        for s in range(1, self.stages + 1):
            x = levels[f"stage{s}"] = getattr(self, f"layer{s}")(x)
        return {**levels, "pooled": x.mean(dim=(2, 3))}


class VisionTransformer(nn.Module):
    """timm's ViT with a class token and without a classifier."""

    def __init__(self, width, layers, heads, hidden, patch, image, in_channels, epsilon, activation):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads, hidden, epsilon, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, image):
        """Normalised [N, 1 or C, S, S] -> {"cls": [N, E], "patches": [N, h, w, E]}."""
        x, grid = self._before_last(image)
        x = self.norm(self.blocks[-1](x))
        return {"cls": x[:, 0], "patches": x[:, 1:].unflatten(1, grid)}

    def class_parts(self, image):
        """[N, h, w, E]: what each patch adds to `cls`, their mean, in the last block, its attention as it is; all
        behind it is taken as linear around the class token."""
        x, grid = self._before_last(image)
        block = self.blocks[-1]
        part = x[:, :1] + block.seen_by_class(x)
        around = part.mean(dim=1, keepdim=True).expand_as(part).contiguous()
        whole, difference = torch.func.jvp(lambda y: self.norm(block.feed(y)), (around,), (part - around,))
        return (whole + difference).unflatten(1, grid)

    def _before_last(self, image):
        x = self.patch_embed.proj(image.expand(-1, self.patch_embed.proj.in_channels, -1, -1))
        grid = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + self.pos_embed
        for block in self.blocks[:-1]:
            x = block(x)
        return x, grid


class ViTBlock(nn.Module):
    def __init__(self, width, heads, hidden, epsilon, activation):
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.feed(x + self.attn.proj(F.scaled_dot_product_attention(*self._qkv(x)).transpose(1, 2).flatten(2)))

    def feed(self, x):
        """The second half of the block."""
        return x + self.mlp.fc2(self.activation(self.mlp.fc1(self.norm2(x))))

    def seen_by_class(self, x):
        """[N, L - 1, E]: what attention takes from each patch to the class token; the mean is its output there."""
        query, key, value = self._qkv(x)
        weight = torch.softmax(query[:, :, :1] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        seen = (weight.transpose(-1, -2) * value).transpose(1, 2).flatten(2)
        return self.attn.proj((x.shape[1] - 1) * seen[:, 1:] + seen[:, :1])

    def _qkv(self, x):
        return self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


# ---- heads and IMITATE's read branch ----------------------------------------------------------------------------


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without affine parameters; hidden layer and norms may be missing."""

    def __init__(
        self, inputs: int, hidden: int, features: int, norm: bool = True, bias: bool = True, norm_output: bool = True
    ):
        super().__init__()
        self.linear1 = nn.Linear(inputs, hidden, bias) if hidden else None
        self.norm1 = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.linear2 = nn.Linear(hidden or inputs, features, bias)
        self.norm2 = nn.BatchNorm1d(features, affine=False) if norm and norm_output else nn.Identity()

    def forward(self, x, gates_of=None):
        """[N, inputs] -> [N, features]; with `gates_of`, ReLU lets through what it would for that: linear around it."""
        if self.linear1 is not None:
            x = self.norm1(self.linear1(x))
            x = F.relu(x) if gates_of is None else x * (self.norm1(self.linear1(gates_of)) > 0)
        return self.norm2(self.linear2(x))


class ChannelAttention(nn.Module):
    """The CLS row of `x + attention(x)` over channel tokens; CLS stands last but owns position 0."""

    def __init__(self, width: int, tokens: int, heads: int, mask_padding: bool):
        super().__init__()
        self.tokens, self.heads, self.mask_padding = tokens, heads, mask_padding
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(tokens + 1, width))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens):
        count = tokens.shape[1]
        x = F.pad(tokens, (0, 0, 0, self.tokens - count)) + self.positions[1:]
        cls = (self.cls + self.positions[0]).expand(len(x), 1, -1)
        x = torch.cat([x, cls], dim=1)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, cls), (self.key, x), (self.value, x))
        )
        position = torch.arange(self.tokens + 1, device=x.device)
        real = (position < count) | (position == self.tokens) | (not self.mask_padding)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real[None, None, None])
        return (cls + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0]


class AttentionPool(nn.Module):
    """Multi-head attention of the mean unit over all units (LoVT)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, units, real=None, over_padding=False):
        """Units [N, U, E], real [N, U] -> the vector [N, E], and what each unit contributes [N, U, E], their mean."""
        real = torch.ones_like(units[..., 0], dtype=torch.bool) if real is None else real
        count = torch.full_like(real[:, :1], units.shape[1], dtype=units.dtype) if over_padding else real.sum(1, True)
        mean = (units * real[..., None]).sum(1, keepdim=True) / count.clamp(min=1)[..., None]
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, mean), (self.key, units), (self.value, units))
        )
        score = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        weight = score.masked_fill(~real[:, None, None], float("-inf")).softmax(dim=-1)
        weight = weight.nan_to_num(0.0)  # a text without sentences
        value = torch.where(real[:, None, :, None], value, self.value.bias.unflatten(0, (self.heads, 1, -1)))
        missing = (1 - weight.sum(dim=-1, keepdim=True)) / units.shape[1]
        share = ((weight + missing).transpose(2, 3) * value).transpose(1, 2).flatten(2)
        return self.out(share.sum(dim=1)), self.out(units.shape[1] * share)


class CrossAttention(nn.Module):
    """What regions and sentences see of each other (LoVT): used in training alone, kept so that nothing is lost."""

    def __init__(self, width: int):
        super().__init__()
        self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.BatchNorm1d(width)


class ReadBranch(nn.Module):
    """Channels of all stages -> tokens -> attention -> head, averaged over the fixed draws of `model.json`."""

    def __init__(self, channels, grid, tokens, heads, mask_padding, hidden, features):
        super().__init__()
        self.grid, self.draws, self.stages = grid, len(channels), len(channels[0])
        for d, draw in enumerate(channels):
            for s, index in enumerate(draw):
                self.register_buffer(f"draw{d}_stage{s + 1}", torch.tensor(index), persistent=False)
        self.attention = ChannelAttention(grid * grid, tokens, heads, mask_padding)
        self.head = ProjectionHead(grid * grid, hidden, features)

    def forward(self, levels):
        maps = [F.adaptive_avg_pool2d(levels[f"stage{s + 1}"], self.grid).flatten(2) for s in range(self.stages)]
        vectors = []
        for d in range(self.draws):
            chosen = [maps[s][:, getattr(self, f"draw{d}_stage{s + 1}")] for s in range(self.stages)]
            vectors.append(self.head(self.attention(torch.cat(chosen, dim=1))))
        return torch.stack(vectors).mean(dim=0)


# ---- models -----------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Image trunk and heads. config: the content of `model.json`."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__()
        self.config, self.folder, self._text = config, Path(folder), None
        self.trunk = build_trunk(config["trunk"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config["image"][name]).reshape(1, -1, 1, 1), persistent=False)

    def normalize(self, pixels):
        """0..255 [N, H, W], [N, 1, H, W] or [N, 3, H, W] -> what the trunk takes."""
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels
        if pixels.is_floating_point() and pixels.numel() and pixels.max() <= 1:
            warnings.warn("Pixels are 0..1; this model takes 0..255. Multiply by 255.", stacklevel=3)
        grey = pixels.float().mean(dim=1, keepdim=True)
        side = self.config["image"].get("upsample", 0)
        if side:
            grey = F.interpolate(grey, (side, side), mode="bilinear", align_corners=True)
        return (grey / 255.0 - self.mean) / self.std

    def _last_map(self, pixels) -> torch.Tensor:
        """[N, h, w, C]: the last stage of a ResNet, the patches of a ViT."""
        levels = self.trunk(self.normalize(pixels))
        if "patches" in levels:
            return levels["patches"]
        return levels[f"stage{sum(name.startswith('stage') for name in levels)}"].permute(0, 2, 3, 1)

    def _regions(self, head, pixels) -> torch.Tensor:
        last = self._last_map(pixels)
        pooled = last.mean((1, 2), keepdim=True).expand_as(last)
        return head(last.flatten(0, 2), pooled.flatten(0, 2)).unflatten(0, last.shape[:3])

    @torch.no_grad()
    def embed_text(self, vectors) -> torch.Tensor:
        """Vectors of the text tower [N, E] -> [N, D], the same for every section."""
        return self.text_head(vectors)

    def _text_tower(self):
        """Tokenizer and BERT of `text/`, loaded once."""
        if self._text is None:
            from transformers import AutoModel, AutoTokenizer

            tower = AutoModel.from_pretrained(self.folder / "text", add_pooling_layer=False).eval()
            self._text = (AutoTokenizer.from_pretrained(self.folder / "text"), tower.to(self.mean.device))
        return self._text

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Texts -> vectors [N, E], with the tower in `text/` (a transformers folder)."""
        tokenizer, tower = self._text_tower()
        text = self.config["text"]
        length = text["max_length"]
        batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=length)
        batch = batch.to(self.mean.device)
        hidden = sum(tower(**batch, output_hidden_states=True).hidden_states[-text.get("layers", 1) :])
        return self._pool(hidden, batch["attention_mask"])

    def _pool(self, hidden, mask) -> torch.Tensor:
        """Tokens [N, L, E] -> [N, E], as `model.json` says."""
        text, mask = self.config["text"], mask[:, :, None].float()
        if text["pooling"] == "cls":
            return hidden[:, 0]
        if text["pooling"] == "max":
            return hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)
        return (hidden * mask).sum(dim=1) / (text.get("mean_over") or mask.sum(dim=1).clamp(min=1))

    def _read_sentences(self, texts: list[str]) -> tuple[list, torch.Tensor, torch.Tensor]:
        """Texts read as [CLS] s1 s2 ... [SEP]: the pieces of the sentences of each, tokens [N, L, E], and their mask.

        Sentences are split by `sentences.py`; what is too long or too many is left out.
        """
        tokenizer, tower = self._text_tower()
        text, split = self.config["text"], runpy.run_path(str(self.folder / "sentences.py"))["split_sentences"]
        most, room = text["max_sentences"], text["max_length"] - 2
        rows = []
        for sentences in map(split, texts):
            pieces = [tokenizer(s, add_special_tokens=False, truncation=False)["input_ids"] for s in sentences]
            pieces = [p for p in pieces if p][:most]
            kept = [p[:room] for p in pieces[:1]]
            for p in pieces[1:]:
                if sum(map(len, kept)) + len(p) > room:
                    break
                kept.append(p)
            rows.append(kept)
        ids = [[tokenizer.cls_token_id, *(i for p in kept for i in p), tokenizer.sep_token_id] for kept in rows]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.mean.device)
        mask = batch["attention_mask"]
        return rows, tower(batch["input_ids"], attention_mask=mask).last_hidden_state, mask

    def view(self, grey) -> torch.Tensor:
        """The evaluation view of an upright grey image uint8 [H, W] (NumPy or torch), 0 black: uint8 [S, S].

        Scaling, bars and crop as in medvlp_jax, up to one grey level of rounding.
        """
        recipe = json.loads((self.folder / "preprocessor.json").read_text(encoding="utf-8"))
        if recipe["steps"] != ["center"]:
            raise NotImplementedError(f"view() knows the step 'center' only; this model uses {recipe['operations']!r}.")
        grey = torch.as_tensor(grey)
        height, width = grey.shape
        side, size = recipe["frame"], recipe["size"]
        scale = (side / height, side / width) if recipe["fit"] == "squash" else (side / max(height, width),) * 2
        new = max(1, round(height * scale[0])), max(1, round(width * scale[1]))
        left, top, start = (side - new[1]) // 2, (side - new[0]) // 2, round((side - size) / 2)
        canvas = torch.zeros(side, side, dtype=torch.uint8)
        canvas[top : top + new[0], left : left + new[1]] = resize(grey, *new)
        return canvas[start : start + size, start : start + size].contiguous()


class Imitate(Model):
    """Read branch and diagnosis head over the trunk; one head for both sections of text."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__(config, folder)
        sizes = config["heads"]
        self.read = ReadBranch(**config["read"], features=sizes["features"])
        self.diagnosis_head = ProjectionHead(sizes["image_width"], sizes["diagnosis_hidden"], sizes["features"])
        self.text_head = ProjectionHead(sizes["text_width"], sizes["text_hidden"], sizes["features"])

    @torch.no_grad()
    def embed_image(self, pixels) -> dict[str, torch.Tensor]:
        """`findings` and `impression` [N, D], aligned with texts; `pooled` [N, C], trunk features for probes."""
        levels = self.trunk(self.normalize(pixels))
        impression = self.diagnosis_head(levels["pooled"])
        return {"findings": self.read(levels), "impression": impression, "pooled": levels["pooled"]}

    @torch.no_grad()
    def image_regions(self, pixels) -> torch.Tensor:
        """[N, h, w, D]: what each place contributes to the vector `impression`, which is their mean; for heat maps."""
        return self._regions(self.diagnosis_head, pixels)


class TwoTowers(Model):
    """CLIP, ConVIRT, M-FLAG, SigLIP: a head on each side; scale and bias of logits where they are learnt."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__(config, folder)
        sizes = config["heads"]
        rest = {name: sizes[name] for name in ("features", "norm", "bias")}
        self.image_head = ProjectionHead(sizes["image_width"], sizes["image_hidden"], **rest)
        self.text_head = ProjectionHead(sizes["text_width"], sizes["text_hidden"], **rest)
        self.logits = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in config["logits"]})

    @torch.no_grad()
    def embed_image(self, pixels) -> dict[str, torch.Tensor]:
        """`config["sections"][0]` [N, D], aligned with texts; `pooled` [N, C], trunk features for probes."""
        pooled = self._last_map(pixels).mean((1, 2))
        return {self.config["sections"][0]: self.image_head(pooled), "pooled": pooled}

    @torch.no_grad()
    def image_regions(self, pixels) -> torch.Tensor:
        """[N, h, w, D]: what each place contributes to the image's vector, which is their mean; for heat maps."""
        return self._regions(self.image_head, pixels)


class LocalTowers(Model):
    """GLoRIA, MGCA: heads for the image and for regions of one level of the trunk; for texts where there are some."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__(config, folder)
        for name, sizes in config["heads"]["parts"].items():
            self.add_module(f"{name}_head", ProjectionHead(features=config["heads"]["features"], **sizes))
        if config["prototypes"]:
            self.prototypes = nn.Parameter(torch.zeros(*config["prototypes"]))

    @torch.no_grad()
    def embed_image(self, pixels) -> dict[str, torch.Tensor]:
        """`config["sections"][0]` [N, D], aligned with texts; `pooled` [N, C], trunk features for probes."""
        levels = self.trunk(self.normalize(pixels))
        pooled = levels["cls" if "cls" in levels else "pooled"]
        return {self.config["sections"][0]: self.image_head(pooled), "pooled": pooled}

    @torch.no_grad()
    def embed_text(self, vectors) -> torch.Tensor:
        """Vectors of `encode_text` [N, E] -> [N, D]."""
        return self.text_head(vectors) if hasattr(self, "text_head") else vectors

    @torch.no_grad()
    def image_regions(self, pixels) -> torch.Tensor:
        """[N, h, w, D], for heat maps: GLoRIA's regions, which words are compared with; MGCA: what each place
        (of a ViT: patch, to the class token) contributes to the image's vector, which is their mean."""
        if self.config["maps"] == "image":
            return self._regions(self.image_head, pixels)
        if self.config["maps"] == "class":
            part = self.trunk.class_parts(self.normalize(pixels))
            gates = part.mean(dim=(1, 2), keepdim=True).expand_as(part)
            return self.image_head(part.flatten(0, 2), gates.flatten(0, 2)).unflatten(0, part.shape[:3])
        place = self.trunk(self.normalize(pixels))[self.config["local_level"]].permute(0, 2, 3, 1)
        return self.region_head(place.flatten(0, 2)).unflatten(0, place.shape[:3])


class Lovt(Model):
    """LoVT: attention pooling and heads for the image and the text, over places and over sentences."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__(config, folder)
        sizes, heads = config["heads"], config["pool"]["heads"]
        features = sizes["features"]
        self.image_pool, self.text_pool = (AttentionPool(sizes[f"{s}_width"], heads) for s in ("image", "text"))
        for name, side in (("image", "image"), ("region", "image"), ("text", "text"), ("sentence", "text")):
            head = ProjectionHead(sizes[f"{side}_width"], sizes[f"{side}_hidden"], features, norm_output=False)
            self.add_module(f"{name}_head", head)
        self.cross_attention = CrossAttention(features)

    def _places(self, levels) -> torch.Tensor:
        return levels[f"stage{sum(name.startswith('stage') for name in levels)}"].flatten(2).transpose(1, 2)

    @torch.no_grad()
    def embed_image(self, pixels) -> dict[str, torch.Tensor]:
        """`config["sections"][0]` [N, D], aligned with texts; `pooled` [N, C], trunk features for probes."""
        levels = self.trunk(self.normalize(pixels))
        vector, _ = self.image_pool(self._places(levels))
        return {self.config["sections"][0]: self.image_head(vector), "pooled": levels["pooled"]}

    @torch.no_grad()
    def image_regions(self, pixels) -> torch.Tensor:
        """[N, h, w, D]: what each place contributes to the image's vector, which is their mean; for heat maps."""
        levels = self.trunk(self.normalize(pixels))
        vector, part = self.image_pool(self._places(levels))
        gates = vector[:, None].expand_as(part).flatten(0, 1)
        shape = levels[f"stage{sum(name.startswith('stage') for name in levels)}"].shape
        return self.image_head(part.flatten(0, 1), gates).unflatten(0, (shape[0], *shape[2:]))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Texts -> the vectors of their sentences [N, M, E], zeros behind the last one."""
        rows, hidden, _ = self._read_sentences(texts)
        text = self.config["text"]
        vectors = hidden.new_zeros(len(texts), text["max_sentences"], hidden.shape[-1])
        for row, kept in enumerate(rows):
            start = 1
            for m, p in enumerate(kept):
                piece = hidden[row, start : start + len(p)]
                vectors[row, m] = piece.amax(dim=0) if text["pooling"] == "max" else piece.mean(dim=0)
                start += len(p)
        return vectors

    @torch.no_grad()
    def embed_text(self, vectors) -> torch.Tensor:
        """Vectors of sentences [N, M, E] -> [N, D]."""
        real = (vectors != 0).any(dim=-1)
        vector, _ = self.text_pool(vectors, real, self.config["pool"]["mean_over_padding"])
        return self.text_head(vector)


class Composed(Model):
    """Terms of several methods over the same towers: every part that one of them needs."""

    def __init__(self, config: dict, folder: str | Path = "."):
        super().__init__(config, folder)
        features = config["heads"]["features"]
        for name, sizes in config["heads"]["parts"].items():
            self.add_module(f"{name}_head", ProjectionHead(features=features, **sizes))
        if "read" in config:
            self.read = ReadBranch(**config["read"], features=features)
        if config["cross_attention"]:
            self.cross_attention = CrossAttention(features)
        self.logits = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in config["logits"]})

    @torch.no_grad()
    def embed_image(self, pixels) -> dict[str, torch.Tensor]:
        """Of every section the vector [N, D] that is aligned with it; `pooled` [N, C], trunk features for probes."""
        levels = self.trunk(self.normalize(pixels))
        of = {"pooled": lambda: self.image_head(levels["pooled"]), "levels": lambda: self.read(levels)}
        aligned = {section: of[vector]() for section, vector in self.config["aligned"].items()}
        return {**aligned, "pooled": levels["pooled"]}

    @torch.no_grad()
    def image_regions(self, pixels) -> torch.Tensor:
        """[N, h, w, D]: what each place contributes to the vector of sections that are compared with `pooled`."""
        if "pooled" not in self.config["aligned"].values():
            raise NotImplementedError("No text is compared with `pooled`: there are no heat maps of this model.")
        return self._regions(self.image_head, pixels)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Texts -> vectors [N, E], with the tower in `text/`; by sentences where some are compared with regions."""
        if self.config["text"]["units"] != "sentences":
            return super().encode_text(texts)
        _, hidden, mask = self._read_sentences(texts)
        return self._pool(hidden, mask)


def resize(grey: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [H, W] -> [height, width]: the average of areas when it shrinks, bicubic when it grows."""
    if grey.shape == (height, width):
        return grey
    if height * width <= grey.numel():
        rows, columns = (area_weights(*sizes) for sizes in zip((height, width), grey.shape, strict=True))
        scaled = rows @ grey.double() @ columns.T
    else:
        options = {"mode": "bicubic", "align_corners": False}
        scaled = F.interpolate(grey[None, None].double(), (height, width), **options)[0, 0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def area_weights(new: int, old: int) -> torch.Tensor:
    """[new, old]: the share of each old pixel in each new one, rows sum to one."""
    edges = torch.arange(new + 1, dtype=torch.float64)[:, None] * old / new
    pixel = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
    return overlap.clamp(min=0) * new / old
