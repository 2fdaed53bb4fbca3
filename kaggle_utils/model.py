"""The U-Net, and its weights on disk.

Axes: B films, C channels, then the spatial axes: H, W for films (``dims=2``), D, H, W for volumes (``dims=3``).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .config import FORMAT, NORMALISATION, UNSEALED, parse_header, seal  # noqa: F401 (this module is the face of those)
from .files import write_bytes

Network = TypeVar("Network", bound=nn.Module)

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP_CONV = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
PRIOR = 0.25  # the lungs' share of a film, which an untrained network predicts everywhere


class UNet(nn.Module):
    """U-Net: a contracting path, an expanding path, and a skip connection at every resolution between them.

    Differs from the paper in that convolutions are padded, so that the output has the input's shape, and normalised.
    Any H and W are taken: the input is padded to a multiple of ``patch * 2**depth`` and the logits are cropped back.

    Args:
        in_channels: channels of the input.
        classes: channels of the logits.
        base_channels: of the first level; each level below has twice as many.
        depth: how many times the resolution is halved.
        dims: 2 for films, 3 for volumes.
        norm: ``batch``, ``group`` (8 groups; for batches of one or two) or ``instance``.
        up: ``bilinear`` (after a 1×1 convolution; trilinear in 3-D) or ``transposed`` (2×2 up-convolution, as the
            paper).
        patch: px, side of the patches that become channels before the first convolution, and come back as pixels after
            the last (films only). 2 quarters the work of every level and still gives a logit to every pixel.
        conv: ``plain``, or ``separable``: each 3×3 convolution a depthwise and a 1×1 one, with a ninth of the weights.

    Shape:
        ``(B, in_channels, H, W)`` → ``(B, classes, H, W)`` logits.

    Source: Ronneberger, Fischer & Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", fig. 1;
    Çiçek et al. 2016 for 3-D; Shi et al. 2016 (sub-pixel convolution)
    for ``patch``; Howard et al. 2017 (MobileNets) for ``separable``; He et al. 2015 for the initialisation.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 1,
        base_channels: int = 16,
        depth: int = 4,
        *,
        dims: int = 2,
        norm: str = "batch",
        up: str = "bilinear",
        patch: int = 1,
        conv: str = "plain",
    ):
        super().__init__()
        for name, value, choices in (
            ("dims", dims, (2, 3)),
            ("norm", norm, ("batch", "group", "instance")),
            ("up", up, ("bilinear", "transposed")),
            ("conv", conv, ("plain", "separable")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}")
        if patch > 1 and dims == 3:
            raise ValueError("patch > 1 is for films (dims=2)")
        self.architecture: dict[str, Any] = dict(
            in_channels=in_channels,
            classes=classes,
            base_channels=base_channels,
            depth=depth,
            dims=dims,
            norm=norm,
            up=up,
            patch=patch,
            conv=conv,
        )
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.inc = DoubleConv(in_channels * patch**2, widths[0], dims, norm, conv)
        self.down = nn.ModuleList(
            nn.Sequential(_POOL[dims](2), DoubleConv(shallow, deep, dims, norm, conv))
            for shallow, deep in zip(widths, widths[1:])
        )
        self.up = nn.ModuleList(
            Up(deep, shallow, dims, norm, up, conv) for shallow, deep in zip(widths[-2::-1], widths[:0:-1])
        )
        self.outc = _CONV[dims](widths[0], classes * patch**2, 1)
        if self.outc.weight.is_meta:
            return  # the numbers will come from a file; to draw some here would load PyTorch's compiler
        self.apply(_initialise)
        with torch.no_grad():  # all outputs start alike: else a patch's pixels are a checkerboard (Aitken et al. 2017)
            self.outc.weight.copy_(self.outc.weight[:1].expand_as(self.outc.weight))
        assert self.outc.bias is not None
        nn.init.constant_(self.outc.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images, shape = self._pad(images), images.shape[2:]
        patch = self.architecture["patch"]
        if patch > 1:
            images = F.pixel_unshuffle(images, patch)
        skips = [self.inc(images)]
        for down in self.down:
            skips.append(down(skips[-1]))  # each level: twice the channels, half the resolution
        features = skips.pop()
        for up in self.up:
            features = up(features, skips.pop())
        logits = self.outc(features)
        if patch > 1:
            logits = F.pixel_shuffle(logits, patch)
        return logits[(..., *map(slice, shape))]  # without what was padded

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        dims, in_channels = self.architecture["dims"], self.architecture["in_channels"]
        if images.ndim != dims + 2 or images.shape[1] != in_channels:
            axes = "(B, C, H, W)" if dims == 2 else "(B, C, D, H, W)"
            raise ValueError(f"this U-Net takes {axes} with C = {in_channels}, not {tuple(images.shape)}")
        multiple = self.architecture["patch"] * 2 ** len(self.down)
        missing = [-size % multiple for size in images.shape[:1:-1]]  # last axis first, as F.pad wants it
        if not any(missing):
            return images
        return F.pad(images, [amount for m in missing for amount in (0, m)], mode="replicate")


class DoubleConv(nn.Sequential):
    """(3×3 convolution, normalisation, ReLU) twice."""

    def __init__(self, in_channels: int, out_channels: int, dims: int, norm: str, conv: str):
        super().__init__()
        for channels in (in_channels, out_channels):
            self.extend(_conv3(conv, dims, channels, out_channels))
            self.append(_norm(norm, dims, out_channels))
            self.append(nn.ReLU(inplace=True))


class Up(nn.Module):
    """Doubles the resolution, appends the skip connection's channels and convolves."""

    def __init__(self, in_channels: int, out_channels: int, dims: int, norm: str, up: str, conv: str):
        super().__init__()
        self.up: nn.Module
        if up == "transposed":
            self.up = _UP_CONV[dims](in_channels, out_channels, 2, stride=2)
        else:
            # The 1×1 convolution commutes with the interpolation and is four times cheaper before it.
            narrow = _CONV[dims](in_channels, out_channels, 1)
            self.up = nn.Sequential(narrow, nn.Upsample(scale_factor=2, mode=_LINEAR[dims]))
        self.conv = DoubleConv(2 * out_channels, out_channels, dims, norm, conv)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.up(features)], dim=1))


def count_parameters(model: nn.Module) -> int:
    """How many numbers training fits."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_weights(path: str | Path, model: UNet, header: dict[str, Any] | None = None, *, half: bool = False) -> None:
    """Writes the weights as safetensors, with the architecture and whatever the header says.

    Args:
        path: the file; written whole or not at all.
        model: whose weights.
        header: what a user should know, JSON-able (size, normalisation, sources, metrics, licence, ...).
        half: store float16: half the bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    _write(path, tensors, {"architecture": model.architecture, **(header or {})})


def read_header(path: str | Path, *, members: bool = False) -> dict[str, Any]:
    """The header of a weights file, checked.

    Args:
        path: the file.
        members: whether it is the classifier's, see :func:`tb.net.load_tb`, and not a segmenter's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not safetensors, or not of this project, or see :func:`config.check_header`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    if FORMAT not in metadata:
        raise ValueError(f"{path}: safetensors, but not written by this project (no {FORMAT!r} in its header)")
    return parse_header(metadata[FORMAT], path, data=Path(path).read_bytes(), members=members)


def update_header(path: str | Path, **entries: object) -> None:
    """Writes entries into the header of a weights file; the tensors stay as they are.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_header`.
    """
    header = read_header(path) | entries
    _write(path, load_file(path), header)


def _write(path: str | Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    # One entry, since safetensors writes several in an order of its own at each run: equal weights are to be equal
    # files.
    write_bytes(path, seal(save(tensors, {FORMAT: json.dumps({**header, "checksum": UNSEALED})})))


def load_weights(path: str | Path) -> UNet:
    """The U-Net of a weights file, on the CPU, in evaluation mode, as float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its tensors don't fit the architecture that its header names.
    """
    architecture = read_header(path)["architecture"]
    return load_network(path, lambda: UNet(**architecture))


def start_from(model: UNet, heads: Sequence[str], path: str | Path) -> None:
    """Gives a network the weights of a file, each head those of the head of its name, or of the first one.

    Args:
        model: of the same architecture, but for the number of heads.
        heads: names of its heads.
        path: the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another architecture.
    """
    header, start = read_header(path), load_weights(path)
    for name, wanted in model.architecture.items():
        if name != "classes" and start.architecture[name] != wanted:
            raise ValueError(
                f"{path}: a network of {name} {start.architecture[name]}, not {wanted}: choose the same to start "
                "from it"
            )
    known = header.get("heads") or [""]
    group = model.architecture["patch"] ** 2  # channels of a head, which become its pixels
    channels = [(known.index(head) if head in known else 0) * group + pixel for head in heads for pixel in range(group)]
    tensors = start.state_dict()
    for name in ("outc.weight", "outc.bias"):
        tensors[name] = tensors[name][channels]
    model.load_state_dict(tensors)


def load_network(path: str | Path, make: Callable[[], Network]) -> Network:
    """A network with the tensors of a weights file, on the CPU, in evaluation mode, as float32.

    Args:
        path: the file.
        make: the network as the file's header says.

    Raises:
        ValueError: its tensors don't fit the network, or hold what is no finite number.
    """
    try:
        with torch.device("meta"):  # a damaged header may name a network that no memory holds
            model = make()
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}
        model.load_state_dict(tensors, assign=True)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        said = " ".join(str(error).split())[:400]
        raise ValueError(f"{path}: the tensors don't fit the architecture in the header ({said})") from None
    for name, tensor in tensors.items():
        check_finite(path, name, bool(np.isfinite(tensor.numpy()).all()))  # by NumPy: no threads for small tensors
    return model.eval()


def fold_norm(model: Network) -> Network:
    """A copy of a network for inference: each batch normalisation of its U-Net is part of the convolution before it.

    The logits differ by what rounding makes of them. Other normalisations need the film, and stay.

    Args:
        model: in evaluation mode.
    """
    model = copy.deepcopy(model)
    for block in (module for module in model.modules() if isinstance(module, DoubleConv)):
        for n, (conv, norm) in enumerate(pairwise(list(block))):
            if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
                block[n], block[n + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()  # type: ignore[type-var]
    return model


def check_finite(path: str | Path, name: str, finite: bool) -> None:
    """Raises ValueError for a tensor with NaN or infinity: its network would find no lung, and say nothing."""
    if not finite:
        raise ValueError(
            f"{path}: {name} holds NaN or infinity: damaged, or of a training that failed; train, or fetch the "
            "weights, again"
        )


def _conv3(conv: str, dims: int, in_channels: int, out_channels: int) -> list[nn.Module]:
    # The normalisation that follows takes the mean away, and with it a bias.
    if conv == "plain":
        return [_CONV[dims](in_channels, out_channels, 3, padding=1, bias=False)]
    return [
        _CONV[dims](in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        _CONV[dims](in_channels, out_channels, 1, bias=False),
    ]


def _norm(norm: str, dims: int, channels: int) -> nn.Module:
    if norm == "batch":
        return _BATCH_NORM[dims](channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return _INSTANCE_NORM[dims](channels, affine=True)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
