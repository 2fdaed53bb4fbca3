"""Phantom films drawn with numpy: two dark ellipses on a bright torso, with noise. They stand for radiographs here."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from kaggle_utils import image as files
from kaggle_utils.model import UNet


@dataclass(frozen=True)
class Phantom:
    image: np.ndarray  # uint8 (H, W)
    left: np.ndarray  # uint8 (H, W) in {0, 1}: the patient's left lung, on the image's right
    right: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.left | self.right


def with_prior(model: UNet, prior: float) -> UNet:
    """The same network, whose output starts at another share of lung."""
    torch.nn.init.constant_(model.outc.bias, math.log(prior / (1 - prior)))
    return model


def phantom(height: int = 64, width: int = 64, seed: int = 0) -> Phantom:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]

    def ellipse(row: float, column: float, tall: float, wide: float) -> np.ndarray:
        return ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2 < 1

    row = 0.48 + rng.uniform(-0.04, 0.04)
    right = ellipse(row, 0.28 + rng.uniform(-0.02, 0.02), 0.32 + rng.uniform(-0.03, 0.03), 0.13)
    left = ellipse(row, 0.72 + rng.uniform(-0.02, 0.02), 0.32 + rng.uniform(-0.03, 0.03), 0.13)
    image = np.full((height, width), 90.0)
    image[ellipse(0.6, 0.5, 0.6, 0.52)] = 130
    image[left | right] = 60
    image[ellipse(0.55, 0.5, 0.5, 0.08) | ellipse(0.66, 0.54, 0.2, 0.1)] = 220  # spine and heart
    image += rng.normal(0, 6, image.shape)
    return Phantom(image.clip(0, 255).astype(np.uint8), left.astype(np.uint8), right.astype(np.uint8))


def write_prepared(
    root: Path, counts: dict[str, int] | None = None, *, size: int = 32, source: str = "montgomery", first: int = 0
) -> Path:
    """A prepared set as the data contract describes it, written without prep.py. Called again, it adds a source."""
    rows = []
    for split, n in (counts or {"train": 8, "val": 4, "test": 4}).items():
        for kind in ("image", "mask"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for _ in range(n):
            seed = first + len(rows)
            name, film = f"{source.upper()}_{seed:04d}_{seed % 2}", phantom(size, size, seed)
            files.write_image(root / split / "image" / f"{name}.png", film.image)
            if split != "unlabelled":
                files.write_mask(root / split / "mask" / f"{name}.png", film.mask)
            digest = hashlib.sha256(film.image.tobytes()).hexdigest()
            rows.append(
                {
                    "name": name,
                    "source": source,
                    "split": split,
                    "tb": seed % 2,
                    "sex": "F",
                    "age": 40.0,
                    "height": size,
                    "width": size,
                    "sha256": digest,
                    "pixels": digest[:16],
                }
            )
    manifest = root / "manifest.csv"
    frame = pd.DataFrame(rows)
    if manifest.exists():
        frame = pd.concat([pd.read_csv(manifest), frame])
    frame.to_csv(manifest, index=False)
    return root


def write_raw(path: Path, array: np.ndarray) -> Path:
    """Any array in the format of the suffix, with folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def tiff(*pages: tuple[np.ndarray, dict[int, int]]) -> bytes:
    """A TIFF's bytes: of each page its ``uint8 (H, W)`` and further tags, all numbers."""
    data, link = b"II*\0" + bytes(4), 4  # where the next page's place is written
    for image, tags in pages:
        start, pixels = len(data) + image.size, image.tobytes()
        entries = {
            256: image.shape[1],
            257: image.shape[0],
            258: 8,
            259: 1,
            262: 1,
            273: len(data),
            277: 1,
            278: image.shape[0],
            279: image.size,
            **tags,
        }
        page = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
        data = (
            data[:link]
            + struct.pack("<I", start)
            + data[link + 4 :]
            + pixels
            + struct.pack("<H", len(entries))
            + page
            + bytes(4)
        )
        link = len(data) - 4
    return data


def lost_in_the_middle(data: bytes, place: float = 0.5) -> bytes:
    """A file of which 200 bytes are zeros from ``place``, a share of its length, on."""
    at = int(place * len(data))
    return data[:at] + bytes(200) + data[at + 200 :]


def train_in_child(data: str, out: str, values: dict, resume: bool) -> None:
    """What a process to be killed runs; importable, as a spawned process needs it."""
    from kaggle_utils.trainer import TrainConfig, train

    train(data, out, TrainConfig.from_dict(values), resume=resume)
