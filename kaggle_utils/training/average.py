"""The moving average of a network's weights, which is what is validated and kept."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn


class MovingAverage(nn.Module):
    """An exponential moving average that forgets fast at first, so that it doesn't drag the initial weights along.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, as in TensorFlow's ExponentialMovingAverage; the
    first update takes the weights as they are. Statistics of normalisation are averaged with the weights; whole
    numbers, which only count batches, are not.

    Args:
        model: whose weights, on the device where they stay.
        decay: per update.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay, self.updates = decay, 0
        self._floats, self._current = _floats(self.module), _floats(model)

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present weights in: one call for all, and no number read from the device."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(self._floats, self._current, 1 - decay)
        self.updates += 1


def _floats(model: nn.Module) -> list[torch.Tensor]:
    tensors = chain(model.parameters(), model.buffers())
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
