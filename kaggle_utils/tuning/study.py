"""One run of a study as rows of a table, the table on disk, and runs beside each other.

A table has a row per epoch and the columns :data:`STUDY_COLUMNS`: ``reported`` is what the run would have called its
Dice, ``dice_256`` and ``jsrt_256`` are mean Dice at 256 px after the last epoch, ``seconds`` are since the run's start,
``status`` is finished, pruned or diverged, ``data`` the prepared set's fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..config import TrainConfig
from ..data import LungDataset, make_loader, read_manifest
from ..files import write_bytes
from ..hardware import gpu_names
from ..image import read_mask, resize_mask, resize_prob
from ..metrics import dice
from ..model import count_parameters
from ..splits import SYNTHETIC
from ..trainer import Trainer, make_trainer
from ..training import Loader

Outputs = list[tuple[torch.Tensor, torch.Tensor]]  # logits and truth of each validation batch, float32 (B, 1, H, W)
SETTINGS = (
    "augment",
    "base_channels",
    "depth",
    "patch",
    "size",
    "loss",
    "dice_weight",
    "batch_size",
    "epochs",
    "lr",
    "weight_decay",
    "ema_decay",
)
MEASURES = (
    "train_loss",
    "val_loss",
    "val_dice",
    "val_iou",
    "val_accuracy",
    "reported",
    "dice_256",
    "jsrt_256",
    "seconds",
)
STUDY_COLUMNS = (
    "study",
    "run",
    *SETTINGS,
    "seed",
    "real",
    "synthetic",
    "parameters",
    "epoch",
    *MEASURES,
    "status",
    "data",
    "commit",
)


# By name and seed: what a run is trained with, and what the table says of it.
Plan = dict[tuple[str, int], tuple[tuple, dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """A line of a study.

    Args:
        name: unique in its study.
        settings: of TrainConfig, those that differ from the study's.
        change: what is done to the trainer before it trains; None is nothing.
        report: what is reported after each epoch, if not the validation Dice.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Trainer], None] | None = None
    report: Callable[[Outputs], float] | None = None


def train_run(
    run: Run, data: str | Path, config: TrainConfig, prune: Callable[[dict[str, Any]], bool] | None = None
) -> list[dict[str, Any]]:
    """Trains once.

    Args:
        run: its change and its report; its settings are in ``config`` already.
        data: prepared set.
        config: of the training.
        prune: called with each epoch's row; the run ends when it says True. With it, nothing is scored at 256 px.

    Returns:
        The rows. Those of a run that diverged end with the epoch in which it did, without scores.
    """
    rows: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any]) -> bool:
        reported = run.report(_outputs(trainer)) if run.report else row["val_dice"]
        rows.append(row | {"reported": reported})
        return prune is not None and prune(row)

    with contextlib.redirect_stderr(io.StringIO()):  # one bar is enough, the study's
        if run.change:  # of films and loader as they are on the CPU
            config = replace(config, augment_on="cpu")
        trainer = make_trainer(data, None, config)
        if run.change:
            run.change(trainer)
        try:
            trainer.fit(on_epoch)
            status = "finished" if len(rows) == config.epochs else "pruned"
        except FloatingPointError:
            rows.append({"epoch": len(rows), "seconds": trainer.seconds})
            status = "diverged"
        if status == "finished" and prune is None:
            rows[-1] |= _last_scores(trainer, data)
    common = {"run": run.name, **_describe(trainer), "status": status, "data": fingerprint(data)}
    return [common | {name: row[name] for name in ("epoch", *MEASURES) if name in row} for row in rows]


def _last_scores(trainer: Trainer, data: str | Path) -> dict[str, float | None]:
    """Dice at 256 px of the validation films, and of JSRT where it is external."""
    frame = read_manifest(data)
    external = frame[(frame["source"] == "jsrt") & (frame["split"] != "unlabelled")]
    if "jsrt" in trainer.config.sources:
        external = external.head(0)
    validated = films_of(trainer.val_loader).frame
    return {"dice_256": dice_at_256(trainer, validated), "jsrt_256": dice_at_256(trainer, external)}


def _describe(trainer: Trainer) -> dict[str, Any]:
    """The columns that are the same in all rows of a run."""
    names = films_of(trainer.train_loader).frame["name"].drop_duplicates()
    synthetic = int(names.str.fullmatch(SYNTHETIC).sum())
    return {
        **{name: getattr(trainer.config, name) for name in SETTINGS},
        "seed": trainer.config.seed,
        "real": len(names) - synthetic,
        "synthetic": synthetic,
        "parameters": count_parameters(trainer.model),
        "commit": trainer.commit,
    }


def films_of(loader: Loader) -> LungDataset:
    """The films that a trainer's loader gives."""
    films = loader.dataset
    assert isinstance(films, LungDataset)
    return films


def dice_at_256(trainer: Trainer, frame: pd.DataFrame) -> float | None:
    """Mean Dice of films at 256 px, which compares networks of different sizes; None without films."""
    if frame.empty:
        return None
    batches = trainer.outputs(make_loader(LungDataset(frame, trainer.config.size), 32))
    probs = (prob for logits, _ in batches for prob in logits.float().sigmoid().cpu().numpy()[:, 0])
    scores = []
    for prob, path in zip(probs, frame["mask"], strict=True):
        pred = (resize_prob(prob, 256) > 0.5).astype(np.uint8)
        scores.append(dice(pred, resize_mask(read_mask(path), 256)))
    return float(np.mean(scores))


def fingerprint(data: str | Path) -> str:
    """Of a prepared set's films and splits, 12 hexadecimal digits."""
    films = read_manifest(data)[["name", "split", "pixels"]]
    return hashlib.sha256(films.to_csv(index=False).encode()).hexdigest()[:12]


def read_table(path: str | Path, columns: Sequence[str] = STUDY_COLUMNS) -> pd.DataFrame:
    """A study's table, empty if there is none yet.

    Raises:
        ValueError: its columns are those of another version, or it is no table at all.
    """
    if not Path(path).exists():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        table = pd.DataFrame()
    if tuple(table) != columns:
        odd = ", ".join(sorted(set(table) ^ set(columns))[:5])
        raise ValueError(
            f"{path} was written by another version ({odd or 'other order of columns'}): move it away to start anew"
        )
    return table


def write_rows(
    path: str | Path, rows: list[dict[str, Any]], *, append: bool = False, columns: Sequence[str] = STUDY_COLUMNS
) -> None:
    """Writes a study's table, or adds to it; a kill leaves it without these rows or with all of them."""
    path = Path(path)
    table = pd.DataFrame(rows, columns=columns).round({**dict.fromkeys(MEASURES, 5), "seconds": 1})
    old = path.read_bytes() if append and path.exists() else b""
    write_bytes(path, old + table.to_csv(index=False, header=not old).encode())


def do_missing(
    name: str, path: Path, plan: Plan, train: Callable, jobs: int | None, columns: Sequence[str] = STUDY_COLUMNS
) -> pd.DataFrame:
    """Does those runs of a plan that a study's table lacks, beside each other; returns the table.

    Args:
        name: of the study.
        path: of its table.
        plan: of each run what ``train`` takes, and what the table must say of it where it has it.
        train: gives a run's rows.
        jobs: see :func:`tuning.studies.run_study`.
        columns: of the table.

    Raises:
        ValueError: the table is of another version, or has a run of other settings or other films.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = read_table(path, columns).drop_duplicates(["run", "seed"]).set_index(["run", "seed"])
    for key in plan.keys() & set(ended.index):
        was, planned = ended.loc[key], plan[key][1]
        changed = [
            f"{column} was {was[column]}, is {value}" for column, value in planned.items() if was[column] != value
        ]
        if changed:
            said = "; ".join(changed)
            raise ValueError(f"{path}: run {key[0]!r} was another: {said}; name another --out or move the table away")
    tasks = [task for key, (task, _) in plan.items() if key not in ended.index]
    done = beside(train, tasks, jobs)
    for rows in tqdm(done, name, len(plan), initial=len(plan) - len(tasks), unit="run", disable=None):
        write_rows(path, [{"study": name, **row} for row in rows], append=True, columns=columns)
    return read_table(path, columns)


def beside(function: Callable, tasks: list[tuple], jobs: int | None = None) -> Iterator:
    """The function's results for the tasks, as they come, from single-threaded processes, each with one of the GPUs.

    Args:
        function: what is done, importable.
        tasks: its arguments.
        jobs: processes; one per GPU, or per core where there is none, if not given. 1 is this process.
    """
    gpus = gpu_names()
    jobs = jobs or len(gpus) or os.cpu_count() or 1
    if jobs == 1:
        yield from (function(*task) for task in tasks)
        return
    context, jobs = multiprocessing.get_context("spawn"), max(1, min(jobs, len(tasks)))
    turns = context.SimpleQueue()
    for turn in range(jobs):
        turns.put(gpus[turn % len(gpus)] if gpus else "")
    pool = ProcessPoolExecutor(jobs, context, _start, (turns,))
    try:
        for future in as_completed([pool.submit(function, *task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(turns: SimpleQueue) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = turns.get()  # before anything here has asked CUDA
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is killed: nobody would write down what it finds."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _outputs(trainer: Trainer) -> Outputs:
    return [(logits.float().cpu(), truth.cpu()) for logits, truth in trainer.outputs(trainer.val_loader)]
