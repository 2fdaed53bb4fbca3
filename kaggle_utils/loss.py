"""Losses from logits. Each is a mean over films of a number per film, in float32 whatever the autocast.

Axes: B films, 1 channel, H rows, W columns. Logits and truth have the same shape; truth holds 0 and 1 only. Each loss
looks at shapes at every call and at the truth's values at its first: to see them, training would wait for the GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _Checked(nn.Module):
    """A loss that tells wrong shapes at each call, and wrong values at its first."""

    looked = False

    def check(self, logits: torch.Tensor, truth: torch.Tensor) -> None:
        """Raises ValueError as :func:`check_pair`."""
        check_pair(logits, truth, values=not self.looked)
        self.looked = True


class BCEWithLogitsLoss(_Checked):
    """PyTorch's binary cross-entropy, with the checks that the other losses make.

    Shape: logits, truth ``(B, 1, H, W)`` → scalar ≥ 0.
    """

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.check(logits, truth)
        return F.binary_cross_entropy_with_logits(logits.float(), truth.float())


class DiceLoss(_Checked):
    """One minus soft Dice, film by film.

    Args:
        smooth: px, added to numerator and denominator; makes two empty masks agree (loss 0). It is added to sums over
            a film, not to means: there, 1 would give an empty prediction a Dice of 0.78.

    Shape: logits, truth ``(B, 1, H, W)`` → scalar in [0, 1].

    Source: Milletari et al. 2016, "V-Net", eq. 1, with the plain instead of the squared sums of Sudre et al. 2017.
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.check(logits, truth)
        tp, fp, fn = soft_counts(logits, truth)
        return 1 - ((2 * tp + self.smooth) / (2 * tp + fp + fn + self.smooth)).mean()


class TverskyLoss(_Checked):
    """Dice with a price of its own for false positives (``alpha``) and false negatives (``beta``).

    ``alpha = beta = 0.5`` is Dice with twice the smoothing.

    Args:
        alpha: price of a false positive, ≥ 0.
        beta: price of a false negative, ≥ 0.
        smooth: px, as in :class:`DiceLoss`.

    Shape: logits, truth ``(B, 1, H, W)`` → scalar in [0, 1].

    Source: Salehi, Erdogmus & Gholipour 2017, eq. 2.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0):
        super().__init__()
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.check(logits, truth)
        tp, fp, fn = soft_counts(logits, truth)
        return 1 - ((tp + self.smooth) / (tp + self.alpha * fp + self.beta * fn + self.smooth)).mean()


class FocalLoss(_Checked):
    """Cross-entropy that looks away from easy pixels: each is weighed by ``(1 - p_of_its_class)**gamma``.

    Args:
        gamma: ≥ 0; 0 is cross-entropy.

    Shape: logits, truth ``(B, 1, H, W)`` → scalar ≥ 0.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4 (without alpha).
    """

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.check(logits, truth)
        bce = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
        return (bce * (1 - torch.exp(-bce)) ** self.gamma).mean()  # exp(-bce) is the probability of the true class


class BCEDiceLoss(nn.Module):
    """``(1 - dice_weight) * BCE + dice_weight * Dice loss``.

    Args:
        dice_weight: in [0, 1]. The two terms differ in scale as training goes on: BCE falls below 0.1 within an epoch
            while the Dice loss is still at 0.1, so equal weights already favour Dice.

    Shape: logits, truth ``(B, 1, H, W)`` → scalar ≥ 0.
    """

    def __init__(self, dice_weight: float = 0.5):
        super().__init__()
        if not 0 <= dice_weight <= 1:
            raise ValueError(f"dice_weight is in [0, 1], not {dice_weight}")
        self.dice_weight, self.bce, self.dice = dice_weight, BCEWithLogitsLoss(), DiceLoss()

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (1 - self.dice_weight) * self.bce(logits, truth) + self.dice_weight * self.dice(logits, truth)


LOSSES = {
    "bce": BCEWithLogitsLoss,
    "dice": DiceLoss,
    "bce_dice": BCEDiceLoss,
    "tversky": TverskyLoss,
    "focal": FocalLoss,
}


def make_loss(name: str, *, dice_weight: float = 0.5) -> nn.Module:
    """The loss of that name; ``dice_weight`` is for ``bce_dice``."""
    if name not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {name!r}")
    return BCEDiceLoss(dice_weight) if name == "bce_dice" else LOSSES[name]()


def soft_counts(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True positives, false positives and false negatives of each film as sums of probabilities, ``float32 (B,)``."""
    # float16 ends at 65,504, the sum over one 512×512 mask at 262,144.
    prob, truth = logits.float().sigmoid().flatten(1), truth.float().flatten(1)
    tp = (prob * truth).sum(1)
    return tp, prob.sum(1) - tp, truth.sum(1) - tp


def check_pair(logits: torch.Tensor, truth: torch.Tensor, *, values: bool = True) -> None:
    """Raises ValueError unless the shapes are equal and the truth, if its values are looked at, holds 0 and 1 only."""
    if logits.shape != truth.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)} and truth is {tuple(truth.shape)}: "
            "they would be broadcast against each other to a number that means nothing"
        )
    if values and not ((truth == 0) | (truth == 1)).all():
        raise ValueError(
            f"truth holds 0 and 1, this one goes from {truth.min():g} to {truth.max():g}: "
            "read masks with image.read_mask, and resize them with image.resize_mask"
        )
