"""A step that is recorded once and then repeated by the GPU itself: a small network's kernels end before Python has
asked for the next."""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[..., torch.Tensor]
WARM_UP = 3  # steps before the recording, as PyTorch asks for: libraries choose their kernels in them


class RecordedStep:
    """Calls a step, and from the fourth batch of one shape on repeats its recording (a CUDA graph).

    A batch of another shape, such as an epoch's last, is learned from without it.

    Args:
        step: of tensors on the device, to a tensor; it reads nothing from the device, and all that changes from call to
            call lies in these tensors, the network, the optimiser's state or other tensors there.
        record: makes of a step without arguments one that repeats it, and the tensor where its result will be.
    """

    def __init__(self, step: Step, record: Callable[[Callable[[], torch.Tensor]], tuple[Callable, torch.Tensor]]):
        self.step, self.record = step, record
        self.shapes: list[torch.Size] = []
        self.seen = 0
        self.inputs: tuple[torch.Tensor, ...] = ()

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        shapes = [tensor.shape for tensor in tensors]
        self.shapes = self.shapes or shapes  # of the run's first batch, which is a whole one
        if shapes != self.shapes:
            return self.step(*tensors)
        self.seen += 1
        if self.seen <= WARM_UP:
            return self.step(*tensors)
        if not self.inputs:
            self.inputs = tuple(tensor.clone() for tensor in tensors)
            self.repeat, self.result = self.record(lambda: self.step(*self.inputs))
        for mine, given in zip(self.inputs, tensors):
            mine.copy_(given)
        self.repeat()
        return self.result.clone()  # the next repetition overwrites it


def record_cuda(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Records a step as a CUDA graph; recording computes nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result
