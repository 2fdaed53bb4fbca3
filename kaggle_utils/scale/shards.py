"""Prepared sets larger than memory: packed into tar files, shards, and streamed while training, from a disk or from S3.

Shards are dealt to up to :data:`STREAMS` streams in an order that seed and epoch decide. A stream reads its shards one
after the other; their films pass a buffer from which they are drawn at random. Batches are taken from the streams in
turn, whoever reads them, so they are the same with any number of workers. No more than the buffers and, for each
stream, two shards of S3 (in temporary files) are held. A film's augmentation comes from (seed, epoch, film) alone, as
in :mod:`data`. Of several processes each reads its own shards, so n processes need n shards at least. Films are PGM and
masks PBM, uncompressed: PNG is half as large, and inflating it in each epoch takes time from a CPU's training.
WebDataset (Aizman, Maltby & Breuel 2019) writes, reads and shuffles.
"""

from __future__ import annotations

import math
import random
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info
from tqdm import tqdm

from ..augment import augmentation
from ..data import make_item, one_thread, parse_manifest, read_manifest, read_pair
from ..distributed import batch_share, share, world_size
from ..files import check_ours, write_bytes
from ..image import decode_pnm, encode_image, resize_image, resize_mask
from ..tables import to_csv
from .s3 import connect, explained, is_address, parse

# Where nobody says otherwise:
FILMS = 100  # of a shard at most
SHARDS = 8  # of a split at least: enough for 8 processes
MEMBER_BYTES = 256 << 20  # of a file in a shard at most, 8192 px a side have a quarter of it
BUFFER = 1000  # films (0.3 MB each at 512 px) of all streams, from which the next one is drawn
STREAMS = 8  # at most; a power of two, as workers are, so that each has as many of them
STREAM_BATCHES = 16  # of each stream at least, as the last one is smaller
SHARD_NAME = r"(?:train|val|test)-\d{5}\.tar"


def write_shards(
    data: str | Path, out: str | Path, *, films: int | None = None, size: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Packs a prepared set into shards, the films of each split dealt out at random.

    Args:
        data: the prepared set.
        out: folder for ``SPLIT-00000.tar`` and ``manifest.csv``, which is written last.
        films: in each shard; None makes 8 shards of each split, or more where they would hold over 100 films. n
            processes that train need n shards of each split.
        size: px, side of the films in the shards; as prepared if None. That of the training spares resizing and space.
        seed: of the deal.

    Returns:
        The manifest, with the shard of each film; films without a mask are left out.

    Raises:
        FileNotFoundError: no prepared set.
        ValueError: ``out`` is the prepared set's own folder, or holds something else than shards.
        ImportError: webdataset is not installed.
    """
    wds, out = _webdataset(), Path(out)
    if out.resolve() == Path(data).resolve():
        raise ValueError(f"{out} is the prepared set itself: choose another folder for the shards")
    frame = read_manifest(data)
    frame = frame[frame["mask"] != ""].sample(frac=1, random_state=seed).reset_index(drop=True)
    table = frame.drop(columns=["image", "mask"]).assign(shard="")
    _start_over(out, table.head(0))
    for split, rows in frame.groupby("split"):
        each = films or min(FILMS, max(1, len(rows) // SHARDS))
        pattern = str(out / f"{split}-%05d.tar").replace("\\", "/")
        with wds.ShardWriter(pattern, maxcount=each, verbose=0) as writer:
            for row in tqdm(rows.itertuples(), f"shards of {split}", len(rows), unit="film", disable=None):
                writer.write(_sample(row, size))
                table.loc[row.Index, "shard"] = Path(writer.fname).name
    write_bytes(out / "manifest.csv", to_csv(table))
    return table


def _sample(row: Any, size: int | None) -> dict[str, Any]:
    """What WebDataset writes of a film and its mask; the row is their key, as a dot in a name would end it."""
    image, mask = read_pair(row.image, row.mask)
    if size:
        image, mask = resize_image(image, size), resize_mask(mask, size)
    return {
        "__key__": f"{row.Index:08d}",
        "film.pgm": encode_image(image, ".pgm"),
        "mask.pbm": encode_image(mask * np.uint8(255), ".pbm"),
    }


def _start_over(out: Path, empty: pd.DataFrame) -> None:
    """Removes the shards of an earlier run and leaves an empty manifest, which marks the folder as shards.

    Raises:
        ValueError: the folder holds something, and it isn't shards.
    """
    check_ours(out, "manifest.csv")
    if (out / "manifest.csv").exists() and not is_sharded(out):
        raise ValueError(f"{out}: its manifest.csv is not that of shards: choose another folder to write")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "manifest.csv", to_csv(empty))
    for old in list(out.iterdir()):
        if re.fullmatch(SHARD_NAME, old.name):
            old.unlink()


def is_sharded(root: str | Path) -> bool:
    """Says whether a folder, or an ``s3://`` address, holds shards; what lies in S3 does."""
    if is_address(root):
        return True
    try:
        return "shard" in pd.read_csv(Path(root) / "manifest.csv", nrows=0)
    except (OSError, ValueError):  # there is none, or it is damaged: who reads the set says which
        return False


def read_shards(root: str | Path) -> pd.DataFrame:
    """The manifest of a sharded set, with each film's shard as a path or an address, and its ``row`` there.

    Args:
        root: the folder that :func:`write_shards` wrote, or where in S3 it was uploaded to.

    Raises:
        FileNotFoundError: no manifest, or a shard that it names is gone.
        OSError: S3 can't be reached.
        ValueError: the set there is not in shards.
    """
    root = str(root).rstrip("/")
    path = f"{root}/manifest.csv"
    try:
        with _open(path) as file:
            frame = parse_manifest(file, path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: write shards (python -m kaggle_utils shards)") from None
    if "shard" not in frame:
        raise ValueError(f"{path}: a set without shards: write them (python -m kaggle_utils shards), or download it")
    wrong = frame["shard"][~frame["shard"].astype(str).str.fullmatch(SHARD_NAME)]
    if len(wrong):
        line = wrong.index[0] + 2
        raise ValueError(f"{path}: line {line} names {wrong.iloc[0]!r}, which is no shard: write the shards again")
    frame["row"], frame["shard"] = frame.index, f"{root}/" + frame["shard"]
    for shard in frame["shard"].unique():
        if not (is_address(root) or Path(shard).exists()):
            raise FileNotFoundError(f"{shard} is in {path} but not on the disk: write the shards again")
    return frame


class ShardedFilms(IterableDataset):
    """Batches of a sharded set's films, streamed; set ``epoch`` before each pass.

    Args:
        frame: rows of :func:`read_shards`.
        size: px, side of the square that the network sees.
        augment: a preset of :func:`augment.augmentation`.
        batch: films per batch, of all processes together.
        shuffle: in an order of seed and epoch; else as they lie in the shards.
        seed: of order and augmentation.
        raw: give ``uint8`` images and masks, which the network's device normalises.

    Raises:
        ValueError: the frame is empty, or there are fewer shards than processes.
        ImportError: webdataset is not installed.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        size: int = 256,
        augment: str = "none",
        *,
        batch: int = 8,
        shuffle: bool = False,
        seed: int = 0,
        raw: bool = False,
    ):
        if frame.empty:
            raise ValueError("no film to load: the choice of split and source left nothing of the manifest")
        _webdataset()
        self.size, self.whole_batch, self.batch = size, batch, batch_share(batch)
        self.shuffle, self.seed, self.raw = shuffle, seed, raw
        self.augment = augmentation(augment) if augment != "none" else None
        self.shards = Counter(frame["shard"])  # films in each
        self.films = dict(zip(frame["row"], zip(frame["name"], frame["source"])))
        self.epoch = 0
        if len(self.shards) < world_size():
            raise ValueError(
                f"{len(self.shards)} shards are too few for {world_size()} processes: "
                f"write them again with --films {len(frame) // world_size()} or fewer"
            )
        most = min(STREAMS, len(self.shards) // world_size(), len(frame) // (batch * STREAM_BATCHES))
        self.streams = 1 << max(1, most).bit_length() - 1 if shuffle else 1

    def __len__(self) -> int:
        """Batches of an epoch: in training those of the process that has most, so that all take the same steps."""
        order, n = self._order(), world_size()
        if not self.shuffle:
            return sum(self._steps(share(order), self.batch))
        # A batch that n doesn't divide gives the first processes a film more.
        return max(sum(self._steps(order[first::n], len(range(first, self.whole_batch, n)))) for first in range(n))

    def __iter__(self) -> Iterator[dict[str, Any] | Exception | None]:
        """What :class:`StreamLoader` takes: batches in turn from this worker's streams, None for one that has ended."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = share(self._order())
        streams = [self._batches(dealt) for dealt in self._deal(shards)[first::step]]
        try:
            for _ in range(max(self._steps(shards, self.batch))):
                yield from (next(stream, None) for stream in streams)
        except (OSError, ValueError) as error:  # PyTorch would put the worker's traceback into its words
            yield error

    def _deal(self, shards: Sequence[str]) -> list[Sequence[str]]:
        """Each stream's shards."""
        return [shards[stream :: self.streams] for stream in range(self.streams)]

    def _steps(self, shards: Sequence[str], batch: int) -> list[int]:
        """Batches of each stream."""
        return [math.ceil(sum(self.shards[shard] for shard in dealt) / batch) for dealt in self._deal(shards)]

    def _order(self) -> list[str]:
        shards = sorted(self.shards)
        if not self.shuffle:
            return shards
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(shards))
        return [shards[k] for k in order]

    def _batches(self, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Image and mask ``(B, 1, size, size)``, name and source of a stream's films."""
        items = map(self._item, map(self._decode, self._samples(shards)))
        while batch := list(islice(items, self.batch)):
            yield default_collate(batch)

    def _item(self, decoded: tuple[int, np.ndarray, np.ndarray]) -> dict[str, Any]:
        row, image, mask = decoded
        seed = (self.seed, self.epoch, row)
        return make_item(image, mask, *self.films[row], augment=self.augment, seed=seed, raw=self.raw)

    def _samples(self, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
        samples = self._unpacked(shards)
        if not self.shuffle:
            return samples
        rng, buffer = random.Random(f"{self.seed} {self.epoch}"), BUFFER // self.streams
        return _webdataset().filters.shuffle(buffer, initial=buffer, rng=rng)(samples)

    def _unpacked(self, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The films of these shards, with their files' bytes; a damaged shard leaves none out in silence."""
        for shard, stream in zip(shards, ahead(_open, shards, threads=1, most=1)):
            films = 0
            try:
                with stream:
                    for sample in _webdataset().tariterators.group_by_keys(_members(stream, shard, self.films)):
                        films += 1
                        yield sample
                if films != self.shards[shard]:
                    raise ValueError(f"it holds {films} of its {self.shards[shard]} films")
            except (ValueError, tarfile.TarError, EOFError) as error:
                said = " ".join(str(error).split())[:200]
                raise ValueError(f"{shard}: a damaged shard ({said}): write the shards again") from None

    def _decode(self, sample: dict[str, Any]) -> tuple[int, np.ndarray, np.ndarray]:
        try:
            image, mask = decode_pnm(sample["film.pgm"]), decode_pnm(sample["mask.pbm"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{sample['__url__']}: film {sample['__key__']} is damaged ({error}): write the shards again"
            ) from None
        return int(sample["__key__"]), resize_image(image, self.size), resize_mask(mask // 255, self.size)


class StreamLoader(DataLoader):
    """Batches of streamed films, the same with any number of workers.

    Args:
        films: what to load.
        workers: processes beside the training's own at most, 0 is none; of the streams each has as many as the others.
    """

    def __init__(self, films: ShardedFilms, workers: int = 0):
        count = 1 << min(workers, films.streams).bit_length() - 1 if workers else 0
        # New workers each epoch, as living ones would not hear of it.
        pinned = torch.cuda.is_available()
        super().__init__(films, batch_size=None, num_workers=count, pin_memory=pinned, worker_init_fn=one_thread)
        self.films = films

    def __len__(self) -> int:
        return len(self.films)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Batches: image and mask ``(B, 1, size, size)``, name and source; a film without a name doesn't count."""
        done = 0
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            if batch is not None:
                yield batch
                done, last = done + 1, batch
        for _ in range(len(self) - done):  # another process has more films: this one only takes the step too
            yield {**{key: values[-1:] for key, values in last.items()}, "name": [""]}


def _members(stream: BinaryIO, shard: str, films: Container[int]) -> Iterator[dict[str, Any]]:
    """The wanted files of a shard for WebDataset, whose own reader would unpack gzip and sparse files of any size."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if not member.isreg() or member.issparse() or member.size > MEMBER_BYTES:
                raise ValueError(f"{member.name!r} is no film's file")
            if int(member.name.split(".")[0]) in films:
                file = archive.extractfile(member)
                assert file is not None  # as it is a regular file
                yield {"fname": member.name, "data": file.read(), "__url__": shard}


def ahead(work: Callable[[Any], Any], items: Iterable[Any], threads: int, most: int) -> Iterator[Any]:
    """What ``map`` gives, computed by threads, of which at most so many results wait to be taken."""
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(items, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(items, 1))
            yield result


def _open(path: str) -> BinaryIO:
    """A shard's file, or an object's copy in a temporary one."""
    if not is_address(path):
        return Path(path).open("rb")
    # Not a stream from S3: boto3 fetches a file's parts again where the network fails. The caller closes it.
    file = TemporaryFile()  # noqa: SIM115
    with explained(path):
        connect().download_fileobj(*parse(path), file)
    file.seek(0)
    return file


def _webdataset():
    try:
        import webdataset
    except ImportError:
        raise ImportError("shards need webdataset: pip install webdataset") from None
    return webdataset
