"""The fastest way to lungs that we know: prepared radiographs in, a U-Net out, a mean validation Dice of 0.95.

    python speedrun.py --data segmentation [--note "what changed"]

A whole training on one page, which needs torch, numpy, opencv and pandas, and nothing else of this project. The rules:

- Learn from the published training lists of Montgomery and Shenzhen, as `python -m kaggle_utils prep` writes them.
- Five seeds, each through a schedule that was set beforehand: nobody looks at a validation film on the way.
- The score is the mean over the 70 validation films of both sets, at 256 px, of each film's Dice at probability 0.5.
  It is a record if every seed has 0.95.
- The clock runs from the first batch to the last; films are decoded before it and validated after it, as in
  benchmarks/time_to_dice.py.

Writes results/speedrun.csv, a row for each seed, and results/speedrun.json, a record for each machine and commit.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
TARGET = 0.95
SIZE = 256  # px, at which networks are validated
STAGES = ((128, 4, 360), (192, 4, 272), (256, 8, 272))  # px, batch and films: small first, as it counts last
WIDTHS = (32, 64, 64, 64)  # channels of each level
PATCH = 4  # px, side of the squares that become channels: the first level works at a quarter of the resolution
MATRIX_RATE, VECTOR_RATE = 0.02, 8e-3  # peaks, of Muon and of Adam
WARMUP = 0.1  # of a training: the rate rises until there, then it falls to 0
DICE_WEIGHT = 0.5  # of the loss; the rest is cross-entropy


# --- films ------------------------------------------------------------------------------------------------------------


def read_films(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Films and their masks, both ``uint8 (N, 1, SIZE, SIZE)``, masks in {0, 1}."""
    manifest = root / "manifest.csv"
    if not manifest.is_file():
        raise SystemExit(f"{manifest} is not there: `python -m kaggle_utils prep --input DIR --out {root}` makes it")
    rows = pd.read_csv(manifest, dtype={"name": str})
    names = rows.loc[rows["source"].isin(["montgomery", "shenzhen"]) & (rows["split"] == split), "name"]
    if names.empty:
        raise SystemExit(f"{manifest}: no film of Montgomery or Shenzhen in its split {split}")

    def read(name: str, kind: str) -> np.ndarray:
        path = root / split / kind / f"{name}.png"
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise SystemExit(f"{path} can't be read: run prep again")
        pixels = pixels if kind == "image" else np.uint8(255) * (pixels > 0)
        return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    with ThreadPoolExecutor() as pool:
        films, masks = (np.stack([*pool.map(read, names, [kind] * len(names))]) for kind in ("image", "mask"))
    return torch.from_numpy(films)[:, None], torch.from_numpy(masks >= 128)[:, None].byte()


def shrink(films: torch.Tensor, size: int) -> torch.Tensor:
    """Films at another size, by area, ``uint8`` still; of masks a pixel is lung where half of its area was."""
    if films.shape[-1] == size:
        return films
    return F.interpolate(films.float(), size=(size, size), mode="area").round().byte()


def normalise(films: torch.Tensor) -> torch.Tensor:
    """Each film with zero mean and unit deviation, ``float32``: exposure cancels out."""
    films = films.float()
    films = films - films.mean((2, 3), keepdim=True)
    films = films / films.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-3)
    return films.contiguous(memory_format=torch.channels_last)


def batches(films: torch.Tensor, masks: torch.Tensor, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Normalised films and their masks, half of them mirrored; and how far the training is, in [0, 1)."""
    random, order, drawn = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), 0
    for size, batch, share in STAGES:
        small, truth = shrink(films, size), shrink(masks, size)
        for _ in range(share // batch):
            if len(order) < batch:  # the next pass, in a new order
                order = torch.cat([order, torch.randperm(len(films), generator=random)])
            chosen, order = order[:batch].to(films.device), order[batch:]
            mirrored = (torch.rand(batch, 1, 1, 1, generator=random) < 0.5).to(films.device)
            image, mask = (torch.where(mirrored, x[chosen].flip(3), x[chosen]) for x in (small, truth))
            yield normalise(image), mask.float(), drawn / sum(films for _, _, films in STAGES)
            drawn += batch


# --- network ----------------------------------------------------------------------------------------------------------


def double(inside: int, outside: int) -> nn.Sequential:
    """(3×3 convolution, batch normalisation, ReLU) twice."""
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Films ``(B, 1, H, W)`` → logits of the same shape; H and W are multiples of 32."""

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

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        features, skips = self.first(F.pixel_unshuffle(films, PATCH)), []
        for down in self.down:
            skips.append(features)
            features = down(F.max_pool2d(features, 2))
        for narrow, up in zip(reversed(self.narrow), reversed(self.up)):
            wide = F.interpolate(narrow(features), scale_factor=2, mode="bilinear")
            features = up(torch.cat([skips.pop(), wide], dim=1))
        return F.pixel_shuffle(self.last(features), PATCH)


# --- learning ---------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose step for each matrix is made orthogonal: all its directions are learned at one pace.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, parameters, lr: float, dtype: torch.dtype):
        super().__init__(parameters, {"lr": lr})
        self.dtype = dtype  # of the iteration, which needs few digits

    @torch.no_grad()
    def step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
            mean.lerp_(weight.grad, 0.05)
            change = orthogonal(weight.grad.lerp(mean, 0.95).flatten(1), self.dtype)
            tall = max(1, change.shape[0] / change.shape[1])
            weight.add_(change.reshape(weight.shape), alpha=-self.param_groups[0]["lr"] * tall**0.5)


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A matrix of the same singular vectors whose singular values are all near 1, by five Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    x = x.to(dtype)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def loss_of(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and one minus the soft Dice of each film."""
    prob, true = logits.sigmoid().flatten(1), truth.flatten(1)
    dice = (2 * (prob * true).sum(1) + 1) / (prob.sum(1) + true.sum(1) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth)
    return (1 - DICE_WEIGHT) * entropy + DICE_WEIGHT * (1 - dice.mean())


def learn(films: torch.Tensor, masks: torch.Tensor, dtype: torch.dtype, seed: int) -> UNet:
    """A network trained on these films, where they lie, in this number format."""
    torch.manual_seed(seed)
    device = films.device.type
    net = UNet().to(films.device, memory_format=torch.channels_last)
    matrices = [weight for weight in net.parameters() if weight.ndim == 4 and weight is not net.last.weight]
    others = [*(weight for weight in net.parameters() if weight.ndim == 1), net.last.weight]
    muon = Muon(matrices, MATRIX_RATE, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    optimizers = muon, torch.optim.Adam(others, VECTOR_RATE, betas=(0.9, 0.99))
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for images, truth, done in batches(films, masks, seed):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = net(images)
        scaler.scale(loss_of(logits.float(), truth)).backward()
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * min(done / WARMUP, (1 - done) / (1 - WARMUP))
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
    return net


@torch.inference_mode()
def validate(net: UNet, films: torch.Tensor, masks: torch.Tensor, dtype: torch.dtype) -> float:
    """The mean of each film's Dice at probability 0.5."""
    net.eval()
    dice = []
    for images, truth in zip(films.split(10), masks.split(10)):
        with torch.autocast(films.device.type, dtype, enabled=dtype != torch.float32):
            pred = net(normalise(images)) > 0
        both, sums = (pred & (truth > 0)).sum((1, 2, 3)), pred.sum((1, 2, 3)) + truth.sum((1, 2, 3))
        dice += (2 * both / sums).tolist()
    return float(np.mean(dice))


# --- the machine, and the record --------------------------------------------------------------------------------------


def choose_machine() -> tuple[str, str, torch.dtype]:
    """Its name, PyTorch's device, and the fastest number format that it computes in itself."""
    if torch.cuda.is_available():
        ampere = torch.cuda.get_device_capability() >= (8, 0)
        return torch.cuda.get_device_name(), "cuda", torch.bfloat16 if ampere else torch.float16
    with suppress(OSError, AttributeError):  # glibc keeps what is freed for the next tensor: mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(-4, 0)
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    name = f"{platform.machine()}, {os.cpu_count()} cores" + ", AVX512-BF16" * bf16
    return name, "cpu", torch.bfloat16 if bf16 else torch.float32


def commit() -> str:
    """Of this file's clone."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=HERE, text=True).strip()
    return "none"


def run(data: Path, seeds: int) -> pd.DataFrame:
    """A row for each seed."""
    machine, device, dtype = choose_machine()
    train, val = ([part.to(device) for part in read_films(data, split)] for split in ("train", "val"))
    about = {"machine": machine, "commit": commit(), "precision": str(dtype).removeprefix("torch.")}
    rows = []
    for seed in range(seeds):
        start, cpu = time.perf_counter(), time.process_time()
        net = learn(*train, dtype, seed)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        row = {"seed": seed, "films": sum(films // batch * batch for _, batch, films in STAGES)}
        row |= {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "threads": torch.get_num_threads()}
        row |= {"val_dice": round(validate(net, *val, dtype), 5)}
        rows.append(about | row)
        print(f"seed {seed}: Dice {row['val_dice']:.4f} after {row['films']} films, {seconds:.1f} s", flush=True)
    return pd.DataFrame(rows)


def record(out: Path, rows: pd.DataFrame, note: str) -> dict:
    """Puts the rows and their summary in place of those of the same machine and commit."""
    first, table, summary = rows.iloc[0], out / "speedrun.csv", out / "speedrun.json"
    new = {key: first[key] for key in ("machine", "commit", "precision")} | {"changed": note, "seeds": len(rows)}
    new |= {"films": int(first["films"]), "seconds": round(float(rows["seconds"].mean()), 2)}
    new |= {"dice": round(float(rows["val_dice"].mean()), 5), "worst_dice": float(rows["val_dice"].min())}
    new |= {"record": len(rows) >= 5 and new["worst_dice"] >= TARGET, "torch": torch.__version__}
    others = json.loads(summary.read_text()) if summary.exists() else []
    others = [old for old in others if (old["machine"], old["commit"]) != (new["machine"], new["commit"])]
    if table.exists():
        kept = pd.read_csv(table, dtype={"commit": str})
        kept = kept[(kept["machine"] != new["machine"]) | (kept["commit"] != new["commit"])]
        rows = pd.concat([kept, rows]) if len(kept) else rows
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(table, index=False)
    summary.write_text(json.dumps([*others, new], indent=2) + "\n")
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="segmentation", help="folder that prep wrote (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings; a record has five (%(default)s)")
    parser.add_argument("--out", type=Path, default="results", help="folder to write (%(default)s)")
    parser.add_argument("--note", default="", help="what changed since the record before")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds is at least 1")
    print(json.dumps(record(args.out, run(args.data, args.seeds), args.note), indent=2))


if __name__ == "__main__":
    main()
