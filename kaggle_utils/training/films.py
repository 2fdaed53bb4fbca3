"""Which films a run learns from and is validated on, and their loaders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader

from .. import distributed
from ..augment import BATCHED
from ..config import TrainConfig
from ..data import LungDataset, check_disjoint, make_loader, make_sampler, read_manifest
from ..hardware import choose_device, processors
from ..scale.shards import ShardedFilms, StreamLoader, is_sharded, read_shards
from ..splits import SYNTHETIC, flagged_masks
from .on_device import DeviceLoader

Loader = DataLoader | DeviceLoader
MOST_OF_A_SET = 64  # validation films, evenly drawn: no set outweighs the others, and no epoch waits for them


def select_films(data: str | Path | list[str | Path], config: TrainConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the manifests that a configuration trains on, and those that it validates on.

    Args:
        data: a prepared set, several, or one in shards: each source is validated on in the first one that has films
            for it.
        config: its ``sources``, ``flagged_masks``, ``films`` and ``seed`` choose.

    Raises:
        ValueError: a wanted source isn't there or has no training or validation film, a film is there twice, shards are
            not alone, or they are to be drawn by shares.
    """
    roots = [data] if isinstance(data, (str, Path)) else data
    sharded = any(map(is_sharded, roots))
    if sharded and len(roots) > 1:
        raise ValueError(
            "a set in shards is trained on alone: prepare the sets into one folder and write shards of that"
        )
    if sharded and (config.shares or config.epoch_films):
        raise ValueError("a set in shards is streamed whole: leave shares and epoch_films away")
    frames = [read_shards(root) if sharded else read_manifest(root) for root in roots]
    everything = pd.concat([frame.assign(folder=number) for number, frame in enumerate(frames)])
    check_disjoint(everything)
    absent = set(config.sources) - set(everything["source"])
    if absent:
        there = ", ".join(everything["source"].unique())
        raise ValueError(f"no film of {', '.join(sorted(absent))} in {data}: choose --sources from {there}")
    films = everything[(everything["split"] == "train") & everything["source"].isin(config.sources)]
    held_out = everything[(everything["split"] == "val") & everything["source"].isin(config.sources)]
    held_out = held_out[held_out["folder"] == held_out.groupby("source")["folder"].transform("min")]
    if not sharded:
        drawn = held_out.sample(frac=1, random_state=0).groupby("source").head(MOST_OF_A_SET)
        held_out = held_out[held_out["name"].isin(drawn["name"])]
    for part, rows in (("training", films), ("validation", held_out)):
        if rows.empty:
            raise ValueError(f"{data}: no {part} radiograph of {', '.join(config.sources)}: look at the split")
    if not config.flagged_masks:
        films = films[~films["name"].isin(flagged_masks()["name"])]
    if config.films:
        films = films.sample(min(config.films, len(films)), random_state=config.seed)
    return films, held_out


def make_loaders(films: pd.DataFrame, held_out: pd.DataFrame, config: TrainConfig) -> tuple[Loader, Loader]:
    """Loaders of the two parts of :func:`select_films`: shuffled and augmented to train on, untouched to validate."""
    device, workers = choose_device(config.device), config.workers
    raw = device.type == "cuda"  # a quarter of the bytes to carry
    if workers < 0:
        workers = processors() // distributed.machine_size() if raw else 0
    if "shard" in films:
        common: dict[str, Any] = {"batch": config.batch_size, "seed": config.seed, "raw": raw}
        shuffled = ShardedFilms(films, config.size, config.augment, shuffle=True, **common)
        return StreamLoader(shuffled, workers), StreamLoader(ShardedFilms(held_out, config.size, **common), workers)
    batch, draws = config.batch_size, draws_per_epoch(films["source"], config)
    validated = LungDataset(held_out, config.size, raw=raw)
    if augments_on_device(config, len(films) + len(held_out), device):
        learned = LungDataset(films, config.size, seed=config.seed)
        order = make_sampler(learned, batch, shuffle=True, draws=draws)
        return (
            DeviceLoader(learned, batch, device, order, config.augment),
            DeviceLoader(validated, batch, device, make_sampler(validated, batch)),
        )
    learned = LungDataset(films, config.size, config.augment, seed=config.seed, raw=raw)
    return (
        make_loader(learned, batch, shuffle=True, workers=workers, draws=draws),
        make_loader(validated, batch, workers=min(workers, 2)),
    )


def augments_on_device(config: TrainConfig, films: int, device: torch.device) -> bool:
    """Whether the films live on the device, and are augmented there.

    It is where that is asked for, or on a GPU that can and has the memory.
    """
    if config.augment_on != "auto":
        return config.augment_on == "device"
    if device.type != "cuda" or config.augment not in BATCHED:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * films * config.size**2 < free / 4  # a byte a pixel, of film and mask


def draws_per_epoch(sources: pd.Series, config: TrainConfig) -> dict[str, int] | None:
    """How many films of each set an epoch has, at least one: ``config.epoch_films`` in all, by ``config.shares``.

    None if neither is set: each film once.
    """
    if not config.shares and not config.epoch_films:
        return None
    films = sources.value_counts()
    shares = dict(zip(config.sources, config.shares)) or films.to_dict()
    shares = {source: shares[source] for source in config.sources if source in films}  # config.films may leave none
    total = min(len(sources), config.epoch_films or len(sources))
    return {source: max(1, round(total * share / sum(shares.values()))) for source, share in shares.items()}


def describe_films(films: pd.DataFrame, held_out: pd.DataFrame) -> dict[str, Any]:
    """How many films of each set there are, how many of them are synthetic, and a fingerprint of them all."""
    both = pd.concat([films, held_out])[["name", "pixels"]].astype(str).to_csv(index=False)
    return {
        "films": films["source"].value_counts().sort_index().to_dict(),
        "built_in": int(films["name"].str.fullmatch(SYNTHETIC).sum()),
        "fingerprint": hashlib.sha256(both.encode()).hexdigest()[:16],
    }
