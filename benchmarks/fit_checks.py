"""Fits the two models of ``kaggle_utils.quality.checks`` on training films, synthetic radiographs and other pictures.

    python -m benchmarks.fit_checks --data segmentation

Writes ``kaggle_utils/assets/checks.npz``: the network that says chest and which way up, and the shapes of training
masks. Seven minutes on one core; ``python -m benchmarks.checks`` measures them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import nn
from tqdm import tqdm

from benchmarks import negatives
from benchmarks.common import films_of, make_parser
from kaggle_utils.files import write_bytes
from kaggle_utils.image import read_image, read_mask, resize_image, resize_mask
from kaggle_utils.quality.checks import ASSET, OUTLINE, THUMB, thumbnail, views
from kaggle_utils.quality.outline import landmarks
from kaggle_utils.splits import flagged_masks
from kaggle_utils.synthetic import AppearanceModel

ADULTS, CHILDREN = ("montgomery", "shenzhen"), "kermany"
OF_A_GROUP, OTHERS = 12, 18  # pictures of a step: films of adults, of children and drawn ones, and what is none
SHARE = 0.98  # of the variance of shapes
BORDERS = (cv2.BORDER_CONSTANT, cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE)


def varied(film: np.ndarray, rng: np.random.Generator, size: int = THUMB) -> np.ndarray:
    """The film as another machine and technician might have taken it, ``uint8 (size, size)``.

    Zoom 0.7-1.35, shift to 12 %, tilt to 12°, side ratio to 35 %, gamma 0.5-2; at times hard contrast, a marker, noise
    or blur.
    """
    zoom = np.exp(rng.uniform(-0.35, 0.3))
    aspect = np.exp(rng.uniform(-0.3, 0.3))  # children's films are up to twice as wide as high
    tilt = np.deg2rad(rng.uniform(-12, 12))
    sides = np.array(film.shape[::-1])
    turn = np.array([[aspect * np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * (2 * size / sides * zoom)
    middle = size * (1 + rng.uniform(-0.24, 0.24, 2))
    matrix = np.c_[turn, middle - turn @ (sides / 2)]
    border = BORDERS[rng.integers(3)]
    level = int(rng.choice((0, 0, 255, rng.integers(256))))
    view = cv2.warpAffine(film, matrix, (2 * size, 2 * size), borderMode=border, borderValue=level)
    view = cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    view = view ** np.exp(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.3:
        view = np.clip((view - rng.uniform(0, 0.3)) * rng.uniform(1, 2), 0, 1)
    if rng.random() < 0.3:
        tall, wide = rng.integers(size // 20, size // 3, 2)
        top, left = rng.integers(0, size - tall), rng.integers(0, size - wide)
        view[top : top + tall, left : left + wide] = rng.random()
    if rng.random() < 0.3:
        view = view + rng.normal(0, rng.uniform(0, 0.12), view.shape)
    if rng.random() < 0.2:
        view = cv2.GaussianBlur(view, (0, 0), size / THUMB * rng.uniform(0.4, 1.5))
    return (np.clip(view, 0, 1) * 255).astype(np.uint8)


def make_network() -> nn.Sequential:
    """``float (B, 1, THUMB, THUMB)`` → ``(B, 1)``, log odds that a thumbnail is an upright frontal chest film."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 7, stride=4, padding=3),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (THUMB // 16) ** 2, 1),
    )


def fit_network(groups: Sequence[list[np.ndarray]], others: Iterator[np.ndarray], *, steps: int) -> nn.Sequential:
    """Cross entropy over the 16 views of a picture and "none", whose log odds are 0 by definition.

    The first view is a film's right one, "none" a negative's. As all views pass through the same network, a turned film
    or a negative film need not be learned. A step draws as many films from each group, however large it is.
    """
    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), make_network()
    bank = [thumbnail(next(others)) for _ in range(4 * steps)]
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    target = torch.tensor([0] * (OF_A_GROUP * len(groups)) + [16] * OTHERS)
    for _ in tqdm(range(steps), desc="fit", disable=None):
        chosen = [films[i] for films in groups for i in rng.integers(0, len(films), OF_A_GROUP)]
        thumbs = [thumbnail(varied(film, rng)) for film in chosen]
        thumbs += [bank[i] for i in rng.integers(0, len(bank), OTHERS)]
        seen = np.stack([views(thumb) for thumb in thumbs]).reshape(-1, 1, THUMB, THUMB)
        odds = network(torch.from_numpy(seen)).reshape(-1, 16)
        loss = nn.functional.cross_entropy(nn.functional.pad(odds, (0, 1)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def fit_shapes(masks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Principal modes of masks' landmarks that hold ``SHARE`` of their variance, see ``checks.shape_distance``."""
    points = [landmarks(resize_mask(mask, OUTLINE)) for mask in masks]
    x = np.stack([p.ravel() for p in points if p is not None])
    modes = PCA(SHARE, svd_solver="full").fit(x)
    variance = modes.singular_values_**2 / len(x)
    rest = x.var(0).sum() - variance.sum()
    return {"mean": modes.mean_, "modes": modes.components_, "sd": np.sqrt(variance), "rest": rest}


def evenly(frame: pd.DataFrame) -> pd.DataFrame:
    """As many films of adults as of children, drawn once."""
    children = frame["source"] == CHILDREN
    return frame.groupby(children).sample(children.value_counts().min(), random_state=0)


def main() -> None:
    parser = make_parser(__doc__, data=True)
    about = f"of the network, with {OF_A_GROUP} films of each group and {OTHERS} other pictures"
    parser.add_argument("--steps", type=int, default=4000, help=about)
    args = parser.parse_args()
    torch.set_num_threads(1)
    frame = films_of(args.data, "train", (*ADULTS, CHILDREN))
    frame["film"] = [resize_image(read_image(path), 128) for path in frame["image"]]
    adults, children = (films.tolist() for _, films in frame.groupby(frame["source"] == CHILDREN)["film"])
    drawn = [film.image for film in AppearanceModel.load().stream(200, 71, size=128)]
    others = negatives.stream("train", evenly(frame)["film"].tolist(), 0)
    network = fit_network((adults, children, drawn), others, steps=args.steps)
    good = evenly(frame[~frame["name"].isin(flagged_masks()["name"])])
    shapes = fit_shapes([read_mask(path) for path in good["mask"]])
    arrays = {name: weights.numpy() for name, weights in network.state_dict().items()} | shapes
    # Three digits are enough: a score's error is then below 0.01 sd.
    packed = {name: array.astype(np.float32 if array.size < 100 else np.float16) for name, array in arrays.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **packed)
    write_bytes(ASSET, buffer.getvalue())
    print(
        f"{ASSET.name}: {len(frame)} films, {len(good)} masks in {len(shapes['sd'])} modes, "
        f"{ASSET.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
