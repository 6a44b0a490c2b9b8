"""A PyTorch training step with the structure of the released IMITATE: a peer for speed and for loss values.

    python benchmarks/torch_imitate.py --threads 2 --steps 3 --warmup 1

prints one JSON line with the median seconds per step. Random data, random weights, float32 on CPU; nothing is read from
disk. On a GPU (`--device cuda`) products and convolutions are bfloat16, as fast there as the released half precision.
Structure from cheliu-computation/IMITATE-TMI2024@cd1c575 (arXiv 2310.07355), written anew:

* ResNet-50 run four times per step: two views, each once for the image-text terms (m1) and once for the view-view
  terms (m2), every pass with its own draw of channels. ``trunk_passes=2`` runs it once per view and repeats only the
  read branch: the same losses for the same draws, half the convolutions.
* frozen BERT-base in the loop, without gradient. ``cached_text=True`` leaves it out, for comparison with a trainer that
  precomputes the frozen vectors.

Default settings are the faster of each pair timed in turns on two AVX-512 cores: channels-last over contiguous
convolutions (8 % on the trunk), fused over plain attention (3 % on BERT), fused AdamW. ``--compile`` gains another 9 %
on the trunk and would gain nothing on BERT, which stays eager.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_CHANNELS = (256, 512, 1024, 2048)
KEPT_CHANNELS = (64, 76, 102, 204)
NUM_TOKENS = 512
TOKEN_SIDE = 16
WIDTH = TOKEN_SIDE**2


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        outputs = 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet50(nn.Module):
    """Returns the four stage outputs; module names are those of torchvision, without the classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, (blocks, outputs) in enumerate(zip((3, 4, 6, 3), STAGE_CHANNELS, strict=True), start=1):
            layers = []
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 1 else 1
                layers.append(Bottleneck(inputs, outputs // 4, stride))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_Bx3xHxW: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image_Bx3xHxW)), inplace=True), 3, 2, padding=1)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def projection_head(inputs: int, hidden: int, outputs: int = 512) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
        nn.BatchNorm1d(outputs, affine=False),
    )


class ReadBranch(nn.Module):
    """Channels of all stages as tokens, one self-attention layer, its CLS token projected: -> B×512."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, NUM_TOKENS + 1, WIDTH))
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = projection_head(WIDTH, 256)

    def forward(self, stages: list[Tensor], generator: torch.Generator) -> Tensor:
        batch = stages[0].shape[0]
        tokens = []
        for maps, kept in zip(stages, KEPT_CHANNELS, strict=True):
            # with replacement
            chosen = torch.randint(maps.shape[1], (kept,), generator=generator, device=maps.device)
            tokens.append(F.adaptive_avg_pool2d(maps[:, chosen], TOKEN_SIDE).flatten(2))
        tokens = torch.cat(tokens, dim=1)
        tokens = F.pad(tokens, (0, 0, 0, NUM_TOKENS - tokens.shape[1])) + self.positions[:, 1:]
        cls = (self.cls + self.positions[:, :1]).expand(batch, -1, -1)
        x = torch.cat([tokens, cls], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, -1])


class Imitate(nn.Module):
    """All trainable parts; 30,664,512 parameters."""

    def __init__(self):
        super().__init__()
        self.trunk = ResNet50()
        self.read = ReadBranch()
        self.diagnosis_head = projection_head(2048, 2048)
        self.text_head = projection_head(768, 1024)

    def embed(self, stages: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One pass over the stage outputs of one view: (diagnosis B×512, read B×512)."""
        return self.diagnosis_head(stages[-1].mean(dim=(2, 3))), self.read(stages, generator)


def clinical_prior(report_BxE: Tensor, ratio: float = 0.2) -> Tensor:
    """B×B similarity in [0, 1 - exp(-ratio)], zero diagonal: 1 - exp(-ratio * max(Pearson correlation of rows, 0))."""
    centred = report_BxE - report_BxE.mean(dim=1, keepdim=True)
    unit = F.normalize(centred, dim=1, eps=1e-6)
    correlation = (unit @ unit.T).clamp_min(0.0).fill_diagonal_(0.0)
    return 1.0 - torch.exp(-ratio * correlation)


def contrastive(x_BxD: Tensor, y_BxD: Tensor, temperature: float, prior_BxB: Tensor | None = None) -> Tensor:
    """Both directions, summed; targets I + temperature * prior, rows not normalised."""
    logits = F.normalize(x_BxD, dim=1) @ F.normalize(y_BxD, dim=1).T / temperature
    targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if prior_BxB is not None:
        targets = targets + temperature * prior_BxB
    return F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)


def released_loss(
    diagnosis_m1_VxBxD: Tensor,
    read_m1_VxBxD: Tensor,
    diagnosis_m2_VxBxD: Tensor,
    read_m2_VxBxD: Tensor,
    u_impression_BxD: Tensor,
    u_findings_BxD: Tensor,
    t_impression_BxE: Tensor,
    t_findings_BxE: Tensor,
    *,
    read_weight: float = 1.0,
    ratio: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The released objective, all terms; V = 2 views, any scale (rows are normalised here).

    ``m1`` and ``m2`` are the two passes, ``u`` projected and ``t`` frozen text vectors, ``read_weight`` the mu of the
    epoch (1 in the released 20 epochs). Returns the sum and its terms before weighting: diagnosis, read,
    view_diagnosis, view_read.
    """
    prior_impression = clinical_prior(t_impression_BxE, ratio)
    prior_findings = clinical_prior(t_findings_BxE, ratio)
    (z1, z2), (r1, r2) = diagnosis_m2_VxBxD, read_m2_VxBxD
    terms = {
        "diagnosis": sum(contrastive(z, u_impression_BxD, 0.07, prior_impression) for z in diagnosis_m1_VxBxD),
        "read": sum(contrastive(r, u_findings_BxD, 0.07, prior_findings) for r in read_m1_VxBxD),
        "view_diagnosis": contrastive(z1, z2, 0.2, prior_impression) + contrastive(z2, z1, 0.2, prior_impression),
        "view_read": contrastive(r1, r2, 0.2) + contrastive(r2, r1, 0.2),
    }
    total = terms["diagnosis"] + terms["view_diagnosis"] + read_weight * (terms["read"] + terms["view_read"])
    return total, terms


def frozen_bert(attention: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """BERT-base with random weights: (ids B×L, mask B×L) -> CLS vectors B×768, no gradient."""
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(attn_implementation=attention), add_pooling_layer=False).to(device)
    bert.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(ids_BxL: Tensor, mask_BxL: Tensor) -> Tensor:
        return bert(input_ids=ids_BxL, attention_mask=mask_BxL).last_hidden_state[:, 0]

    return lambda ids, mask: encode(ids, mask).clone()  # a clone is an ordinary tensor, which autograd accepts


def make_step(
    batch_size: int = 16,
    image_size: int = 224,
    tokens: int = 256,
    seed: int = 0,
    *,
    trunk_passes: int = 4,
    cached_text: bool = False,
    channels_last: bool = True,
    attention: str = "sdpa",
    fused_adamw: bool = True,
    compiled: bool = False,
    device: str = "cpu",
) -> Callable[[], float]:
    """Builds model, optimiser and random data; each call of the result does one full training step.

    Returns:  a function that runs forward, loss, backward and AdamW on the whole batch and gives the loss.
    Raises:   ValueError for a batch below 2 (BatchNorm needs two) or another number of passes than 2 or 4.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: BatchNorm and the contrastive loss need 2 or more.")
    if trunk_passes not in (2, 4):
        raise ValueError(f"trunk_passes={trunk_passes}. Use 4 (as released) or 2 (one per view).")
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32 on a GPU
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator(device).manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = Imitate().train().to(device, memory_format=memory_format)
    trunk = torch.compile(model.trunk) if compiled else model.trunk
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.05, fused=fused_adamw)
    shape = (batch_size, 3, image_size, image_size)
    views = [torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(2)]
    if cached_text:
        t_findings, t_impression = torch.randn(2, batch_size, 768, device=device)
    else:
        encode = frozen_bert(attention, device)
        ids_2xBxL = torch.randint(1000, 28000, (2, batch_size, tokens), device=device)
        mask_BxL = torch.ones(batch_size, tokens, dtype=torch.long, device=device)

    def forward() -> Tensor:
        text = (t_findings, t_impression) if cached_text else [encode(ids, mask_BxL) for ids in ids_2xBxL]
        passes = []  # m1 of both views, then m2 of both views
        if trunk_passes == 2:
            stages = [trunk(view) for view in views]
            passes = [model.embed(stages[v], generator) for _ in range(2) for v in range(2)]
        else:
            passes = [model.embed(trunk(view), generator) for _ in range(2) for view in views]
        diagnosis, read = (torch.stack(parts) for parts in zip(*passes, strict=True))
        u_findings, u_impression = (model.text_head(t) for t in text)
        loss, _ = released_loss(
            diagnosis[:2], read[:2], diagnosis[2:], read[2:], u_impression, u_findings, text[1], text[0]
        )
        return loss

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = forward()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per PyTorch IMITATE training step, as a JSON line.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock starts")
    parser.add_argument("--batch_size", type=int, default=16, help="images; each gives two views")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--tokens", type=int, default=256, help="per report section")
    parser.add_argument("--trunk_passes", type=int, default=4, choices=(2, 4), help="ResNet passes per step")
    parser.add_argument("--cached_text", action="store_true", help="random text vectors instead of the frozen BERT")
    parser.add_argument("--contiguous", action="store_true", help="NCHW convolutions instead of channels-last")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"), help="attention of BERT")
    parser.add_argument("--unfused", action="store_true", help="AdamW without the fused kernel")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="torch.compile the trunk (needs a C++ compiler)")
    flags = parser.parse_args()
    if min(flags.threads, flags.steps) < 1 or flags.warmup < 0:
        parser.error("--threads and --steps must be 1 or more, --warmup 0 or more")
    torch.set_num_threads(flags.threads)
    step = make_step(
        flags.batch_size,
        flags.image_size,
        flags.tokens,
        trunk_passes=flags.trunk_passes,
        cached_text=flags.cached_text,
        channels_last=not flags.contiguous,
        attention=flags.attention,
        fused_adamw=not flags.unfused,
        compiled=flags.compile,
        device=flags.device,
    )
    losses = [step() for _ in range(flags.warmup)]
    seconds = []
    for _ in range(flags.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    result = {
        "benchmark": "torch_imitate",
        "torch": torch.__version__,
        **vars(flags),
        "median_seconds_per_step": round(median, 4),
        "min_seconds_per_step": round(min(seconds), 4),
        "images_per_second": round(flags.batch_size / median, 3),
        "last_loss": round(losses[-1], 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
