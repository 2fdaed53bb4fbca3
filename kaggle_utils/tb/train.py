"""Training the tuberculosis classifier, and what it says of films."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

from ..config import setting
from ..hardware import choose_device, choose_precision, keep_memory
from ..model import UNet
from ..training import MovingAverage
from .data import VARIANTS, Cuts, as_tensor, balance, batches, view
from .net import TBNet


@dataclass(frozen=True)
class TBConfig:
    """Everything that decides a training; what the choices were made by is in ``results/tb_choices.csv``."""

    variant: str = setting("masked", "what the network sees: whole, crop, masked or blanked")
    size: int = setting(192, "px, side of the square that it sees")
    base_channels: int = setting(16, "of the segmenter whose encoder it is")
    depth: int = setting(3, "the same")
    dropout: float = setting(0.3, "share of the pooled features that training hides")
    epochs: int = setting(40, "passes over the training films; all are made, the last averaged weights are kept")
    batch_size: int = setting(16, "films a step")
    lr: float = setting(1e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(0.05, "of AdamW, decoupled")
    smoothing: float = setting(0.05, "of the labels, some of which are wrong or invisible on a film")
    mixup: float = setting(0.0, "parameter of the beta distribution by which two films are blended; 0 is none")
    ema_decay: float = setting(0.99, "decay per step of the averaged weights")
    seed: int = setting(0, "of initial weights, order and augmentation")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")


def train_tb(cuts: Cuts, config: TBConfig, encoder: UNet | None = None) -> TBNet:
    """Trains a classifier on labelled films.

    No film decides when to stop: validation films are left for the temperature and the threshold alone.

    Args:
        cuts: films of ``config.size`` with a label in ``frame["tb"]``.
        config: see :class:`TBConfig`.
        encoder: a segmenter to start from; None starts from random weights.

    Raises:
        ValueError: the films have another size, or one class alone.
        FloatingPointError: the loss is not finite.
    """
    _check(cuts, config)
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_memory()
    cv2.setNumThreads(1)  # tiny pictures: OpenCV's threads take longer to start than to work
    torch.manual_seed(config.seed)
    net = TBNet(base_channels=config.base_channels, depth=config.depth, dropout=config.dropout)
    if encoder:
        net.take_encoder(encoder)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = MovingAverage(net, config.ema_decay)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    rate = partial(_rate, steps=config.epochs * len(cuts) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    truth = torch.from_numpy(cuts.frame["tb"].to_numpy(np.float32)).to(device)
    truth = truth * (1 - config.smoothing) + config.smoothing / 2
    weight = torch.from_numpy(balance(cuts.frame)).to(device)
    for epoch in range(config.epochs):
        net.train()
        losses = []
        for images, region, films in batches(
            cuts, config.variant, batch=config.batch_size, seed=config.seed, epoch=epoch
        ):
            images = images.to(device, memory_format=torch.channels_last)
            region, target = region.to(device), truth[films]
            if config.mixup:
                images, region, target = mix(images, region, target, config.mixup)
            with _autocast(device):
                logits = net(images, region)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target, weight=weight[films])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            ema.update()
            losses.append(loss.item())
        if not math.isfinite(sum(losses)):
            raise FloatingPointError(f"the loss of epoch {epoch} is {np.mean(losses)}: try a lower lr than {config.lr}")
    trained = ema.module.eval()
    assert isinstance(trained, TBNet)
    return trained


def _check(cuts: Cuts, config: TBConfig) -> None:
    if set(cuts.frame["tb"]) != {0, 1}:
        raise ValueError(f"labels are {sorted(set(cuts.frame['tb']))}, there should be films with 0 and with 1")
    if cuts.films.shape[1] != config.size:
        raise ValueError(f"the films were cut at {cuts.films.shape[1]} px, the configuration wants {config.size}")


def _rate(step: int, steps: float) -> float:
    """The share of the peak learning rate: it rises for a tenth of the steps, then falls along half a cosine to 1 %."""
    rising = max(1, 0.1 * steps)
    if step < rising:
        return step / rising
    return max(0.01, (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2)


def mix(
    images: torch.Tensor, region: torch.Tensor, target: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blends each film with the next in the batch. Source: Zhang et al. 2018, mixup, with the larger share its own."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share = max(share, 1 - share)
    images = share * images + (1 - share) * images.roll(1, 0)
    target = share * target + (1 - share) * target.roll(1, 0)
    return images, torch.maximum(region, region.roll(1, 0)), target


@torch.inference_mode()
def logits_of(nets: Sequence[TBNet], cuts: Cuts, variant: str) -> np.ndarray:
    """Mean logits of the networks for each film, averaged with those of the mirrored film.

    Returns:
        ``float32 (N,)``.
    """
    images, lungs = cuts.of(variant)
    device = next(nets[0].parameters()).device
    found = []
    for start in range(0, len(cuts), 32):
        some = slice(start, start + 32)
        seen, region = view(as_tensor(images[some], device), as_tensor(lungs[some], device), variant)
        seen = seen.contiguous(memory_format=torch.channels_last)
        views = (seen, region), (seen.flip(-1), region.flip(-1))
        with _autocast(device):
            logits = [net(*one).float() for net in nets for one in views]
        found.append(torch.stack(logits).mean(0).cpu())
    return torch.cat(found).numpy()


def read_off(nets: Sequence[TBNet], cuts: Cuts, variant: str) -> pd.DataFrame:
    """The films' name, source, tb, part and logit (see :func:`logits_of`), for :func:`tb.calibrate.calibrated`."""
    return cuts.frame[["name", "source", "tb", "part"]].assign(logit=logits_of(nets, cuts, variant))


def compare_variants(
    cuts: Cuts, config: TBConfig, *, variants: Sequence[str] = VARIANTS, seeds: int = 1
) -> pd.DataFrame:
    """Trains a classifier for each variant and seed on the ``train`` part of the films, alike otherwise.

    Args:
        cuts: with ``part`` in the frame: train, val and test.
        config: of all; its variant and seed don't count.
        variants, seeds: which, and how often each; seeds are counted from 0.

    Returns:
        :func:`read_off` of the other films, with arm (the variant) and seed: what ``plots.tb`` draws and
        ``calibrate.calibrated`` takes.
    """
    train = (cuts.frame["part"] == "train").to_numpy()
    tables = []
    for variant, seed in itertools.product(variants, range(seeds)):
        net = train_tb(cuts[train], replace(config, variant=variant, seed=seed))
        tables.append(read_off([net], cuts[~train], variant).assign(arm=variant, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _autocast(device: torch.device) -> torch.autocast:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(device), torch.float32)
    # fp16 would need its loss scaled: a network this small gains too little from that.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype == torch.bfloat16)
