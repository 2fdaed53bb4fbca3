"""The tuberculosis classifier: what ImageNet's network makes of a film, described zone by zone, and a line through it.

Axes: B films, 3 equal channels, H, W; Z zones, thirds of the right lung, then of the left; C, h, w of a stage; F
numbers that describe a film.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..model import load_network, read_header
from .data import THIRDS
from .lite0 import CHANNELS, Lite0

PARTS = 6  # numbers of each channel and third: see describe()
CLIP = 5.0  # deviations from the mean, beyond which a number says no more


class TBNet(nn.Module):
    """EfficientNet-Lite0 as ImageNet left it, and a logistic regression on mean, deviation and maximum of its features.

    Each third of a lung is described apart, by the mean of both lungs and by how much they differ: a film and its
    mirror image are the same.

    Args:
        first, last: stages of the network, from 0 on, whose features are looked at.

    Shape:
        images ``(B, 3, H, W)`` and zones ``(B, Z, H, W)`` in {0, 1} → logits ``(B,)``.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, *, first: int = 2, last: int = 5):
        super().__init__()
        self.architecture = {"first": first, "last": last, "members": 1}
        self.stages = slice(first, last + 1)
        self.backbone = Lite0()
        length = PARTS * THIRDS * sum(CHANNELS[self.stages])
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("deviation", torch.ones(length))
        self.head = nn.Linear(length, 1)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The features of the stages that are looked at, each ``(B, C, h, w)``."""
        return self.backbone(images, self.stages.stop)[self.stages]

    def describe(self, images: torch.Tensor, zones: torch.Tensor) -> torch.Tensor:
        """What the head sees, before it is standardised: ``(B, F)``."""
        return torch.cat([describe(features, zones) for features in self.maps(images)], 1)

    def classify(self, described: torch.Tensor) -> torch.Tensor:
        """Descriptions ``(B, F)`` to logits ``(B,)``."""
        standard = (described - self.mean) / self.deviation
        return self.head(standard.clamp(-CLIP, CLIP)).squeeze(1)

    def forward(self, images: torch.Tensor, zones: torch.Tensor) -> torch.Tensor:
        return self.classify(self.describe(images, zones))

    def heat(self, images: torch.Tensor, zones: torch.Tensor) -> torch.Tensor:
        """What raised the logit, place by place: gradient × how far the features are from a mean film's there.

        With means alone that would be each place's share of the logit; deviations and maxima are taken as the line that
        touches them.

        Returns:
            ``float32 (B, H, W)``, 0 and more.

        Source: Selvaraju et al. 2017, Grad-CAM; Draelos & Carin 2020, HiResCAM.
        """
        with torch.no_grad():
            maps = self.maps(images)
        with torch.enable_grad():
            maps = [features.detach().requires_grad_() for features in maps]
            logits = self.classify(torch.cat([describe(features, zones) for features in maps], 1))
            gradients = torch.autograd.grad(logits.sum(), maps)
        total = torch.zeros_like(zones[:, :1], dtype=torch.float32)
        usual = self.mean.split([PARTS * THIRDS * channels for channels in CHANNELS[self.stages]])
        for features, gradient, mean in zip(maps, gradients, usual, strict=True):
            shares = _shares(zones, features)
            thirds = mean[: features.shape[1] * THIRDS].view(THIRDS, -1)
            there = torch.einsum("bzhw,zc->bchw", shares, torch.cat([thirds, thirds]))
            there = there / shares.sum(1, keepdim=True).clamp_min(1e-3)
            share = (gradient * (features.detach() - there)).sum(1, keepdim=True)
            size = share.shape[-1] / images.shape[-1]  # a coarse map's places are larger
            total += F.interpolate(share * size**2, images.shape[-2:], mode="bilinear")
        return total.squeeze(1).relu()


def describe(features: torch.Tensor, zones: torch.Tensor) -> torch.Tensor:
    """Mean, deviation and maximum of features in each third, the mean of both lungs and their difference.

    A zone that is empty, of a lung that isn't there, is taken to be like the other lung's. The maximum is over places
    at least half as much in the zone as the one that is most: a coarse map has few that lie in it wholly.

    Args:
        features: ``(B, C, h, w)``.
        zones: ``(B, Z, H, W)`` in {0, 1}.

    Returns:
        ``(B, 6 Z/2 C)``: means of both, differences of means, the same of deviations and of maxima, each third by
        third.
    """
    shares = _shares(zones, features).flatten(2)
    area = shares.sum(2, keepdim=True)
    weights, places = shares / area.clamp_min(1e-3), features.flatten(2).transpose(1, 2)
    mean = weights @ places
    deviation = (weights @ places**2 - mean**2).clamp_min(1e-8).sqrt()
    inside = shares > shares.amax(2, keepdim=True).clamp_min(1e-3) / 2
    # Zone by zone: all at once would take a copy of the features for each.
    within = [places.masked_fill(~zone[..., None], -torch.inf).amax(1) for zone in inside.unbind(1)]
    maximum = torch.where(inside.any(2, keepdim=True), torch.stack(within, 1), mean)
    found = []
    for numbers in (mean, deviation, maximum):
        numbers = torch.where(area > 0, numbers, numbers.roll(THIRDS, 1))
        right, left = numbers.split(THIRDS, 1)
        found += [(right + left) / 2, (right - left).abs()]
    return torch.cat(found, 1).flatten(1)


def _shares(zones: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """How much of each place of the features lies in each zone: ``(B, Z, h, w)``."""
    return F.adaptive_avg_pool2d(zones.float(), (features.shape[-2], features.shape[-1]))


def load_tb(path: str | Path) -> TBNet:
    """The classifier of a file that ``model.save_weights`` wrote of a :class:`TBNet`, on the CPU, as float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds another network, such as a segmenter.
    """
    architecture = read_header(path, members=True)["architecture"]
    return load_network(path, lambda: TBNet(first=architecture["first"], last=architecture["last"]))
