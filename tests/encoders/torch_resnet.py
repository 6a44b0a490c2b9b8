"""ResNet in a few lines of torch under torchvision's module names, to compare against."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, width, width, outputs] if bottleneck else [inputs, width, outputs]
        self.depth = len(plan)
        for i, (size, step) in enumerate(plan):
            self.add_module(f"conv{i + 1}", conv(widths[i], widths[i + 1], size, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """Returns the four stage outputs, NCHW."""

    def __init__(self, sizes=(3, 4, 6, 3), width: int = 64, bottleneck: bool = True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs, self.stages = width, len(sizes)
        for s, size in enumerate(sizes):
            outputs, blocks = width * 2**s, []
            for b in range(size):
                blocks.append(Block(inputs, outputs, 2 if s and b == 0 else 1, bottleneck))
                inputs = outputs * (4 if bottleneck else 1)
            self.add_module(f"layer{s + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for s in range(self.stages):
            x = getattr(self, f"layer{s + 1}")(x)
            stages.append(x)
        return stages


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms and running statistics, so that no parameter hides behind its default."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model
