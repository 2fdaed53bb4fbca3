"""Training: a Trainer, and checkpoints from which a killed run resumes to the same weights.

By one process, or by those that torchrun starts: see :mod:`distributed`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from . import distributed
from .config import TrainConfig, code_version
from .data import check_batch, normalise
from .files import find_weights, write_bytes
from .hardware import choose_device, choose_precision, prepare, to_device
from .infer import LungSegmenter
from .loss import make_loss
from .metrics import overlap
from .model import NORMALISATION, UNet, count_parameters, read_header, save_weights, start_from, update_header
from .quality.fit import MOST, Item, fit_quality
from .splits import LICENCES
from .training import (
    Epoch,
    Loader,
    MovingAverage,
    RecordedStep,
    check_folder,
    damaged,
    describe_films,
    make_loaders,
    read_checkpoint,
    record_cuda,
    select_films,
    write_checkpoint,
)

CHECKPOINT_SECONDS = 300  # of training at most that a kill loses: epochs may be long
FUSED = ("cuda",)  # devices on which the optimiser is one kernel; for CPUs PyTorch reads its counters one by one
RECORDED = {"cuda": record_cuda}  # how a step is recorded, by device
READ_EVERY = 20  # steps between two looks at the loss, for each of which training waits until the device is idle
# What of a trainer a checkpoint holds: numbers as they are, and the state of what has learned.
_COUNTED = ("history", "step", "seconds", "about")
_LEARNED = ("model", "ema", "optimizer", "scaler")


class _Unread(NamedTuple):
    """A step whose loss lies on the device."""

    loss: torch.Tensor
    own: int  # films of this process
    films: float  # of all
    names: list[str]


class Trainer:
    """Fits a model, keeps the best and the last checkpoint, and resumes where a killed run stopped.

    Args:
        model: a network from images ``(B, 1, H, W)`` to logits ``(B, C, H, W)``: C is 1, or one for each of the
            configuration's sources, of which a film's own is compared with its mask.
        loss: a module of ``(logits, truth)``, both ``(B, 1, H, W)``.
        train_loader: yields dicts of image, mask, name and source; of several processes each one's share, as
            :func:`data.make_loader` gives it.
        val_loader: the same, in a fixed order.
        config: see :class:`TrainConfig`; batch and rate are those of all processes together.
        out: folder for ``last.pt`` (to resume), ``best.safetensors`` (to use), ``history.csv`` and ``config.json``;
            None writes nothing.
        about: of the data: kept in the weights' header, and compared when a run is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        train_loader: Loader,
        val_loader: Loader,
        config: TrainConfig,
        out: str | Path | None = None,
        about: dict[str, Any] | None = None,
    ):
        self.config, self.loss = config, loss
        self.train_loader, self.val_loader = train_loader, val_loader
        self.device = choose_device(config.device)
        prepare(self.device)
        self.precision = choose_precision(self.device) if config.precision == "auto" else config.precision
        shared = distributed.share_statistics(model, self.device)
        self.model = shared.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        step_model = distributed.average_gradients(self.model)
        self.step_model = torch.compile(step_model) if config.compile else step_model
        self.ema = MovingAverage(self.model, config.ema_decay)
        self.optimizer = make_optimizer(self.model, config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.history: list[dict[str, float]] = []
        self.step, self.seconds, self.rate = 0, 0.0, config.lr
        self.begun, self.saved = Epoch(), 0.0  # how far the present epoch is; seconds at the last checkpoint
        self.unread: list[_Unread] = []
        self.learn: Callable[..., torch.Tensor] = self._learn
        if config.graph and self.device.type in RECORDED and distributed.world_size() == 1:
            self.learn = RecordedStep(self._learn, RECORDED[self.device.type])
        self.about, self.commit = about or {}, code_version()
        self.out = Path(out) if out and distributed.is_main() else None

    @property
    def best_model(self) -> nn.Module:
        """The weights that are validated and kept: the moving average, if there is one."""
        return self.ema.module if self.config.ema_decay else self.model

    @property
    def best_dice(self) -> float:
        """The highest validation Dice so far."""
        return max((row["val_dice"] for row in self.history), default=-1.0)

    @property
    def time_left(self) -> str:
        """How long the run goes on, from how long it has taken so far: ``about 3 min left``; empty at its ends."""
        done = self.progress()
        minutes = self.seconds / 60 * (1 / done - 1) if done else 0
        if not minutes:
            return ""
        return f"about {minutes:.0f} min left" if minutes >= 1 else "under 1 min left"

    def fit(self, on_epoch: Callable[[dict[str, float]], bool] | None = None) -> pd.DataFrame:
        """Trains to the end of the epochs, the time budget or the patience.

        Args:
            on_epoch: called with each new row of the history; training ends when it says True.

        Returns:
            One row per epoch: epoch, lr, train_loss, val_loss, val_dice, val_iou, val_accuracy, val_foreground
            (predicted share of lung), images_per_s (training alone) and seconds (since the start, over all resumes).

        Raises:
            ValueError: the first batch is not what a network can learn from; the message says what is wrong. Or there
                are several processes, and they differ in settings, films or the checkpoint they resume from.
            FloatingPointError: the loss is not finite; the message names the films.
        """
        distributed.check_alike({**asdict(self.config), "data": self.about, "step": self.step})
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            write_bytes(self.out / "config.json", json.dumps(asdict(self.config), indent=2).encode())
        if not self.step:
            self._check(next(iter(self.train_loader)))
        silent = None if distributed.is_main() else True  # None: only where there is no terminal
        # Not tqdm's own estimate, which knows of no budget.
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} epochs, {elapsed}{postfix}"
        bar = tqdm(total=self.config.epochs, initial=len(self.history), desc="train", bar_format=form, disable=silent)
        while not self._finished():
            row = self._epoch(len(self.history), bar)
            improved = row["val_dice"] > self.best_dice
            self.history.append(row)
            self.begun = Epoch(started=self.seconds)
            self._save(improved)
            bar.set_postfix_str(_words(f"Dice {row['val_dice']:.4f}", f"loss {row['train_loss']:.4f}", self.time_left))
            bar.update()
            if on_epoch and on_epoch(row):
                break
        bar.close()
        return pd.DataFrame(self.history)

    def validate(self, model: nn.Module | None = None) -> dict[str, float]:
        """Means over the validation films of loss, Dice, IoU, accuracy and predicted share of lung.

        The model's mode (training or evaluation) is put back as it was.
        """
        losses, counts = [], []
        for logits, truth in self.outputs(self.val_loader, model):
            losses += [self.loss(logits, truth)] * len(truth)  # the mean over these films
            counts.append(_count_pixels(logits > 0, truth > 0))
        rows = []
        for loss, (tp, fp, fn, tn) in zip(torch.stack(losses).tolist(), torch.cat(counts).tolist()):
            scores = overlap({"tp": tp, "fp": fp, "fn": fn, "tn": tn})
            rows.append({"loss": loss, **scores, "foreground": (tp + fp) / (tp + fp + fn + tn)})
        means = pd.DataFrame(distributed.gather(rows)).mean()
        return {f"val_{key}": float(means[key]) for key in ("loss", "dice", "iou", "accuracy", "foreground")}

    @torch.inference_mode()
    def outputs(self, loader: Loader, model: nn.Module | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and truth of each batch, both ``(B, 1, H, W)``; a film of another set gets the first set's head.

        The model's mode (training or evaluation) is put back as it was.
        """
        model = model or self.best_model
        was_training = model.training
        model.eval()
        for batch in loader:
            images, truth, heads = self._to_device(batch)
            with self._autocast():
                logits = _own_head(model(images), heads)
            yield logits, truth
        model.train(was_training)

    def resume(self, path: str | Path) -> None:
        """Takes everything from a checkpoint: a resumed run ends as an uninterrupted one, bit for bit on a CPU.

        Only a time budget breaks that: its learning rate follows the clock.

        Raises:
            ValueError: the checkpoint is damaged or was made with other settings or other films.
        """
        state = read_checkpoint(path, self.device)
        # How long to go on may change; what is learned, and how, may not.
        free = {"epochs", "time_budget_min", "patience", "workers", "device"}
        now, stored = asdict(self.config), asdict(state["config"])
        changed = [f"{name} = {stored[name]!r}" for name in stored.keys() - free if stored[name] != now[name]]
        if changed:
            raise ValueError(f"{path} was made with other settings: {', '.join(sorted(changed))}")
        if state["about"] != self.about:
            raise ValueError(
                f"{path} was trained on other films ({state['about']}, now {self.about}): choose another folder"
            )
        try:
            state["ema"].pop("n_averaged", None)  # of versions before 0.9
            for saved, ours in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups):
                saved |= {name: ours[name] for name in ("lr", "fused", "capturable")}  # those of this machine
            for name in _LEARNED:
                if state[name]:  # a scaler that was not needed on the machine before is empty
                    getattr(self, name).load_state_dict(state[name])
        except (LookupError, RuntimeError, ValueError) as error:
            raise damaged(path, f"its tensors aren't this network's: {error}") from None
        torch.set_rng_state(state["rng"].cpu())
        self.history, self.step, self.begun = state["history"], state["step"], state["begun"]
        self.seconds = self.saved = state["seconds"]
        self.ema.updates = self.step

    def progress(self) -> float:
        """Share of the run done, by steps or by the time budget, whichever is nearer to its end.

        Source: Li, Yumer & Ramanan 2020, "Budgeted Training": the learning rate should reach its end with the budget.
        """
        # Epochs streamed from shards by several processes differ in length: the present one's counts.
        by_steps = (len(self.history) + self.begun.batches / len(self.train_loader)) / self.config.epochs
        by_time = self.seconds / (self.config.time_budget_min * 60) if self.config.time_budget_min else 0.0
        return min(1.0, max(by_steps, by_time))

    def _finished(self) -> bool:
        scores, patience = [row["val_dice"] for row in self.history], self.config.patience
        if not scores or self.begun.batches:  # an epoch under way is ended
            return False
        since_best = len(scores) - 1 - scores.index(max(scores))
        return self.progress() >= 1 or bool(patience and since_best >= patience)

    def _epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        for order in (self.train_loader.sampler, self.train_loader.dataset):  # whichever decides it
            if hasattr(order, "epoch"):
                order.epoch = epoch
        # validate() puts the mode back, but a caller may have left the model in evaluation mode before.
        self.model.train()
        clock = time.perf_counter() - self.seconds
        for batch in self._batches_left():
            self._train_step(batch)
            self.seconds = distributed.of_main(time.perf_counter() - clock)
            if not self.unread:
                learned = self.begun.summary(self.seconds)
                words = _words(f"loss {learned['train_loss']:.4f}", _speed(learned), self.time_left)
                bar.set_postfix_str(words, refresh=False)
            if self.config.time_budget_min and self.progress() >= 1:
                break
            if self.seconds - self.saved >= CHECKPOINT_SECONDS:
                self._checkpoint()
        self._read_losses()
        self.seconds = distributed.of_main(time.perf_counter() - clock)
        learned, lr = self.begun.summary(self.seconds), self.rate
        scores = self.validate()
        self.seconds = distributed.of_main(time.perf_counter() - clock)
        row = {"epoch": epoch, "lr": lr, "train_loss": learned["train_loss"], **scores}
        return row | {"images_per_s": learned["images_per_s"], "seconds": self.seconds}

    def _batches_left(self) -> Iterator[dict]:
        """The epoch's batches that were not learned from before a run was stopped in the middle of it."""
        random_numbers = torch.get_rng_state()
        batches = iter(self.train_loader)
        for _ in islice(batches, self.begun.batches):
            pass
        if self.begun.batches:  # starting the loader has drawn from those that the network uses next
            torch.set_rng_state(random_numbers)
        return batches

    def _train_step(self, batch: dict) -> None:
        """Learns from a batch, and reads nothing from the device but every so often: it is never left without work."""
        self._set_rate(self.config.learning_rate(self.progress()))
        own = sum(map(bool, batch["name"]))  # a film without a name is there only for this process to take the step too
        (films,) = distributed.sums(own)
        # Gradients are averaged over processes; weighed by how many films each has, this is the mean over films.
        weight = own * distributed.world_size() / films
        loss = self.learn(*self._to_device(batch), *(() if weight == 1 else (weight,)))
        distributed.average_statistics(self.model)
        if self.config.ema_decay:
            self.ema.update()
        self.step, self.begun.batches = self.step + 1, self.begun.batches + 1
        self.unread.append(_Unread(loss, own, films, batch["name"]))
        if len(self.unread) >= READ_EVERY:
            self._read_losses()

    def _learn(self, images: torch.Tensor, truth: torch.Tensor, heads: torch.Tensor, weight: float = 1) -> torch.Tensor:
        """Forward, backward and the optimiser's step, all of it on the device; returns the loss."""
        with self._autocast():
            logits = _own_head(self.step_model(images), heads)
        loss = self.loss(logits, truth)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss * weight).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _set_rate(self, rate: float) -> None:
        """The learning rate of the next step; a recorded one finds it in a tensor."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _read_losses(self) -> None:
        """Counts the losses of the steps since the last time.

        Raises:
            FloatingPointError: one is not finite; the message names the films of that step.
        """
        steps, self.unread = self.unread, []
        if not steps:
            return
        losses = torch.stack([step.loss for step in steps]).tolist()
        totals = distributed.sums(*(loss * step.own for loss, step in zip(losses, steps)))
        for number, (step, total) in enumerate(zip(steps, totals), self.step - len(steps)):
            if not math.isfinite(total):
                names = ", ".join(filter(None, distributed.gather(step.names)))
                raise FloatingPointError(
                    f"the loss is {total / step.films} at step {number}, on {names}: look at these films, or "
                    f"try a lower lr than {self.config.lr} or precision fp32 instead of {self.precision}"
                )
            self.begun.add(total, step.films)

    def _check(self, batch: dict) -> None:
        images, truth, _ = self._to_device(batch)
        check_batch({"image": images, "mask": truth, "name": batch["name"]})

    def _to_device(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch's images and masks ``(B, 1, H, W)``, and the number of each film's head."""
        sources = self.config.sources
        heads = torch.tensor([sources.index(source) if source in sources else 0 for source in batch["source"]])
        images, truth, heads = (to_device(tensor, self.device) for tensor in (batch["image"], batch["mask"], heads))
        if images.dtype == torch.uint8:
            images, truth = normalise(images), truth.float()
        return images.to(memory_format=torch.channels_last), truth, heads

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def _save(self, improved: bool) -> None:
        if not self.out:
            return
        # The best weights first: a kill between the two writes leaves an older last.pt, which makes them again.
        if improved and isinstance(self.best_model, UNet):
            save_weights(self.out / "best.safetensors", self.best_model, self._header())
        write_bytes(self.out / "history.csv", pd.DataFrame(self.history).to_csv(index=False).encode())
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Writes ``last.pt``, in the first process."""
        self._read_losses()
        self.saved = self.seconds
        if not self.out:
            return
        state = {name: getattr(self, name) for name in _COUNTED}
        state |= {name: getattr(self, name).state_dict() for name in _LEARNED}
        state |= {"config": asdict(self.config), "begun": asdict(self.begun), "rng": torch.get_rng_state()}
        write_checkpoint(self.out / "last.pt", state)

    def _header(self) -> dict[str, Any]:
        last, model, sources = self.history[-1], self.best_model, self.config.sources
        assert isinstance(model, UNet)
        return {
            "size": self.config.size,
            "normalisation": NORMALISATION,
            "sources": list(sources),
            "heads": list(sources) if model.architecture["classes"] > 1 else [],
            "parameters": count_parameters(model),
            "validation": {"dice": round(last["val_dice"], 5), "epoch": last["epoch"]},
            "command": self.config.command,
            "commit": self.commit,
            "config": asdict(self.config),
            **self.about,
            "licence": self._licence(),
        }

    def _licence(self) -> list[str]:
        """Those of the sets learned from, and of the weights that the run started from."""
        own = [LICENCES[source] for source in self.config.sources if source in LICENCES]
        before = self.about.get("init", {}).get("licence", [])
        return list(dict.fromkeys([*own, *([before] if isinstance(before, str) else before)]))


def train(
    data: str | Path | list[str | Path], out: str | Path, config: TrainConfig, *, resume: bool = False
) -> Trainer:
    """Trains a U-Net on a prepared set; the whole of ``python -m kaggle_utils train``, also where torchrun starts it.

    Args:
        data: the prepared set, or several: each source is validated on in the first one that has films for it. Or one
            in shards (:mod:`scale.shards`), a folder or its ``s3://`` address, which is streamed.
        out: the run's folder, see :class:`Trainer`.
        config: see :class:`TrainConfig`; batch and rate are those of one process.
        resume: from ``out/last.pt``, if it is there.

    Returns:
        The trainer, its run finished, and an estimate of a mask's Dice fitted to its best weights, see
        :mod:`quality.fit`.

    Raises:
        FileExistsError: the folder holds another run and ``resume`` is not asked for.
        ValueError: no film is left of the wanted sources, or see :meth:`Trainer.fit`.
    """
    with distributed.processes(choose_device(config.device)):
        together = _of_all_processes(config, Path(out) / "last.pt", resume)
        trainer = make_trainer(data, out, together, resume=resume)
        # Logs and notebooks show no bar: a line for each epoch instead.
        silent = sys.stderr.isatty() or not distributed.is_main()
        trainer.fit(None if silent else partial(_say_epoch, trainer=trainer))
    if distributed.is_main():
        _fit_quality(trainer)
    return trainer


def _of_all_processes(config: TrainConfig, last: Path, resume: bool) -> TrainConfig:
    """Batch and rate for so many processes; a resumed run keeps those of its start, by however many it goes on."""
    if not (resume and last.exists()):
        return config.for_processes(distributed.world_size())
    return config.for_processes(max(1, read_checkpoint(last)["config"].batch_size // config.batch_size))


def _fit_quality(trainer: Trainer) -> None:
    """Fits the estimate of a mask's Dice to the best weights, on validation films, and keeps it in their header."""
    assert trainer.out
    best = trainer.out / "best.safetensors"
    segmenter = LungSegmenter(best, device=trainer.config.device)
    update_header(best, quality=fit_quality(_validation_films(trainer), segmenter))


def _validation_films(trainer: Trainer) -> Iterator[Item]:
    """Validation films as images again, evenly chosen where there are more than an estimate is fitted on."""
    batches = trainer.val_loader
    films = (film for batch in batches for film in zip(*(batch[key] for key in ("name", "source", "image", "mask"))))
    every = math.ceil(len(batches) * distributed.batch_share(trainer.config.batch_size) / MOST)
    for name, source, image, mask in islice(films, 0, None, every):
        if name:
            low, high = image.min(), image.max()
            gray = ((image - low) / (high - low).clamp_min(1e-6) * 255).round()
            yield Item(
                name, source, "none", 0, gray[0].cpu().numpy().astype(np.uint8), mask[0].cpu().numpy().astype(np.uint8)
            )


def _say_epoch(row: dict[str, float], trainer: Trainer) -> bool:
    scores = f"loss {row['train_loss']:.4f}", f"validation Dice {row['val_dice']:.4f}"
    said = _words(*scores, _speed(row), f"{row['seconds']:.0f} s", trainer.time_left)
    print(f"epoch {row['epoch'] + 1}/{trainer.config.epochs}: {said}", file=sys.stderr, flush=True)
    return False  # don't stop


def _speed(row: dict[str, float]) -> str:
    return f"{row['images_per_s']:.0f} films/s"


def _words(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def make_trainer(
    data: str | Path | list[str | Path],
    out: str | Path | None,
    config: TrainConfig,
    *,
    resume: bool = False,
    loss: nn.Module | None = None,
) -> Trainer:
    """The trainer that :func:`train` runs, its films loaded and its run not begun.

    Args:
        data, resume: see :func:`train`.
        config: batch and rate are those of all processes together.
        out: the run's folder; None writes nothing.
        loss: a loss of your own, a module of ``(logits, truth)``; the one that ``config.loss`` names if None. The name
            of its class goes into the weights' header.
    """
    last = check_folder(Path(out), resume) if out else None
    films, held_out = select_films(data, config)
    loaders = make_loaders(films, held_out, config)
    distributed.wait_for_all()
    torch.manual_seed(config.seed)
    model, about = build_model(config), describe_films(films, held_out)
    if config.init:
        about["init"] = start_from_weights(model, config)
    if loss is None:
        loss = make_loss(config.loss, dice_weight=config.dice_weight)
    else:
        about["loss"] = type(loss).__name__
    trainer = Trainer(model, loss, *loaders, config, out, about)
    if last and last.exists():
        trainer.resume(last)
    return trainer


def build_model(config: TrainConfig) -> UNet:
    """The U-Net of a configuration, with fresh weights."""
    return UNet(
        classes=len(config.sources) if config.heads else 1,
        base_channels=config.base_channels,
        depth=config.depth,
        norm=config.norm,
        up=config.up,
        patch=config.patch,
        conv=config.conv,
    )


def start_from_weights(model: UNet, config: TrainConfig) -> dict[str, Any]:
    """Gives a fresh network the weights that ``config.init`` names; returns what its own header keeps of theirs."""
    path = find_weights(config.init)
    start_from(model, config.sources if config.heads else config.sources[:1], path)
    header = read_header(path)
    kept = {name: header[name] for name in ("sources", "films", "command", "commit", "licence") if name in header}
    return kept | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, which decays the kernels of convolutions alone: not biases, nor the weights of normalisation.

    Where it is fused, the learning rate lies on the device, so that a recorded step can be told another.
    """
    fused = device.type in FUSED
    rate = torch.tensor(config.lr, device=device) if fused else config.lr
    capturable = fused and device.type == "cuda"
    kernels, others = ([p for p in model.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False))
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, weight_decay=config.weight_decay, fused=fused or None, capturable=capturable)


def _own_head(logits: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Of each film's logits ``(B, C, H, W)`` those of its own head, ``(B, 1, H, W)``."""
    if logits.shape[1] == 1:
        return logits
    return logits[torch.arange(len(heads), device=heads.device), heads].unsqueeze(1)


def _count_pixels(pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """True and false positives, false and true negatives of each film, ``int64 (B, 4)``, from ``bool (B, 1, H, W)``."""
    pred, truth = pred.flatten(1), truth.flatten(1)
    return torch.stack(
        [(pred & truth).sum(1), (pred & ~truth).sum(1), (~pred & truth).sum(1), (~pred & ~truth).sum(1)], 1
    )
