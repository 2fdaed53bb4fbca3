"""The prepared set to batches: manifest, cache, augmentation, normalisation.

Axes: B films, 1 channel, H rows, W columns. Arrays are ``uint8 (H, W)``; tensors are ``float32 (B, 1, H, W)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .augment import augmentation
from .config import MOST_LUNG, PREPARED_SIDES
from .distributed import batch_share, once_per_machine, share, share_of_batches
from .files import manifest_path
from .image import read_image, read_mask, resize_image, resize_mask
from .tables import read_csv

_SPLITS = ("train", "val", "test", "unlabelled")


def read_manifest(root: str | Path) -> pd.DataFrame:
    """Reads a prepared set's manifest, with the paths of its films and masks.

    Args:
        root: the folder that ``python -m kaggle_utils prep`` wrote.

    Returns:
        One row per film: name, source, split, tb, sex, age, height, width, inverted (1: prep turned over a negative;
        older sets have no such column), sha256, pixels, and the paths image and mask (mask is empty where split is
        ``unlabelled``).

    Raises:
        FileNotFoundError: no manifest, or a film that it names is gone.
        ValueError: a column is missing, the set is in shards, or a film is there twice, so that it could be trained on
            and tested on.
    """
    root, path = Path(root), manifest_path(root)
    frame = parse_manifest(path, path)
    if "shard" in frame:
        raise ValueError(
            f"{root} holds shards, which train alone reads: give the prepared folder that they were written from"
        )
    check_disjoint(frame)
    for kind in ("image", "mask"):
        frame[kind] = [str(root / split / kind / f"{name}.png") for split, name in zip(frame["split"], frame["name"])]
    frame.loc[frame["split"] == "unlabelled", "mask"] = ""
    for file in filter(None, [*frame["image"], *frame["mask"]]):
        if not Path(file).exists():
            raise FileNotFoundError(f"{file} is in {path} but not on the disk: run prep again")
    return frame


def parse_manifest(file: str | Path | BinaryIO, path: str | Path) -> pd.DataFrame:
    """The rows of a manifest, as they stand there.

    Args:
        file: it, or its bytes where they are read from elsewhere.
        path: by which errors call it.

    Raises:
        ValueError: it is damaged, a column is missing, or a film has no name, source, pixels or known split.
    """
    try:
        frame = read_csv(file)
    except ValueError as error:  # of pandas or the decoder: it is no text, or has no columns
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: not a table as prep writes it ({said}): run prep again") from None
    missing = {"name", "source", "split", "tb", "pixels"} - set(frame)
    if missing:
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; it was not written by this version's prep")
    known = ["name", "source", "pixels", "split"]
    wrong = frame.loc[frame[known].isna().any(axis=1) | ~frame["split"].isin(_SPLITS), known]
    if len(wrong):
        raise ValueError(
            f"{path}: line {wrong.index[0] + 2} has {wrong.iloc[0].to_dict()}; each is to be there, and split one of "
            f"{', '.join(_SPLITS)}: run prep again"
        )
    return frame


def check_disjoint(frame: pd.DataFrame) -> None:
    """Raises ValueError if a film is there twice, by its name or its pixels: it might be trained on and tested on."""
    for column in ("name", "pixels"):
        twice = frame.loc[frame.duplicated(column, keep=False), "name"]
        if len(twice):
            raise ValueError(f"films that are in the set twice by their {column}: {', '.join(map(str, twice[:6]))}")


def read_pair(image: str | Path, mask: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A prepared film and its mask, both ``uint8 (H, W)``, the mask in {0, 1}.

    Raises:
        ValueError: one of them is damaged, or the mask is none of this film's lungs: prep writes no such pair.
    """
    film, lungs = read_image(image), read_mask(mask)
    said = ""
    if film.shape != lungs.shape:
        said = f"{mask}: the mask is {lungs.shape} and the film {film.shape}"
    elif min(film.shape) < PREPARED_SIDES[0]:
        said = f"{image}: {film.shape[1]}×{film.shape[0]} px"
    elif not 0 < lungs.mean() <= MOST_LUNG:
        said = f"{mask}: {lungs.mean():.0%} of the film is lung"
    if said:
        raise ValueError(f"{said}, not as prep writes them: run prep again")
    return film, lungs


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Gives every film zero mean and unit deviation over its own pixels: exposure and bit depth cancel out.

    Args:
        images: ``(B, 1, H, W)`` or ``(1, H, W)``, any dtype, any scale.

    Returns:
        ``float32`` of the same shape.
    """
    images = images.float()
    images = images - images.mean(dim=(-2, -1), keepdim=True)
    deviation = images.square().mean(dim=(-2, -1), keepdim=True).sqrt()  # a fifth of the time of std()
    return images / deviation.clamp_min(1e-3)


class LungDataset(Dataset):
    """Films and masks of a manifest as normalised tensors, from a ``uint8`` cache: no PNG is decoded twice.

    The random numbers of film ``i`` in epoch ``e`` come from (seed, e, i) alone, so they are the same with any number
    of workers, differ between workers, and a resumed run draws what the uninterrupted one would have drawn.

    Args:
        frame: rows of :func:`read_manifest`, each with a mask.
        size: px, side of the square that the network sees.
        augment: a preset of :func:`augmentation`.
        seed: of the augmentation.
        raw: give ``uint8`` images and masks, which the network's device normalises.

    Raises:
        ValueError: the frame is empty, names a film without a mask, or see :func:`read_pair`.
    """

    def __init__(
        self, frame: pd.DataFrame, size: int = 256, augment: str = "none", *, seed: int = 0, raw: bool = False
    ):
        if frame.empty:
            raise ValueError("no film to load: the choice of split and source left nothing of the manifest")
        if (frame["mask"] == "").any():
            raise ValueError(
                f"{frame['name'][frame['mask'] == ''].iloc[0]} has no mask: choose a split other than unlabelled"
            )
        self.frame, self.size, self.seed, self.raw = frame.reset_index(drop=True), size, seed, raw
        self.augment = augmentation(augment) if augment != "none" else None

        def read(image: str, mask: str) -> np.ndarray:
            pair = read_pair(image, mask)
            return np.stack([resize_image(pair[0], size), resize_mask(pair[1], size)])

        def read_all() -> np.ndarray:
            with ThreadPoolExecutor() as pool:
                return np.stack([*pool.map(read, self.frame["image"], self.frame["mask"])], axis=1)

        self.images, self.masks = once_per_machine(read_all)  # both (N, size, size)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, key: int | tuple[int, int] | None) -> dict[str, Any]:
        """One film: image and mask ``float32 (1, size, size)``, name and source.

        Args:
            key: an index or (epoch, index); None gives a film without a name, which doesn't count.
        """
        if key is None:
            return {**self[0], "name": ""}
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return make_item(
            self.images[index],
            self.masks[index],
            self.frame["name"][index],
            self.frame["source"][index],
            augment=self.augment,
            seed=(self.seed, epoch, index),
            raw=self.raw,
        )


def make_item(
    image: np.ndarray,
    mask: np.ndarray,
    name: str,
    source: str,
    *,
    augment: Any = None,
    seed: tuple[int, int, int] = (0, 0, 0),
    raw: bool = False,
) -> dict[str, Any]:
    """A film and its mask as training takes them: image and mask ``float32 (1, H, W)``, name and source.

    Args:
        image: ``uint8 (H, W)``.
        mask: ``uint8 (H, W)`` in {0, 1}.
        name: of the film.
        source: the set that it is of.
        augment: of :func:`augment.augmentation`; None is none.
        seed: of its random numbers.
        raw: image and mask stay ``uint8``.
    """
    if augment:
        augment.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        moved = augment(image=image, mask=mask)
        image, mask = moved["image"], moved["mask"]
    film, lungs = torch.from_numpy(image[None]), torch.from_numpy(mask[None])
    if not raw:
        film, lungs = normalise(film), lungs.float()
    return {"image": film, "mask": lungs, "name": name, "source": source}


class EpochSampler(Sampler):
    """Yields (epoch, index) in an order that seed and epoch alone decide; set ``epoch`` before each pass.

    Of several processes each draws its share of every ``batch`` of that order, and a None if it gets no film of the
    last.
    """

    def __init__(self, n: int, seed: int = 0, batch: int = 1):
        self.n, self.seed, self.epoch, self.batch = n, seed, 0, batch

    def __len__(self) -> int:
        return len(share_of_batches(range(self.n), self.batch))

    def __iter__(self) -> Iterator[tuple[int, int] | None]:
        return iter(share_of_batches(self.order(), self.batch))

    def order(self) -> list[tuple[int, int]]:
        """The (epoch, index) of all processes."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return [(self.epoch, int(i)) for i in order]


class SetSampler(EpochSampler):
    """Draws so many films of each set in every epoch, spread evenly through it: each batch has the sets' shares.

    A set is shuffled, gone through, and shuffled again, whatever the epoch. So what it yields with an index is the
    number of times that its set was gone through before: no film is augmented twice in the same way.

    Args:
        sets: the indices of each set's films.
        draws: films of each set per epoch, at least one.
        seed, batch: as for :class:`EpochSampler`.
    """

    def __init__(self, sets: Sequence[np.ndarray], draws: Sequence[int], seed: int = 0, batch: int = 1):
        super().__init__(sum(draws), seed, batch)
        self.sets, self.draws = sets, draws

    def order(self) -> list[tuple[int, int]]:
        placed = []
        for number, (films, n) in enumerate(zip(self.sets, self.draws)):
            first, skipped = divmod(self.epoch * n, len(films))
            turns = range(first, first + 1 + (skipped + n - 1) // len(films))
            keys = [(turn, int(film)) for turn in turns for film in self._shuffled(number, turn)]
            places = (np.arange(n) + 0.5) / n
            placed += [(place, number, key) for place, key in zip(places, keys[skipped:])]
        return [key for _, _, key in sorted(placed)]

    def _shuffled(self, number: int, turn: int) -> np.ndarray:
        """A set's films in the order of one turn."""
        return np.random.default_rng([self.seed, number, turn]).permutation(self.sets[number])


def make_loader(
    dataset: LungDataset, batch: int, *, shuffle: bool = False, workers: int = 0, draws: dict[str, int] | None = None
) -> DataLoader:
    """A loader over the set, or over this process's share of it; the last, smaller batch counts too.

    Args:
        dataset: what to load.
        batch: films per batch, of all processes together.
        shuffle: draw a new order each epoch (set ``loader.sampler.epoch``).
        workers: processes beside the main one. 0 is right on a CPU, where they would only take cores from training.
        draws: films of each source per epoch, see :class:`SetSampler`; all, once, if None. For shuffling alone.
    """
    sampler = make_sampler(dataset, batch, shuffle=shuffle, draws=draws)
    return DataLoader(
        dataset,
        batch_share(batch),
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
    )


def make_sampler(
    dataset: LungDataset, batch: int, *, shuffle: bool = False, draws: dict[str, int] | None = None
) -> Any:
    """The order in which :func:`make_loader` loads."""
    if shuffle and draws:
        sets = [np.flatnonzero(dataset.frame["source"] == source) for source in draws]
        return SetSampler(sets, list(draws.values()), dataset.seed, batch)
    return EpochSampler(len(dataset), dataset.seed, batch) if shuffle else share(range(len(dataset)))


def check_batch(batch: dict) -> None:
    """Looks at a batch before any time is spent on it.

    Raises:
        ValueError: in words: shapes that don't fit, films that aren't normalised, masks that aren't {0, 1}, are all the
            same, or whose share of lung no chest film has.
    """
    images, masks = batch["image"], batch["mask"]
    if images.shape != masks.shape or images.ndim != 4:
        raise ValueError(
            f"images are {tuple(images.shape)} and masks {tuple(masks.shape)}; both should be (B, 1, H, W)"
        )
    values = masks.unique().tolist()
    if not set(values) <= {0.0, 1.0}:
        raise ValueError(f"masks hold {values[:5]}, they should hold 0 and 1: read them with image.read_mask")
    if not torch.isfinite(images).all() or images.abs().max() > 50:
        raise ValueError(f"films go from {images.min():g} to {images.max():g}: pass them through data.normalise")
    share = masks.mean().item()
    if not 0.02 < share < 0.7:
        raise ValueError(
            f"lungs cover {share:.1%} of the films, a chest film has 15-40 %: are the masks inverted, empty "
            f"or paired with the wrong films? ({', '.join(batch['name'][:3])} ...)"
        )


def one_thread(worker: int) -> None:
    """Starts a loader's worker."""
    cv2.setNumThreads(0)  # OpenCV's thread pool doesn't survive a fork
