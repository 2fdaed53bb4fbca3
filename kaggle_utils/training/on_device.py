"""Films that live on the training's device, as a loader: a step waits for no worker and no bus."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..augment import DRAWN, BatchedAugmentation, draw_artefacts
from ..data import LungDataset, normalise
from ..distributed import batch_share
from ..hardware import processors, to_device
from ..scale.shards import ahead

CHUNK = 64  # films that are changed at once: small batches would leave a GPU waiting for orders
Key = tuple[int, int] | None  # an epoch and a film's index; None is a film that doesn't count


class DeviceLoader:
    """Batches of a data set whose films and masks lie on the device as ``uint8``.

    Args:
        dataset: the films, which this loader augments, not the dataset.
        batch: films per batch, of all processes together.
        device: where they go.
        sampler: yields (epoch, index) as :class:`data.EpochSampler`, or indices.
        augment: of :data:`augment.BATCHED`.
    """

    def __init__(self, dataset: LungDataset, batch: int, device: torch.device, sampler: Any, augment: str = "none"):
        self.dataset, self.batch, self.device, self.sampler = dataset, batch_share(batch), device, sampler
        self.augment = BatchedAugmentation(augment, dataset.size, device, dataset.seed)
        self.images, self.masks = (
            to_device(torch.from_numpy(films), device).unsqueeze(1) for films in (dataset.images, dataset.masks)
        )
        self.names, self.sources = (dataset.frame[column].tolist() for column in ("name", "source"))

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches: image, normalised, and mask ``float32 (B, 1, size, size)`` on the device; name and source."""
        keys: list[Key] = [(0, key) if isinstance(key, int) else key for key in self.sampler]
        index = [key[1] if key else 0 for key in keys]
        where = to_device(torch.tensor(index), self.device)
        changes = {name: to_device(torch.from_numpy(rows), self.device) for name, rows in self._changes(keys).items()}
        chunk = self.batch * max(1, CHUNK // self.batch)
        starts = range(0, len(keys), chunk)
        for start, films in zip(starts, self._films([keys[start : start + chunk] for start in starts], where, chunk)):
            part = slice(start, start + chunk)
            rows = {name: values[part] for name, values in changes.items()}
            gray, masks = self.augment(films, self.masks[where[part]], rows)
            images = normalise(gray)
            for at in range(0, len(gray), self.batch):
                some = slice(start + at, start + at + self.batch)
                yield {
                    "image": images[at : at + self.batch],
                    "mask": masks[at : at + self.batch],
                    "name": [self.names[n] if key else "" for n, key in zip(index[some], keys[some])],
                    "source": [self.sources[n] for n in index[some]],
                }

    def _changes(self, keys: list[Key]) -> dict[str, np.ndarray]:
        """The row of each key in its epoch's table."""
        tables = {epoch: self.augment.changes(epoch, len(self.dataset)) for epoch in {key[0] for key in keys if key}}
        names = next(iter(tables.values()), {})
        return {
            name: np.stack([tables[key[0]][name][key[1]] if key else names[name][0] for key in keys]) for name in names
        }

    def _films(self, chunks: list[list[Key]], where: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        """Of each chunk the films ``uint8 (B, 1, size, size)``; what is drawn into them, threads draw ahead."""
        if self.augment.preset != "clinic":
            yield from (self.images[part] for part in where.split(size))
            return
        flat = [key for chunk in chunks for key in chunk]
        drawn = ahead(self._drawn, flat, processors(), 2 * size)
        for chunk in chunks:
            films = np.stack([next(drawn) for _ in chunk])
            yield to_device(torch.from_numpy(films), self.device).unsqueeze(1)

    def _drawn(self, key: Key) -> np.ndarray:
        epoch, index = key or (0, 0)
        rng = np.random.default_rng([self.dataset.seed, epoch, index])
        return draw_artefacts(self.dataset.images[index], self.dataset.masks[index], rng, among=DRAWN)
