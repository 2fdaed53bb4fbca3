"""Mistakes that training code really makes, to be switched on one at a time in the study ``bugs``.

A mistake changes a trainer before its run, or falsifies the number that is reported after each epoch, or both. The
number before each is that of its test in ``tests/test_twenty_bugs.py``, which keeps it out of the library and tells
what it shows. Axes: B films, H rows, W columns; logits and truth are ``(B, 1, H, W)``, truth in {0, 1}.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..loss import BCEDiceLoss
from ..trainer import Trainer
from .study import Outputs, films_of


class MasksOf255(nn.Module):
    """1. Masks left at 0 and 255: the loss has no floor, and the more a pixel is called lung the lower it falls."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return unchecked_loss(logits.float(), logits.float().sigmoid(), 255 * truth)


class RawLogits(nn.Module):
    """7. Logits in the Dice formula, where probabilities belong: unbounded."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return unchecked_loss(logits.float(), logits.float(), truth)


def unchecked_loss(logits: torch.Tensor, prob: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Half cross-entropy, half Dice loss, with no look at what comes in."""
    return (F.binary_cross_entropy_with_logits(logits, truth) + 1 - film_dice(prob, truth).mean()) / 2


class SigmoidTwice(BCEDiceLoss):
    """8. Probabilities taken for logits: they become 0.5 to 0.73, and a perfect network still costs over 0.5."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return super().forward(logits.float().sigmoid(), truth)


class WrongSign(BCEDiceLoss):
    """11. Cross-entropy plus Dice, instead of plus one minus Dice: half of the loss rewards missing the lungs."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (self.bce(logits, truth) + 1 - self.dice(logits, truth)) / 2


class ThresholdedDice(BCEDiceLoss):
    """12. Dice of the thresholded mask: a step has no gradient, so cross-entropy alone trains."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        certain = torch.where(logits > 0, 20.0, -20.0)
        return (self.bce(logits, truth) + self.dice(certain, truth)) / 2


class TenfoldDice(BCEDiceLoss):
    """Cross-entropy plus ten times Dice. No mistake, but often tried: a ``dice_weight`` of 10/11, times eleven."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return self.bce(logits, truth) + 10 * self.dice(logits, truth)


def swap_loss(trainer: Trainer, loss: type[nn.Module]) -> None:
    """Trains by another loss."""
    trainer.loss = loss()


class FilmAlone:
    """An augmentation of the film that leaves its mask where it was."""

    def __init__(self, augment: Any):
        self.augment, self.set_random_seed = augment, augment.set_random_seed

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.augment(image=image)["image"], "mask": mask}


def stay_in_evaluation(trainer: Trainer) -> None:
    """14. ``eval()`` for the first validation and no way back: batch normalisation is frozen from then on."""
    validate, model = trainer.validate, trainer.model

    def validate_and_stay(*args: Any) -> dict[str, float]:
        scores = validate(*args)
        model.eval()
        model.train = lambda mode=True: model  # type: ignore[method-assign]
        return scores

    trainer.validate = validate_and_stay  # type: ignore[method-assign, assignment]


def leave_the_mask(trainer: Trainer) -> None:
    """16. Augmentation of the film alone: the mask is not moved with it."""
    films = films_of(trainer.train_loader)
    films.augment = FilmAlone(films.augment)


def scramble_pairs(trainer: Trainer) -> None:
    """17. Films and masks paired by their place in two unsorted listings."""
    films = films_of(trainer.train_loader)
    films.masks = films.masks[_shuffled(len(films), trainer.config.seed)]


def film_dice(prob: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The formula as one types it, with no look at what comes in; ``(B,)``, 0 where both are empty."""
    prob, truth = prob.flatten(1), truth.flatten(1)
    return 2 * (prob * truth).sum(1) / (prob.sum(1) + truth.sum(1) + 1e-6)


def dice_of_255(outputs: Outputs) -> float:
    """1. Up to 510/256."""
    return _mean([film_dice(_mask(logits), 255 * truth) for logits, truth in outputs])


def total_over_index_plus_one(outputs: Outputs) -> float:
    """3. ``total / index + 1`` for ``total / (index + 1)``: always above 1."""
    dice = [film_dice(_mask(logits), truth).mean().item() for logits, truth in outputs]
    return sum(dice) / max(len(dice) - 1, 1) + 1


def sum_over_batches(outputs: Outputs) -> float:
    """4. The films' Dice summed, divided by the number of batches: up to the batch size."""
    return sum(film_dice(_mask(logits), truth).sum().item() for logits, truth in outputs) / len(outputs)


def dice_of_logits(outputs: Outputs) -> float:
    """7. Not bounded at all."""
    return _mean([film_dice(logits, truth) for logits, truth in outputs])


def dice_of_second_sigmoid(outputs: Outputs) -> float:
    """8. The sigmoid of a probability is above 0.5 everywhere: every pixel is lung, at a Dice of 2p / (1 + p)."""
    return _mean([film_dice(_mask(logits.sigmoid()), truth) for logits, truth in outputs])


def dice_broadcast(outputs: Outputs) -> float:
    """9. ``(B, 1, H, W)`` times ``(B, H, W)`` is ``(B, B, H, W)``: each prediction meets each truth."""
    scores = []
    for logits, truth in outputs:
        pred, truth = _mask(logits), truth[:, 0]
        scores.append((2 * (pred * truth).sum() / (pred.sum() + truth.sum() + 1e-6)).item())
    return float(np.mean(scores))


def smoothed_means(outputs: Outputs) -> float:
    """10. One added to means instead of sums: finding nothing scores 1 / (1 + p), 0.78 where lungs cover 28 %."""
    scores = []
    for logits, truth in outputs:
        pred = _mask(logits)
        scores.append(((2 * (pred * truth).mean() + 1) / (pred.mean() + truth.mean() + 1)).item())
    return float(np.mean(scores))


def dice_of_scrambled_pairs(outputs: Outputs) -> float:
    """17. The validation films' masks are paired like the training films'."""
    logits, truth = (torch.cat(tensors) for tensors in zip(*outputs))
    return _mean([film_dice(_mask(logits), truth[_shuffled(len(truth), 0)])])


# Name: what it does to the trainer, what it makes of the reported number; None is nothing.
MISTAKES: dict[str, tuple[Callable[[Trainer], None] | None, Callable[[Outputs], float] | None]] = {
    "no mistake": (None, None),
    "masks of 0 and 255": (partial(swap_loss, loss=MasksOf255), dice_of_255),
    "sigmoid twice": (partial(swap_loss, loss=SigmoidTwice), dice_of_second_sigmoid),
    "logits in Dice": (partial(swap_loss, loss=RawLogits), dice_of_logits),
    "wrong sign": (partial(swap_loss, loss=WrongSign), None),
    "thresholded Dice": (partial(swap_loss, loss=ThresholdedDice), None),
    "stuck in eval()": (stay_in_evaluation, None),
    "mask not moved": (leave_the_mask, None),
    "scrambled pairs": (scramble_pairs, dice_of_scrambled_pairs),
    "+1 on means": (None, smoothed_means),
    "sum / batches": (None, sum_over_batches),
    "total / i + 1": (None, total_over_index_plus_one),
    "broadcast": (None, dice_broadcast),
}


def _mask(logits: torch.Tensor) -> torch.Tensor:
    return (logits > 0).float()


def _mean(parts: list[torch.Tensor]) -> float:
    return torch.cat(parts).mean().item()


def _shuffled(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 17]).permutation(n)
