"""The picture of the network, drawn from the network: a film goes through, and each block says what came out of it."""

from __future__ import annotations

from pathlib import Path

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


def block_shapes(model: UNet, size: int) -> dict[str, list[tuple[int, int]]]:
    """Channels and px a side of what each block gives, for a square film: contracting, from the top, and expanding, from below.

    Args:
        model: for films.
        size: px, side of the film.

    Returns:
        ``down``, ``up`` and ``out``, lists of (channels, px).
    """
    shapes = {"down": [], "up": [], "out": []}
    blocks = [
        ("down", model.inc),
        *(("down", block) for block in model.down),
        *(("up", block) for block in model.up),
        ("out", model.outc),
    ]
    hooks = [
        block.register_forward_hook(
            lambda _, __, output, path=path: shapes[path].append((output.shape[1], output.shape[-1]))
        )
        for path, block in blocks
    ]
    with torch.inference_mode():
        model(torch.zeros(1, model.architecture["in_channels"], size, size))
    for hook in hooks:
        hook.remove()
    return shapes


def draw_unet(path: str | Path | None = None, *, weights: str | Path = DEFAULT_WEIGHTS, seed: int = 5) -> Figure:
    """Makes ``images/unet.png``: the shipped network, with a built-in film at its entrance and what it found at its exit.

    Args:
        path: where to save it, if at all.
        weights: of which network.
        seed: of the film.
    """
    segmenter = LungSegmenter(weights, device="cpu")
    film = AppearanceModel.load().sample(1, seed, size=segmenter.size)[0].image
    model, shapes = segmenter.model, block_shapes(segmenter.model, segmenter.size)
    patch, depth = model.architecture["patch"], len(model.down)
    figure, ax = plt.subplots(figsize=(11, 5.2))
    tall = [
        1.15 * (px / shapes["down"][0][1]) ** 0.5 for _, px in shapes["down"]
    ]  # halved in two levels, to stay visible
    columns = {
        "down": [2.1 + 1.25 * level for level in range(depth + 1)],
        "up": [2.1 + 1.25 * (2 * depth + 0.4 - level) for level in range(depth)],
    }
    rows = [-1.3 * level for level in range(depth + 1)]
    for level, (channels, px) in enumerate(shapes["down"]):
        _draw_block(ax, columns["down"][level], rows[level], tall[level], channels, px, BLUE)
    for level, (channels, px) in zip(range(depth)[::-1], shapes["up"]):
        _draw_block(ax, columns["up"][level], rows[level], tall[level], channels, px, BLUE)
        _arrow(
            ax,
            (columns["down"][level] + 0.35, rows[level]),
            (columns["up"][level] - 0.35, rows[level]),
            GRAY,
            "skip connection: copied and appended" if level == 0 else "",
        )
    for level in range(depth):
        _arrow(
            ax,
            (columns["down"][level], rows[level] - tall[level] / 2 - 0.05),
            (columns["down"][level + 1] - 0.3, rows[level + 1] + 0.1),
            ORANGE,
        )
        below = columns["up"][level + 1] if level + 1 < depth else columns["down"][depth]
        _arrow(
            ax,
            (below + 0.3, rows[level + 1] + 0.1),
            (columns["up"][level], rows[level] - tall[level] / 2 - 0.05),
            GREEN,
        )
    for x, picture, title in (
        (0.55, film, f"film, {segmenter.size} px"),
        (columns["up"][0] + 1.6, segmenter.probabilities([film])[0], "probability of lung"),
    ):
        ax.imshow(picture, cmap="gray", extent=(x - 0.6, x + 0.6, -0.6, 0.6))
        ax.text(x, 0.72, title, ha="center", fontsize=9)
    _arrow(ax, (1.2, 0), (columns["down"][0] - 0.35, 0), "black")
    _arrow(ax, (columns["up"][0] + 0.35, 0), (columns["up"][0] + 0.95, 0), "black")
    heads = f"an output for each of {', '.join(segmenter.heads)}" if segmenter.heads[0] else "one output"
    legend = [
        ("two 3×3 convolutions, each normalised, ReLU", BLUE),
        ("2×2 max pooling: half the resolution", ORANGE),
        ("up: twice the resolution", GREEN),
    ]
    for k, (text, colour) in enumerate(legend):
        ax.text(0, rows[-1] + 0.75 - 0.3 * k, f"■ {text}", color=colour, fontsize=9)
    ax.text(
        0,
        rows[-1] - 0.5,
        f"{count_parameters(model) / 1e6:.2f}M parameters. Patches of {patch}×{patch} px enter as channels and leave as pixels; {heads}.",
        fontsize=9,
    )
    ax.set(xlim=(-0.1, columns["up"][0] + 2.3), ylim=(rows[-1] - 0.7, 0.95), aspect="equal")
    ax.set_axis_off()
    return saved(figure, path, bbox_inches="tight")


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
