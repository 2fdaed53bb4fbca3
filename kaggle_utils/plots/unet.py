"""The picture of the network, drawn from the network: a film goes through, and each block says what came out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..infer import DEFAULT_WEIGHTS, LungSegmenter
from ..model import UNet, count_parameters
from ..synthetic import AppearanceModel
from .save import saved

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "0.55"
LEFT = 2.1  # where the first block is
LEGEND = (
    ("two 3×3 convolutions, each normalised, ReLU", BLUE),
    ("2×2 max pooling: half the resolution", ORANGE),
    ("up: twice the resolution", GREEN),
)


def block_shapes(model: UNet, size: int) -> dict[str, list[tuple[int, int]]]:
    """Channels and px a side of each block's output for a square film: contracting from the top, expanding from below.

    Args:
        model: for films.
        size: px, side of the film.

    Returns:
        ``down``, ``up`` and ``out``, lists of (channels, px).
    """
    shapes: dict[str, list[tuple[int, int]]] = {}
    hooks = []
    for name, blocks in (("down", [model.inc, *model.down]), ("up", model.up), ("out", [model.outc])):
        seen: list[tuple[int, int]] = []
        shapes[name] = seen

        def note(_block, _input, output: torch.Tensor, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((output.shape[1], output.shape[-1]))

        hooks += [block.register_forward_hook(note) for block in blocks]
    channels: Any = model.architecture["in_channels"]
    with torch.inference_mode():
        model(torch.zeros(1, channels, size, size))
    for hook in hooks:
        hook.remove()
    return shapes


def draw_unet(path: str | Path | None = None, *, weights: str | Path = DEFAULT_WEIGHTS, seed: int = 5) -> Figure:
    """Makes ``images/unet.png``: the shipped network, a synthetic radiograph at its entrance, its mask at its exit.

    Args:
        path: where to save it, if at all.
        weights: of which network.
        seed: of the film.
    """
    segmenter = LungSegmenter(weights, device="cpu")
    film = AppearanceModel.load().sample(1, seed, size=segmenter.size)[0].image
    model = segmenter.model
    assert isinstance(model, UNet)
    figure, ax = plt.subplots(figsize=(11, 5.2))
    right, bottom = _draw_network(ax, block_shapes(model, segmenter.size), len(model.down))
    _draw_film(ax, 0.55, film, f"film, {segmenter.size} px")
    _draw_film(ax, right + 1.6, segmenter.probabilities([film])[0], "probability of lung")
    _arrow(ax, (1.2, 0), (LEFT - 0.35, 0), "black")
    _arrow(ax, (right + 0.35, 0), (right + 0.95, 0), "black")
    for k, (text, colour) in enumerate(LEGEND):
        ax.text(0, bottom + 0.75 - 0.3 * k, f"■ {text}", color=colour, fontsize=9)
    patch = model.architecture["patch"]
    heads = f"an output for each of {', '.join(segmenter.heads)}" if segmenter.heads[0] else "one output"
    said = (
        f"{count_parameters(model) / 1e6:.2f}M parameters. "
        f"Patches of {patch}×{patch} px enter as channels and leave as pixels; {heads}."
    )
    ax.text(0, bottom - 0.5, said, fontsize=9)
    ax.set(xlim=(-0.1, right + 2.3), ylim=(bottom - 0.7, 0.95), aspect="equal")
    ax.set_axis_off()
    return saved(figure, path, bbox_inches="tight")


def _draw_network(ax: Axes, shapes: dict[str, list[tuple[int, int]]], depth: int) -> tuple[float, float]:
    """All blocks and the arrows between them; returns where the last block and the lowest one are."""
    tall = [1.15 * (px / shapes["down"][0][1]) ** 0.5 for _, px in shapes["down"]]  # halved in two levels: visible
    down = [LEFT + 1.25 * level for level in range(depth + 1)]
    up = [LEFT + 1.25 * (2 * depth + 0.4 - level) for level in range(depth)]
    rows = [-1.3 * level for level in range(depth + 1)]
    for level, (channels, px) in enumerate(shapes["down"]):
        _draw_block(ax, down[level], rows[level], tall[level], channels, px, BLUE)
    for level, (channels, px) in zip(reversed(range(depth)), shapes["up"]):
        _draw_block(ax, up[level], rows[level], tall[level], channels, px, BLUE)
        text = "skip connection: copied and appended" if level == 0 else ""
        _arrow(ax, (down[level] + 0.35, rows[level]), (up[level] - 0.35, rows[level]), GRAY, text)
    for level in range(depth):
        foot, head = rows[level] - tall[level] / 2 - 0.05, rows[level + 1] + 0.1
        below = up[level + 1] if level + 1 < depth else down[depth]
        _arrow(ax, (down[level], foot), (down[level + 1] - 0.3, head), ORANGE)
        _arrow(ax, (below + 0.3, head), (up[level], foot), GREEN)
    return up[0], rows[-1]


def _draw_film(ax: Axes, x: float, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture, cmap="gray", extent=(x - 0.6, x + 0.6, -0.6, 0.6))
    ax.text(x, 0.72, title, ha="center", fontsize=9)


def _draw_block(ax: Axes, x: float, y: float, height: float, channels: int, px: int, colour: str) -> None:
    width = 0.08 + 0.10 * (channels / 16) ** 0.6
    ax.add_patch(
        Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, edgecolor="white", alpha=0.85)
    )
    ax.text(x, y + height / 2 + 0.06, f"{channels} × {px}²", ha="center", va="bottom", fontsize=8)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, text: str = "") -> None:
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    )
    ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.07, text, color=colour, ha="center", fontsize=9)
