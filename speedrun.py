"""The fastest way to lungs that we know: prepared radiographs in, a U-Net out, a mean validation Dice of 0.95.

    python speedrun.py --data segmentation [--note "what changed"]

A whole training on one page, which needs nothing else of this project but what `python -m kaggle_utils prep` wrote. The
rules: learn from the published training lists of Montgomery and Shenzhen; five seeds, each through a schedule that was
set beforehand; the score is the mean over the 70 validation films of both sets, at 256 px, of each film's Dice at
probability 0.5. It is a record if every seed has 0.95. The clock runs from the first batch to the last: films are read
before it and validated after it. Writes results/speedrun.json, a record for each machine and commit.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

TARGET, SEEDS = 0.95, 5
SIZE = 256  # px, at which networks are validated
STAGES = ((128, 4, 360), (192, 4, 272), (256, 8, 272))  # px, batch and films: small first, as it counts last
WIDTHS = (32, 64, 64, 64)  # channels of each level
PATCH = 4  # px, side of the squares that become channels: the first level works at a quarter of the resolution
MATRIX_RATE, VECTOR_RATE = 0.02, 8e-3  # peaks, of Muon and of Adam
WARMUP = 0.1  # of a training: the rate rises until there, then it falls to 0


def read_films(root, split):
    """Films and their masks, both uint8 (N, 1, SIZE, SIZE), masks in {0, 1}."""
    manifest, names = root / "manifest.csv", []
    with suppress(OSError, ValueError, KeyError):
        rows = pd.read_csv(manifest, dtype={"name": str})
        names = rows.loc[rows["source"].isin(["montgomery", "shenzhen"]) & (rows["split"] == split), "name"]
    again = f"`python -m kaggle_utils prep --input DIR --out {root}` makes it"
    if not len(names):
        raise SystemExit(f"{manifest} is not there, or without a {split} film of Montgomery or Shenzhen: {again}")

    def read(path):
        with suppress(cv2.error):
            return cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        raise SystemExit(f"{path} is not there, or no picture: {again}")

    def read_all(kind):
        with ThreadPoolExecutor() as pool:
            return np.stack([*pool.map(read, [root / split / kind / f"{name}.png" for name in names])])[:, None]

    return torch.from_numpy(read_all("image")), torch.from_numpy(read_all("mask") >= 128).byte()


def normalise(films):
    """Each film with zero mean and unit deviation, float32: exposure cancels out."""
    films = films.float()
    films = films - films.mean((2, 3), keepdim=True)
    films = films / films.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-3)
    return films.contiguous(memory_format=torch.channels_last)


def batches(films, masks, seed):
    """Normalised films and their masks, half of them mirrored; and how far the training is, in [0, 1)."""
    random, order, drawn = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), 0
    for size, batch, share in STAGES:
        # Of a smaller mask a pixel is lung where half of its area was.
        small, truth = (F.interpolate(x.float(), size=(size, size), mode="area").round().byte() for x in (films, masks))
        for _ in range(share // batch):
            if len(order) < batch:  # the next pass, in a new order
                order = torch.cat([order, torch.randperm(len(films), generator=random)])
            chosen, order = order[:batch].to(films.device), order[batch:]
            mirrored = (torch.rand(batch, 1, 1, 1, generator=random) < 0.5).to(films.device)
            image, mask = (torch.where(mirrored, x[chosen].flip(3), x[chosen]) for x in (small, truth))
            yield normalise(image), mask.float(), drawn / sum(films for _, _, films in STAGES)
            drawn += batch


def double(inside, outside):
    """(3×3 convolution, batch normalisation, ReLU) twice."""
    layers = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Films (B, 1, H, W) → logits of the same shape; H and W are multiples of 32."""

    def __init__(self):
        super().__init__()
        levels = list(zip(WIDTHS, WIDTHS[1:]))
        self.first = double(PATCH**2, WIDTHS[0])
        self.down = nn.ModuleList(double(shallow, deep) for shallow, deep in levels)
        self.narrow = nn.ModuleList(nn.Conv2d(deep, shallow, 1) for shallow, deep in levels)
        self.up = nn.ModuleList(double(2 * shallow, shallow) for shallow, _ in levels)
        self.last = nn.Conv2d(WIDTHS[0], PATCH**2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.last.weight, std=0.05)
        nn.init.constant_(self.last.bias, -1.1)  # a quarter of a film is lung

    def forward(self, films):
        features, skips = self.first(F.pixel_unshuffle(films, PATCH)), []
        for down in self.down:
            skips.append(features)
            features = down(F.max_pool2d(features, 2))
        for narrow, up in zip(reversed(self.narrow), reversed(self.up)):
            wide = F.interpolate(narrow(features), scale_factor=2, mode="bilinear")
            features = up(torch.cat([skips.pop(), wide], dim=1))
        return F.pixel_shuffle(self.last(features), PATCH)


class Muon(torch.optim.Optimizer):
    """Momentum whose step for each matrix is made orthogonal: all directions at one pace (Muon, Jordan et al. 2024)."""

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for weight in group["params"]:
            mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
            mean.lerp_(weight.grad, 0.05)
            change = orthogonal(weight.grad.lerp(mean, 0.95).flatten(1), group["dtype"])
            tall = max(1, change.shape[0] / change.shape[1])
            weight.add_(change.reshape(weight.shape), alpha=-group["lr"] * tall**0.5)


def orthogonal(matrix, dtype):
    """A matrix of the same singular vectors whose singular values are all near 1, by five Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = ((matrix.T if tall else matrix) / (matrix.norm() + 1e-7)).to(dtype)  # few digits are enough
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def loss_of(logits, truth):
    """Half cross-entropy, half one minus the soft Dice of each film."""
    prob, true = logits.sigmoid().flatten(1), truth.flatten(1)
    dice = (2 * (prob * true).sum(1) + 1) / (prob.sum(1) + true.sum(1) + 1)
    return 0.5 * F.binary_cross_entropy_with_logits(logits, truth) + 0.5 * (1 - dice.mean())


def learn(films, masks, dtype, seed):
    """A network trained on these films, where they lie, in this number format."""
    torch.manual_seed(seed)
    device = films.device.type
    net = UNet().to(films.device, memory_format=torch.channels_last)
    matrices = [weight for weight in net.parameters() if weight.ndim == 4 and weight is not net.last.weight]
    others = [*(weight for weight in net.parameters() if weight.ndim == 1), net.last.weight]
    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    muon = Muon(matrices, {"lr": MATRIX_RATE, "dtype": half})
    peaks = {muon: MATRIX_RATE, torch.optim.Adam(others, VECTOR_RATE, betas=(0.9, 0.99)): VECTOR_RATE}
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    for images, truth, done in batches(films, masks, seed):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = net(images)
        scaler.scale(loss_of(logits.float(), truth)).backward()
        for optimizer, peak in peaks.items():
            optimizer.param_groups[0]["lr"] = peak * min(done / WARMUP, (1 - done) / (1 - WARMUP))
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
    return net


@torch.inference_mode()
def validate(net, films, masks, dtype):
    """The mean of each film's Dice at probability 0.5."""
    with torch.autocast(films.device.type, dtype, enabled=dtype != torch.float32):
        pred = net.eval()(normalise(films)) > 0
    both, sums = (pred & (masks > 0)).sum((1, 2, 3)), pred.sum((1, 2, 3)) + masks.sum((1, 2, 3))
    return float((2 * both / sums).mean())


def choose_machine():
    """Its name, PyTorch's device, and the fastest number format that it computes in itself."""
    if torch.cuda.is_available():
        ampere = torch.cuda.get_device_capability() >= (8, 0)
        return torch.cuda.get_device_name(), "cuda", torch.bfloat16 if ampere else torch.float16
    with suppress(OSError, AttributeError):  # glibc keeps what is freed for the next tensor: mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(-4, 0)
    info = Path("/proc/cpuinfo")
    bf16 = info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    name = f"{platform.machine()}, {os.cpu_count()} cores" + ", AVX512-BF16" * bf16
    return name, "cpu", torch.bfloat16 if bf16 else torch.float32


def run(data):
    """What five trainings took, and what they reached."""
    machine, device, dtype = choose_machine()
    train, val = ([part.to(device) for part in read_films(data, split)] for split in ("train", "val"))
    seconds, dice = [], []
    for seed in range(SEEDS):
        start = time.perf_counter()
        net = learn(*train, dtype, seed)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        dice.append(round(validate(net, *val, dtype), 5))
        print(f"seed {seed}: Dice {dice[-1]:.4f} after {seconds[-1]:.1f} s", flush=True)
    return {
        "machine": machine,
        "precision": str(dtype).removeprefix("torch."),
        "films": sum(films // batch * batch for _, batch, films in STAGES),
        "seconds": round(float(np.mean(seconds)), 2),
        "dice": round(float(np.mean(dice)), 5),
        "worst_dice": min(dice),
        "dice_by_seed": dice,
        "record": min(dice) >= TARGET,
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="segmentation", help="folder that prep wrote (%(default)s)")
    parser.add_argument("--out", type=Path, default="results/speedrun.json", help="file to write (%(default)s)")
    parser.add_argument("--note", default="", help="what changed since the record before")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=Path(__file__).parent, capture_output=True)
    new = {"commit": commit.stdout.decode().strip(), "changed": args.note, **run(args.data)}
    others = json.loads(args.out.read_text()) if args.out.exists() else []
    others = [old for old in others if (old["machine"], old["commit"]) != (new["machine"], new["commit"])]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([*others, new], indent=2) + "\n")
    print(json.dumps(new, indent=2))


if __name__ == "__main__":
    main()
