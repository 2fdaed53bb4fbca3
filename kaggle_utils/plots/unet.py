"""The picture of the network, drawn from the network: a film goes through, and each block says what came out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..infer import LungSegmenter
from ..model import UNet, count_parameters, load_weights
from ..synthetic import AppearanceModel
from .style import BLUE, GREEN, RED, arrow, styled

GRAY = "0.55"
HEAD: dict[str, Any] = {"head": "-|>", "lw": 1.2}
ENTRANCE = 2.1  # where the first block is
LEGEND = (  # and where each begins
    (0, "two 3×3 convolutions, normalised, ReLU", BLUE),
    (5.1, "2×2 max pooling: half the resolution", RED),
    (9.5, "up: twice the resolution", GREEN),
)


Shapes = list[tuple[int, int]]


def block_shapes(model: UNet, size: int) -> tuple[Shapes, Shapes]:
    """Channels and px a side of each block's output for a square film.

    Args:
        model: for films.
        size: px, side of the film.

    Returns:
        The contracting path's from the top, and the expanding path's from below.
    """
    shapes: Shapes = []

    def keep(_block: object, _input: object, output: torch.Tensor) -> None:
        shapes.append((output.shape[1], output.shape[-1]))

    hooks = [block.register_forward_hook(keep) for block in (model.inc, *model.down, *model.up)]
    with torch.inference_mode():
        model(torch.zeros(1, model.architecture["in_channels"], size, size))
    for hook in hooks:
        hook.remove()
    levels = 1 + len(model.down)
    return shapes[:levels], shapes[levels:]


@styled
def draw_unet() -> Figure:
    """Makes ``images/unet.png``: the shipped network, a synthetic radiograph at its entrance, its mask at its exit."""
    segmenter = LungSegmenter(device="cpu")
    film = AppearanceModel.load().sample(1, seed=5, size=segmenter.size)[0].image
    model = load_weights(segmenter.path)
    figure, ax = plt.subplots(figsize=(11, 5.6))
    right, bottom = _draw_network(ax, *block_shapes(model, segmenter.size))
    _draw_film(ax, 0.55, film, f"film, {segmenter.size} px")
    _draw_film(ax, right + 1.6, segmenter.probabilities([film])[0], "probability of lung")
    arrow(ax, (1.2, 0), (ENTRANCE - 0.35, 0), "black", **HEAD)
    arrow(ax, (right + 0.35, 0), (right + 0.95, 0), "black", **HEAD)
    for x, text, colour in LEGEND:
        ax.text(x, bottom - 0.6, f"■ {text}", color=colour, fontsize=9)
    patch = model.architecture["patch"]
    said = (
        f"{count_parameters(model) / 1e6:.2f}M parameters. Patches of {patch}×{patch} px enter as channels and leave "
        f"as pixels;\nan output for each of {', '.join(segmenter.heads)}."
    )
    ax.text(0, bottom - 0.8, said, fontsize=9, va="top")
    ax.set(xlim=(-0.1, right + 2.3), ylim=(bottom - 1.4, 0.95), aspect="equal")
    ax.set_axis_off()
    return figure


def _draw_network(ax: Axes, contracting: Shapes, expanding: Shapes) -> tuple[float, float]:
    """All blocks and the arrows between them; returns where the last block and the lowest one are."""
    depth = len(expanding)
    down = [ENTRANCE + 1.25 * level for level in range(depth + 1)]
    up = [ENTRANCE + 1.25 * (2 * depth + 0.4 - level) for level in range(depth)] + [down[-1]]
    rows = [-1.3 * level for level in range(depth + 1)]
    tall = [1.15 * (px / contracting[0][1]) ** 0.5 for _, px in contracting]  # halved in two levels: visible
    for x, y, height, shape in zip(down, rows, tall, contracting):
        _draw_block(ax, x, y, height, *shape)
    for x, y, height, shape in zip(up, rows, tall, reversed(expanding)):
        _draw_block(ax, x, y, height, *shape)
    for level in range(depth):
        y = rows[level]
        foot, head = y - tall[level] / 2 - 0.05, rows[level + 1] + 0.1
        arrow(ax, (down[level] + 0.35, y), (up[level] - 0.35, y), GRAY, **HEAD)
        arrow(ax, (down[level], foot), (down[level + 1] - 0.3, head), RED, **HEAD)
        arrow(ax, (up[level + 1] + 0.3, head), (up[level], foot), GREEN, **HEAD)
    middle = (down[0] + up[0]) / 2
    ax.text(middle, 0.07, "skip connection: copied and appended", color=GRAY, ha="center", fontsize=9)
    return up[0], rows[-1]


def _draw_film(ax: Axes, x: float, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture, cmap="gray", extent=(x - 0.6, x + 0.6, -0.6, 0.6))
    ax.text(x, 0.72, title, ha="center", fontsize=9)


def _draw_block(ax: Axes, x: float, y: float, height: float, channels: int, px: int) -> None:
    width = 0.08 + 0.10 * (channels / 16) ** 0.6
    corner = x - width / 2, y - height / 2
    ax.add_patch(Rectangle(corner, width, height, facecolor=BLUE, edgecolor="white", alpha=0.85))
    ax.text(x, y + height / 2 + 0.06, f"{channels} × {px}²", ha="center", va="bottom", fontsize=9)
