"""The tuberculosis classifier: the segmenter's encoder, pooled inside a region, and where it looked.

Axes: B films, 1 channel, H, W; features C, h, w are ``patch * 2**depth`` times smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..model import UNet, load_network, read_header


class TBNet(nn.Module):
    """The contracting path of a U-Net, and a head that averages its deepest features inside a region.

    A mean is all the pooling there is: attention with the strongest response beside it was no better, see
    ``results/tb_choices.csv``, and with a mean every place's share of the logit can be read off.

    Args:
        base_channels, depth, patch: of the U-Net whose encoder this is.
        dropout: share of the pooled features that training hides.

    Shape:
        images ``(B, 1, H, W)`` and region ``(B, 1, H, W)`` in {0, 1} → logits ``(B,)``.
    """

    def __init__(self, *, base_channels: int = 16, depth: int = 3, patch: int = 2, dropout: float = 0.3):
        super().__init__()
        self.patch = patch
        self.architecture = {"base_channels": base_channels, "depth": depth, "patch": patch, "dropout": dropout}
        unet = UNet(base_channels=base_channels, depth=depth, patch=patch)
        self.inc, self.down = unet.inc, unet.down
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(base_channels * 2**depth, 1))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The deepest features ``(B, C, h, w)``."""
        features = self.inc(F.pixel_unshuffle(images, self.patch))
        for down in self.down:
            features = down(features)
        return features

    def classify(self, features: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        """Features ``(B, C, h, w)`` to logits ``(B,)``, by those inside the region ``(B, 1, H, W)`` alone."""
        height, width = features.shape[-2:]
        inside = F.adaptive_avg_pool2d(region, (height, width))
        mean = (features * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp_min(1e-3)
        return self.head(mean).squeeze(1)

    def forward(self, images: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images), region)

    def take_encoder(self, unet: UNet) -> None:
        """Starts from a trained segmenter's encoder.

        Raises:
            ValueError: it has other base channels, depth or patch.
        """
        mine = {key: self.architecture[key] for key in ("base_channels", "depth", "patch")}
        other = {key: unet.architecture[key] for key in mine}
        if mine != other:
            raise ValueError(f"the segmenter has {other}, the classifier {mine}")
        self.inc.load_state_dict(unet.inc.state_dict())
        self.down.load_state_dict(unet.down.state_dict())


class TBEnsemble(nn.Module):
    """Classifiers of one architecture, whose mean logit counts.

    Shape:
        as :class:`TBNet`.
    """

    def __init__(self, members: Sequence[TBNet]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.architecture = {**members[0].architecture, "members": len(members)}

    def forward(self, images: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(images, region) for net in self.members]).mean(0)


def load_tb(path: str | Path) -> TBEnsemble:
    """The classifier of a file that ``model.save_weights`` wrote of a :class:`TBEnsemble`, on the CPU, as float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds another network, such as a segmenter.
    """
    architecture = dict(read_header(path, members=True)["architecture"])
    members = architecture.pop("members")
    return load_network(path, lambda: TBEnsemble([TBNet(**architecture) for _ in range(members)]))


def grad_cam(nets: Sequence[TBNet], images: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """What raised the logit, place by place: the positive part of gradient × feature, over all features and networks.

    The product is taken at each place before it is added up: with a mean as the pooling, that is Grad-CAM.

    Args:
        nets: classifiers.
        images, region: ``(B, 1, H, W)``, of :func:`tb.data.view`.

    Returns:
        ``float32 (B, H, W)``, 0 and more, in units of the logit per place, interpolated.

    Source: Selvaraju et al. 2017, Grad-CAM; Draelos & Carin 2020, HiResCAM.
    """
    maps = []
    for net in nets:
        with torch.no_grad():
            features = net.features(images)
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net.classify(features, region).sum(), features)
        maps.append((gradient * features.detach()).sum(1, keepdim=True).relu())
    return F.interpolate(torch.stack(maps).mean(0), images.shape[-2:], mode="bilinear").squeeze(1)
