"""The presets ``light`` and ``clinic`` for a batch that lies on a GPU: one affine, gamma, noise, blur and gray window.

What a film gets is drawn on the host, for a whole epoch at once, from numbers that its seed, epoch and index decide;
the device only computes. Axes: B films, 1 channel, H rows, W columns.

Gas, devices, text and blinds are lines and letters of every shape, which OpenCV draws film by film
(:func:`artefacts.draw_artefacts`): threads do so ahead of the device, for each epoch anew. So no film is seen twice
with the same drawing, as it would be from a pool.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from .artefacts import ARTEFACTS, COARSE, GRAIN, LEVEL, SOFTNESS, STEEPNESS
from .presets import BENT, FAR, GAMMA, LARGE, MOVED, NOISE, NOISY, SMALL

BATCHED = ("none", "light", "clinic")
DRAWN = ("gas", "devices", "text", "collimation")  # of the artefacts; the others are computed here
_NUMBERS = 24  # uniform ones a film and epoch, a column for each use below


def draw_changes(preset: str, uniform: np.ndarray) -> dict[str, np.ndarray]:
    """What each film of an epoch is to undergo, with the chances and the ranges of :func:`presets.augmentation`.

    Args:
        preset: of :data:`BATCHED`.
        uniform: ``(N, 24)`` in [0, 1).

    Returns:
        ``float32`` arrays: affine ``(N, 2, 3)``, from places of the result to places of the film, both in [-1, 1];
        gamma, noise (standard deviation, gray levels) and spot ``(N, 2)`` of noise; for ``clinic`` also grain (the
        same), grain_spot, coarse (0 or 1), blur (standard deviation, share of the width), steepness and level of the
        gray window.
    """
    u = uniform.T
    far = (u[0] < FAR) & (preset == "clinic")
    moved = u[1] < MOVED.get(preset, 0)
    scale, shift, turn = (np.where(far, wide, small) for wide, small in zip(LARGE, SMALL))

    def within(column: int, reach: np.ndarray) -> np.ndarray:
        return np.where(moved, (2 * u[column] - 1) * reach, 0)

    def chosen(column: int, chance: float, low: float, high: float, otherwise: float = 0) -> np.ndarray:
        return np.where(u[column] < chance, low + u[column + 1] * (high - low), otherwise)

    if preset == "none":
        return {}
    changes = {
        "affine": _affine(
            1 + within(2, scale),
            1 + within(3, scale),
            np.radians(within(4, turn)),
            [2 * within(5, shift), 2 * within(6, shift)],
            mirrored=u[7] < 0.5,
        ),
        "gamma": chosen(8, BENT, GAMMA[0] / 100, GAMMA[1] / 100, 1),
        "noise": chosen(10, NOISY, NOISE[0] * 255, NOISE[1] * 255),
        "spot": uniform[:, 12:14],
    }
    if preset == "clinic":
        steepness = chosen(19, ARTEFACTS["window"][1], *np.log(STEEPNESS))
        changes |= {
            "grain": chosen(14, ARTEFACTS["noise"][1], *GRAIN),
            "coarse": u[16] < COARSE,
            "blur": chosen(17, ARTEFACTS["blur"][1], *SOFTNESS),
            "steepness": np.exp(steepness),
            "level": np.where(steepness > 0, LEVEL * (2 * u[21] - 1), 0),
            "grain_spot": uniform[:, 22:24],
        }
    return {name: np.asarray(values, np.float32) for name, values in changes.items()}


def _affine(
    width: np.ndarray, height: np.ndarray, turn: np.ndarray, shift: list[np.ndarray], mirrored: np.ndarray
) -> np.ndarray:
    """Of films that are mirrored, scaled about their middle, turned by ``turn`` radians and moved: the way back."""
    cos, sin = np.cos(turn), np.sin(turn)
    side = np.where(mirrored, -1, 1) / width
    back = np.stack([np.stack([side * cos, side * sin], -1), np.stack([-sin / height, cos / height], -1)], 1)
    return np.concatenate([back, -back @ np.stack(shift, -1)[..., None]], -1)


class BatchedAugmentation:
    """Changes batches of films on their device.

    Args:
        preset: of :data:`BATCHED`.
        size: px, side of the films.
        device: where they lie.
        seed: of the pattern of noise, of which each film gets another piece.
    """

    def __init__(self, preset: str, size: int, device: torch.device, seed: int = 0):
        if preset not in BATCHED:
            raise ValueError(f"on a GPU, augment is one of {', '.join(BATCHED)}, not {preset!r}")
        self.preset, self.size, self.seed = preset, size, seed
        places = (torch.arange(size, device=device) + 0.5) * 2 / size - 1
        self.x, self.y = places[None, None, :], places[None, :, None]
        self.steps = torch.arange(size, device=device)
        noise = torch.randn(2 * size, 2 * size, generator=torch.Generator().manual_seed(seed)).to(device)
        one = torch.ones(1, device=device)
        self.patterns = torch.stack([noise, 2.5 * _blur(noise[None, None], one, 3)[0, 0]])

    def changes(self, epoch: int, films: int) -> dict[str, np.ndarray]:
        """:func:`draw_changes` of all films in an epoch: a film's depend on seed, epoch and its index alone."""
        return draw_changes(self.preset, np.random.default_rng([self.seed, epoch]).random((films, _NUMBERS)))

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor, changes: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Films and masks as :attr:`changes` says.

        Args:
            images: ``uint8 (B, 1, size, size)``.
            masks: the same, in {0, 1}.
            changes: the rows of these films, on the device.

        Returns:
            Gray levels ``float32 (B, 1, size, size)`` in [0, 255], not rounded, and masks ``float32`` in {0, 1}.
        """
        gray, truth = images.float(), masks.float()
        if not changes:
            return gray, truth
        by_film = {name: values.view(-1, 1, 1, 1) for name, values in changes.items() if values.ndim == 1}
        if self.preset == "clinic":
            grain = self._noise(changes["grain_spot"], changes["coarse"])
            gray = (gray + by_film["grain"] * grain).clamp(0, 255)
            gray = _blur(gray, changes["blur"] * self.size, math.ceil(3 * SOFTNESS[1] * self.size))
            middle = gray.mean((2, 3), keepdim=True)
            gray = ((gray - middle) * by_film["steepness"] + middle + by_film["level"]).clamp(0, 255)
        gray, truth = self._moved(gray, truth, changes["affine"])
        gray = 255 * (gray / 255).pow(by_film["gamma"])
        gray = gray + by_film["noise"] * self._noise(changes["spot"], torch.zeros_like(changes["noise"]))
        return gray.clamp(0, 255), truth

    def _moved(
        self, gray: torch.Tensor, truth: torch.Tensor, affine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both by one look-up; black and no lung come in from outside."""
        a = affine.view(-1, 6, 1, 1)  # not by a matrix product, which TF32 would round to half a pixel
        grid = torch.stack([a[:, row] * self.x + a[:, row + 1] * self.y + a[:, row + 2] for row in (0, 3)], -1)
        moved = F.grid_sample(torch.cat([gray, truth], 1), grid, align_corners=False)
        return moved[:, :1], (moved[:, 1:] > 0.5).float()

    def _noise(self, spots: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """A piece of the pattern for each film, ``(B, 1, size, size)``, of unit deviation where it is fine."""
        start = (spots * self.size).long()
        rows, columns = (start[:, axis, None] + self.steps for axis in (0, 1))
        return self.patterns[coarse.long()[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def _blur(images: torch.Tensor, sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """Each film ``(B, 1, H, W)`` under its own Gaussian, of standard deviation ``sigma`` ``(B,)`` px; 0 is none."""
    reach = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (reach / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None]
    films = F.pad(images.transpose(0, 1), (radius,) * 4, mode="reflect")  # the films as channels of one
    films = F.conv2d(films, kernel, groups=len(sigma))
    return F.conv2d(films, kernel.transpose(2, 3), groups=len(sigma)).transpose(0, 1)
