"""All about a card, each part bounded in time: agreement, speed, time to a Dice, resume, two cards.

    python -m benchmarks.gpu --pack PACK --data segmentation      (once, anywhere: the films in one file of ≤ 40 MiB)
    python -m benchmarks.gpu --data PACK --out results/gpu/NAME.json

Each part has a share of the time, and what it finds is written as it comes: a stopped run keeps what it has, and what
fails is told in its place. The pack holds the training and validation films of Montgomery and Shenzhen, never those of
the tests. It is no part of the repository, whose licence lets no film in. ``--device cpu --quick`` tries every part in
seconds.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from benchmarks.common import ROOT, add_json, command, machine, make_parser, read_json, write_json
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset, make_sampler, read_manifest
from kaggle_utils.hardware import choose_device, choose_precision, processors
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.loss import make_loss
from kaggle_utils.metrics import dice
from kaggle_utils.model import UNet, count_parameters
from kaggle_utils.trainer import Trainer, build_model, make_trainer
from kaggle_utils.training import DeviceLoader, read_checkpoint

SOURCES = ("montgomery", "shenzhen")
MOST_BYTES = 40 << 20  # of a pack
TARGETS = {"pooled": 0.95, "montgomery": 0.975}  # mean validation Dice


@dataclass(frozen=True)
class Bench:
    """What is measured on, and how thoroughly."""

    data: Path  # the prepared set, unpacked
    folder: Path  # for runs
    out: Path  # of the results
    device: torch.device
    quick: bool

    @property
    def config(self) -> TrainConfig:
        """The default recipe on this device."""
        config = TrainConfig(device=str(self.device), augment_on="device", sources=SOURCES)
        return replace(config, size=32, base_channels=2, depth=2, epochs=1) if self.quick else config

    def keep(self, part: str, result: dict[str, Any]) -> None:
        """Writes what a part has found so far."""
        write_json(self.out, read_json(self.out) | {part: result})

    def free(self) -> None:
        """Gives back what PyTorch keeps of the device's memory: other processes, or larger batches, need it."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_mib(self) -> float | None:
        """Most memory that tensors had on the device since the last call."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 1)

    @property
    def training_seconds(self) -> float:
        """Most that a training may take; where all is only tried, the machine may be busy."""
        return 600 if self.quick else 60

    def limit(self, seconds: float) -> float:
        """By the clock, the moment when a part must end."""
        return time.perf_counter() + (seconds / 100 if self.quick else seconds)


def pack(data: Path, out: Path) -> None:
    """Writes the films to learn from and to validate on into one file: WebP of quality 90, masks as they are."""
    frame = read_manifest(data)
    frame = frame[frame["source"].isin(SOURCES) & frame["split"].isin(["train", "val"])]
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("manifest.csv", frame.drop(columns=["image", "mask"]).to_csv(index=False))
        for row in frame.itertuples():
            _, film = cv2.imencode(".webp", cv2.imread(row.image, cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_WEBP_QUALITY, 90])
            archive.writestr(f"{row.split}/image/{row.name}.webp", film.tobytes())
            archive.write(row.mask, f"{row.split}/mask/{row.name}.png")
    size = out.stat().st_size
    print(f"{out}: {len(frame)} films, {size / 2**20:.1f} MiB")
    if size > MOST_BYTES:
        raise ValueError(f"{out} has {size / 2**20:.0f} MiB, more than 40: prepare the films at a smaller size")


def unpack(data: Path, folder: Path) -> Path:
    """The prepared set of a pack, its films as PNG again; or of a folder with one, which Kaggle may have unpacked."""
    if manifest := next(data.rglob("manifest.csv"), None):
        if not any(manifest.parent.glob("*/image/*.webp")):
            return manifest.parent
        shutil.copytree(manifest.parent, folder)
    elif file := data if data.is_file() else next(data.rglob("*.zip"), None):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    else:
        raise SystemExit(f"{data}: neither a pack (--pack makes one) nor a prepared set")
    for path in folder.glob("*/image/*.webp"):
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        path.unlink()
    return folder


def card(bench: Bench) -> dict[str, Any]:
    """The card and the versions."""
    about: dict[str, Any] = {"machine": machine("torch"), "processors": processors(), "command": command()}
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        about |= {
            "card": card.name,
            "cards": torch.cuda.device_count(),
            "memory_gib": round(card.total_memory / 2**30, 1),
        }
        about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about | {"precision": choose_precision(bench.device)}


def agreement(bench: Bench) -> dict[str, Any]:
    """Masks of the device beside those of the CPU in float32, by the weights that ship: Dice of each film."""
    paths = read_manifest(bench.data).query("split == 'val'")["image"].head(4 if bench.quick else 24)
    films = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths]
    before = os.environ.get("UNET_LUNG_PRECISION")
    masks = {}
    try:
        for name, precision in (("cpu", "fp32"), (str(bench.device), "auto"), (f"{bench.device} fp32", "fp32")):
            os.environ["UNET_LUNG_PRECISION"] = precision
            masks[name] = LungSegmenter(device=name.split()[0]).masks(films)
    finally:
        os.environ.pop("UNET_LUNG_PRECISION")
        if before:
            os.environ["UNET_LUNG_PRECISION"] = before
    found = {}
    for name, own in masks.items():
        scores = [dice(mask, other) for mask, other in zip(own, masks["cpu"])]
        found[name] = {"mean": round(float(np.mean(scores)), 5), "worst": round(min(scores), 5)}
    return {
        "films": len(films),
        "dice_with_cpu_fp32": found,
        "agree": all(row["mean"] > 0.999 for row in found.values()),
    }


def speeds(bench: Bench) -> dict[str, Any]:
    """Training images/s by size, batch, precision and mode; share of the time that films take."""
    own, end = choose_precision(bench.device), bench.limit(150)
    rows: list[dict[str, Any]] = []
    for size in (32,) if bench.quick else (384, 256, 512):
        frame = read_manifest(bench.data).query("split == 'train'")
        films = LungDataset(frame, size)
        for batch in (4,) if bench.quick else (8, 32, 128, 256):
            others = ("fp32", "bf16", "fp16") if batch == 32 else ()
            for precision in dict.fromkeys((own, *others)):
                for mode in ("eager", "graph") if precision == own else ("eager",):
                    if time.perf_counter() > end:
                        return {"rows": rows, "cut": "the time was up"}
                    settings = {"size": size, "batch_size": batch, "precision": precision}
                    rows.append({**settings, "mode": mode, **_speed(bench, films, settings, mode)})
                    bench.keep("speeds", {"rows": rows})
    return {"rows": rows}


def compiled(bench: Bench) -> dict[str, Any]:
    """The same of a compiled network, whose compilation takes its time: one size and batch."""
    settings = {"size": 32 if bench.quick else 384, "batch_size": 4 if bench.quick else 32}
    films = LungDataset(read_manifest(bench.data).query("split == 'train'"), settings["size"])
    if bench.device.type == "cpu":
        return settings | {"skipped": "for GPUs; on a CPU it needs a C++ compiler"}
    start = time.perf_counter()
    row = _speed(bench, films, settings | {"precision": choose_precision(bench.device)}, "compile")
    return settings | row | {"seconds_in_all": round(time.perf_counter() - start, 1)}


def _speed(bench: Bench, films: LungDataset, settings: dict[str, Any], mode: str) -> dict[str, Any]:
    """Steps for a second or so, with films and again with one batch; what can't be done is a result too."""
    config = replace(bench.config, **settings, graph=mode == "graph", compile=mode == "compile")
    bench.free()
    bench.peak_mib()
    try:
        sampler = make_sampler(films, config.batch_size, shuffle=True)
        loader = DeviceLoader(films, config.batch_size, bench.device, sampler, config.augment)
        trainer = Trainer(build_model(config), make_loss(config.loss), loader, loader, config)
        trainer.model.train()
        batches = _whole_batches(loader)
        for _ in range(2 if bench.quick else 8):
            trainer._train_step(next(batches))
        one = next(batches)
        fed, still = _rate(bench, trainer, lambda: next(batches)), _rate(bench, trainer, lambda: one)
    except RuntimeError as error:  # out of memory, a format that the card lacks
        return {"images_per_s": None, "why_not": _said(error)}
    return {
        "images_per_s": round(fed, 1),
        "data_share": round(max(0.0, 1 - fed / still), 3),
        "peak_mib": bench.peak_mib(),
    }


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _whole_batches(loader: DeviceLoader) -> Iterator[dict]:
    """Batches without end, none of them an epoch's smaller last one."""
    whole = min(loader.batch, len(loader.dataset))
    epoch = 0
    while True:
        loader.sampler.epoch = epoch
        yield from (batch for batch in loader if len(batch["name"]) == whole)
        epoch += 1


def _rate(bench: Bench, trainer: Trainer, batch: Callable[[], dict]) -> float:
    """Images a second."""
    bench.wait()
    start, films, seconds = time.perf_counter(), 0, 0.05 if bench.quick else 1.2
    while time.perf_counter() - start < seconds:
        for _ in range(2 if bench.quick else 5):
            one = batch()
            trainer._train_step(one)
            films += len(one["name"])
        bench.wait()
    return films / (time.perf_counter() - start)


def classic(bench: Bench) -> dict[str, Any]:
    """The 31M-parameter U-Net of the paper's widths at 572 px; NVIDIA's UNet_Medical on an A100: 119 images/s."""
    size, width = (32, 4) if bench.quick else (572, 64)
    about = {"size": size, "parameters": count_parameters(UNet(base_channels=width, up="transposed"))}
    about["precision"] = choose_precision(bench.device)
    rows: list[dict[str, Any]] = []
    for batch in (2,) if bench.quick else (1, 8):
        config = replace(bench.config, size=size, batch_size=batch)
        bench.free()
        bench.peak_mib()
        films = {
            "image": torch.randn(batch, 1, size, size, device=bench.device),
            "mask": (torch.rand(batch, 1, size, size, device=bench.device) < 0.25).float(),
            "name": ["noise"] * batch,
            "source": [SOURCES[0]] * batch,
        }
        model = UNet(base_channels=width, up="transposed")
        trainer = Trainer(model, make_loss(config.loss), [films], [films], config)  # type: ignore[arg-type]
        trainer.model.train()
        for _ in range(3):
            trainer._train_step(films)
        rate = _rate(bench, trainer, lambda films=films: films)  # type: ignore[misc]
        rows.append({"batch_size": batch, "images_per_s": round(rate, 1), "peak_mib": bench.peak_mib()})
        bench.keep("classic", about | {"rows": rows})
    return about | {"rows": rows}


def inference(bench: Bench) -> dict[str, Any]:
    """Images/s of the weights that ship, with the mirrored film and without, resizing included."""
    path = read_manifest(bench.data).query("split == 'val'")["image"].iloc[0]
    film, found = cv2.imread(path, cv2.IMREAD_GRAYSCALE), {}
    for flip in (False, True):
        segmenter = LungSegmenter(device=str(bench.device), flip=flip)
        for batch in (1, 2) if bench.quick else (1, 8, 32):
            films = [film] * batch
            segmenter.probabilities(films)
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < (0.05 if bench.quick else 1.5):
                segmenter.probabilities(films)
                done += batch
            name = f"batch {batch}" + (", mirrored too" if flip else "")
            found[name] = round(done / (time.perf_counter() - start), 1)
    return {"size": segmenter.size, "images_per_s": found}


def time_to_dice(bench: Bench) -> dict[str, Any]:
    """Seconds from films on the disk to each target, five seeds; validation counts, as it does in a run."""
    end, runs = bench.limit(150), []
    for seed in range(1 if bench.quick else 5):
        epochs = 2 if bench.quick else 40
        config = replace(bench.config, seed=seed, epochs=epochs, batch_size=4 if bench.quick else 16, lr=4e-3)
        config = config if bench.quick else replace(config, size=256)
        start = time.perf_counter()
        trainer = make_trainer(bench.data, None, config)
        loading = time.perf_counter() - start
        reached: dict[str, Any] = dict.fromkeys(TARGETS)

        def on_epoch(row: dict, trainer=trainer, reached=reached, loading=loading) -> bool:
            scores = by_source(trainer)
            for name, target in TARGETS.items():
                if reached[name] is None and scores[name] >= target:
                    reached[name] = round(loading + row["seconds"], 2)
            return None not in reached.values() or time.perf_counter() > end

        history = trainer.fit(on_epoch)
        run = {"seed": seed, "loading_s": round(loading, 2), "seconds": reached, "epochs": len(history)}
        runs.append(run | {"best_val_dice": round(history["val_dice"].max(), 5)})
        bench.keep("time_to_dice", {"targets": TARGETS, "runs": runs})
        if time.perf_counter() > end:
            break
    return {"targets": TARGETS, "runs": runs, "peak_mib": bench.peak_mib()}


def by_source(trainer: Trainer) -> dict[str, float]:
    """Mean validation Dice of all films, ``pooled``, and of each set's."""
    rows = []
    for (logits, truth), batch in zip(trainer.outputs(trainer.val_loader), trainer.val_loader):
        pred, true = ((tensor.flatten(1) > 0).float() for tensor in (logits, truth))
        scores = 2 * (pred * true).sum(1) / (pred.sum(1) + true.sum(1))
        rows += zip(batch["source"], scores.tolist())
    table = pd.DataFrame(rows, columns=["source", "dice"])
    return {"pooled": table["dice"].mean(), **table.groupby("source")["dice"].mean()}


def _start(bench: Bench, out: str, *options: str, processes: int = 1) -> subprocess.Popen:
    """A training by the command, its words in a log beside its folder."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    config = replace(bench.config, device=bench.device.type, epochs=3 if bench.quick else 12)
    config = config if bench.quick else replace(config, size=256)
    words = [*config.options, "--data", str(bench.data), "--out", str(bench.folder / out), *options]
    command = [sys.executable, *launcher, "-m", "kaggle_utils", "train", *words]
    with (bench.folder / f"{out}.log").open("w") as log:
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)


def _end(bench: Bench, run: subprocess.Popen, out: str, seconds: float) -> None:
    """Waits for a training, so long at most.

    Raises:
        RuntimeError: it failed, or was ended as it took longer; the message has its last line.
    """
    try:
        status: object = run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.terminate()  # torchrun ends its processes
        run.wait(30)
        status = f"not at its end after {seconds:.0f} s"
    if status:
        lines = (bench.folder / f"{out}.log").read_text().split("\n")
        said = next((line for line in reversed(lines) if line.startswith("unet-lung")), lines[-1])
        raise RuntimeError(f"{status}: {said}")


def resume(bench: Bench) -> dict[str, Any]:
    """Kills a run after its first checkpoint and goes on with it."""
    last = bench.folder / "killed" / "last.pt"
    run, end = _start(bench, "killed"), time.perf_counter() + bench.training_seconds
    while not last.exists() and run.poll() is None and time.perf_counter() < end:
        time.sleep(0.02)
    if run.poll():
        _end(bench, run, "killed", 1)
    run.kill()
    run.wait()
    before = len(read_checkpoint(last)["history"])
    _end(bench, _start(bench, "killed", "--resume"), "killed", bench.training_seconds)
    history = read_checkpoint(last)["history"]
    return {"epochs_before": before, "epochs": len(history), "val_dice": round(history[-1]["val_dice"], 4)}


def processes(bench: Bench) -> dict[str, Any]:
    """Images/s and seconds to a Dice of two processes beside one, by nccl on two cards; on a CPU by gloo, to try it."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"skipped": "one card"}
    found: dict[str, Any] = {}
    for count, batch in ((1, 16), (2, 16)) if bench.quick else ((1, 16), (2, 16), (2, 8)):  # radiographs of each
        name = f"{count} of batch {batch}"
        try:
            _end(bench, _start(bench, name, "--batch-size", str(batch), processes=count), name, bench.training_seconds)
            history = pd.read_csv(bench.folder / name / "history.csv")
            reached = history.loc[history["val_dice"] >= TARGETS["pooled"], "seconds"]
            found[name] = {
                "images_per_s": round(history["images_per_s"].median(), 1),
                "seconds": round(reached.iloc[0], 2) if len(reached) else None,
            }
        except RuntimeError as error:
            found[name] = {"failed": _said(error)}
        bench.keep("processes", found)
    return found | faster(found)


def faster(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Which has most images/s, and which was first at the Dice; empty where none has."""
    rates, seconds = (
        {name: row[key] for name, row in found.items() if row.get(key)} for key in ("images_per_s", "seconds")
    )
    return {
        "most_images_per_s": max(rates, key=rates.__getitem__, default=""),
        f"first_at_{TARGETS['pooled']}": min(seconds, key=seconds.__getitem__, default=""),
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {  # the most wanted first
    "card": card,
    "agreement": agreement,
    "time_to_dice": time_to_dice,
    "speeds": speeds,
    "classic": classic,
    "inference": inference,
    "resume": resume,
    "processes": processes,
    "compiled": compiled,
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the pack, a folder with it, or a prepared one")
    parser.add_argument("--out", type=Path, help="JSON to write; parts that are there are measured again")
    parser.add_argument("--pack", type=Path, help="write the pack of the prepared folder, and measure nothing")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts")
    parser.add_argument("--minutes", type=float, default=8, help="after which no part is begun")
    parser.add_argument("--quick", action="store_true", help="tiny networks, in seconds: whether all parts work")
    args = parser.parse_args()
    if args.pack:
        return pack(args.data, args.pack)
    if not args.out:
        parser.error("--out is needed")
    device, start = choose_device(args.device), time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(unpack(args.data, folder / "set"), folder, args.out, device, args.quick)
        for name in args.only or PARTS:
            if time.perf_counter() - start > 60 * args.minutes:
                add_json(args.out, name, {"skipped": "the minutes were up"})
                continue
            begun = time.perf_counter()
            bench.keep(name, {})
            try:
                result = PARTS[name](bench)
            except Exception as error:  # one part's failure is a result: the card may be lent for minutes only
                result = read_json(args.out)[name] | {"failed": _said(error)}
            add_json(args.out, name, result | {"took_s": round(time.perf_counter() - begun, 1)})
            bench.free()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(sorted(read_json(args.out))))


if __name__ == "__main__":
    main()
