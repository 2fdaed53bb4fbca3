"""Settings: all that decides a training run, in one frozen dataclass; and what the header of weights may say of it.

It needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

THRESHOLD = 0.5  # probability above which a pixel is lung
PREPARED_SIDES = (8, 8192)  # px, least and most of prepared films
MOST_LUNG = 0.9  # of a film; a mask of more is none of lungs
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# What a set's masks are of: the lung fields that can be seen, or the lungs with what the heart hides.
CONVENTIONS = {"montgomery": "lung-field", "shenzhen": "lung-field", "jsrt": "lung-field", "kermany": "with-heart"}
FORMAT = "unet-lung/2"
NORMALISATION = "zero mean, unit deviation of each film (data.normalise)"
UNSEALED = "0" * 64  # where the checksum will be
SIDES = (16, 4096)  # px, the square that a network sees
# Settings by their names before version 0.9, which 0.9 still takes.
RENAMED = {
    "batch": "batch_size",
    "clip": "grad_clip",
    "ema": "ema_decay",
    "minutes": "time_budget_min",
    "suspects": "flagged_masks",
    "width": "base_channels",
}


def setting(
    default: object,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float, float] | None = None,
    of: type = str,
) -> Any:
    """A field of a configuration.

    Args:
        default: its value where none is given; its type is the setting's.
        about: unit, range or reason, which is also its help text on the command line.
        choices: the words that it can be; none means any.
        within: the lowest and the highest number that it can be.
        of: what a tuple holds.
    """
    return field(default=default, metadata={"about": about, "choices": choices, "within": within, "of": of})


def check_settings(config: Any) -> None:
    """Checks each setting of a configuration against its type, its choices and its range.

    Raises:
        ValueError: what it is, and what it could be.
    """
    for f in fields(config):
        value, choices, within = getattr(config, f.name), f.metadata["choices"], f.metadata["within"]
        kind = (int, float) if isinstance(f.default, float) else type(f.default)
        if not isinstance(value, kind) or isinstance(value, bool) != isinstance(f.default, bool):
            raise ValueError(f"{f.name} is of type {type(f.default).__name__}, not {value!r}")
        if choices and value not in choices:
            raise ValueError(f"{f.name} is one of {', '.join(choices)}, not {value!r}")
        if within and not within[0] <= value <= within[1]:  # so is a NaN told
            raise ValueError(f"{f.name} is in [{within[0]:g}, {within[1]:g}], not {value}")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Stored whole in each checkpoint, and rebuilt from there.

    Where the defaults are from (``results/tuning/STUDY.csv``, validation films, three seeds): ``augment`` from
    ``augmentation`` and ``longer``: light was ahead in 8 and in 32 epochs. ``dice_weight`` from ``loss``: best of the
    mixtures, level with cross-entropy alone. Both together were not behind in a whole run at 384 px, one seed.
    ``base_channels``, ``depth``, ``patch`` and ``size`` are the knee of ``results/pareto.csv`` (one seed). In
    ``optimisation``, 8 epochs, ``weight_decay`` and ``ema_decay`` made no difference; higher ``lr`` and smaller
    ``batch_size`` were ahead, which whole runs have yet to show, and are left as they were.
    """

    # data
    sources: tuple[str, ...] = setting(("montgomery", "shenzhen"), "sets to train on; JSRT is for external tests")
    flagged_masks: bool = setting(
        False, "train on the masks of splits/flagged_masks.csv too, which include heart or stomach or are displaced"
    )
    heads: bool = setting(
        True, "one output per set, which learns from that set's masks alone: annotators follow different rules"
    )
    shares: tuple[float, ...] = setting(
        (),
        "of a batch, one number for each source: 1 1 draws two sets evenly; by their sizes if none are given",
        of=float,
    )
    epoch_films: int = setting(0, "radiographs per epoch, if there are so many; 0 is all", within=(0, 1e9))
    films: int = setting(0, "train on this many radiographs, drawn by the seed; 0 is all", within=(0, 1e9))
    size: int = setting(384, "px, side of the square the network sees", within=SIDES)
    augment: str = setting(
        "light",
        "how radiographs are varied in training, see augment.augmentation",
        choices=("none", "light", "clinic", "full"),
    )
    # network
    base_channels: int = setting(16, "channels of the first level, doubled at each level below", within=(1, 1024))
    depth: int = setting(3, "how many times the resolution is halved", within=(1, 8))
    norm: str = setting("batch", "normalisation after each convolution", choices=("batch", "group", "instance"))
    up: str = setting("bilinear", "how the resolution is doubled again", choices=("bilinear", "transposed"))
    patch: int = setting(
        2,
        "px, side of the patches that the first convolution sees as channels; 1 is none, as in the paper",
        within=(1, 16),
    )
    conv: str = setting("plain", "plain, or separable: depthwise and 1x1 convolutions", choices=("plain", "separable"))
    init: str = setting(
        "", "weights to start from: a file, or lungs, which ship; a head that they lack starts as their first one"
    )
    # training
    loss: str = setting("bce_dice", "see loss.make_loss", choices=("bce", "dice", "bce_dice", "tversky", "focal"))
    dice_weight: float = setting(0.25, "in [0, 1], the rest is cross-entropy's", within=(0, 1))
    epochs: int = setting(60, "passes over the training radiographs", within=(1, 100_000))
    time_budget_min: float = setting(
        0.0, "stop after so many minutes, with the learning rate at its end; 0 is no budget", within=(0, 1e6)
    )
    batch_size: int = setting(
        8, "radiographs per step and process: n GPUs learn from n times as many, at n times the rate", within=(1, 4096)
    )
    lr: float = setting(2e-3, "peak learning rate of AdamW; of n processes n times as high", within=(0, 10))
    weight_decay: float = setting(1e-2, "of AdamW, decoupled", within=(0, 10))
    warmup: float = setting(0.05, "share of the run during which the learning rate rises", within=(0, 0.9))
    grad_clip: float = setting(1.0, "largest norm of the gradient", within=(1e-6, 1e6))
    ema_decay: float = setting(
        0.99, "decay per step of the averaged weights, which are the ones kept; 0 is none", within=(0, 1)
    )
    patience: int = setting(0, "epochs without a better validation Dice before stopping, 0 is never", within=(0, 1e9))
    seed: int = setting(0, "of initial weights, order and augmentation", within=(0, 2**32 - 1))
    # hardware
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    precision: str = setting(
        "auto", "number format; auto is the fastest that the hardware has", choices=("auto", "fp32", "bf16", "fp16")
    )
    workers: int = setting(
        -1,
        "processes that load data; -1 is none on a CPU, which training needs itself, and one per core with a GPU",
        within=(-1, 1024),
    )
    augment_on: str = setting(
        "auto",
        "where they are varied: auto is on a GPU that they fit onto, for none, light and clinic, else on the CPU",
        choices=("auto", "cpu", "device"),
    )
    graph: bool = setting(
        False, "record the step once for the GPU to repeat by itself, for one process: small batches wait less"
    )
    compile: bool = setting(False, "torch.compile: minutes of waiting, then 10-30 percent faster; for long runs")

    def __post_init__(self):
        check_settings(self)
        if not self.sources or not all(isinstance(source, str) for source in self.sources):
            raise ValueError(f"sources are the names of one set or more, not {self.sources!r}")
        if self.shares and (len(self.shares) != len(self.sources) or not all(share > 0 for share in self.shares)):
            raise ValueError(f"shares are a positive number for each of {len(self.sources)} sources, not {self.shares}")
        if not DEVICES.fullmatch(self.device):
            raise ValueError(f"device is auto, cpu, mps, cuda or cuda:N, not {self.device!r}")

    @property
    def options(self) -> list[str]:
        """Every option of ``python -m kaggle_utils train`` that differs from its default."""
        words = []
        for f in fields(self):
            value, option = getattr(self, f.name), f.name.replace("_", "-")
            if value == f.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
        return words

    @property
    def command(self) -> str:
        """The command line of this run by one process, without --data and --out."""
        return " ".join(["python -m kaggle_utils train", *self.options])

    def for_processes(self, n: int) -> TrainConfig:
        """The settings of n processes together: n times the radiographs per step, at n times the rate.

        Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD". For twice the batch of AdamW the study ``rules`` saw
        it lose .001 of validation Dice, √2 times the rate .002, the same rate .003.
        """
        return replace(self, batch_size=n * self.batch_size, lr=n * self.lr)

    def learning_rate(self, progress: float) -> float:
        """Linear warm-up, then half a cosine to a hundredth; ``progress``, in [0, 1], is the share of the run done."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        wave = math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))
        return self.lr * (0.01 + 0.99 * (1 + wave) / 2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuilds a stored configuration; an unknown key is an error, not a default in silence."""
        values = {RENAMED.get(key, key): value for key, value in values.items()}
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(
                f"unknown setting {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in fields(cls))}"
            )
        settings: dict[str, Any] = {}
        for key, value in values.items():
            settings[key] = tuple(value) if isinstance(value, list) else value
        return cls(**settings)


# The first setting of each group of options in a command's help.
OPTION_GROUPS = {"sources": "data", "base_channels": "network", "loss": "training", "device": "hardware"}


def code_version() -> str:
    """The commit of this code, with ``-dirty`` if a file outside ``results`` differs from it; empty outside a clone."""
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists():
        return ""
    git = ["git", "-C", str(clone)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":!results"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("-dirty" if changes.returncode else "")


def seal(data: bytes) -> bytes:
    """A file's bytes, whose header holds ``"checksum": UNSEALED``, with the checksum of all of them in its place."""
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def parse_header(text: str, path: str | Path, *, data: bytes | None = None, members: bool = False) -> dict[str, Any]:
    """A header from its JSON, by :func:`check_header`, without its checksum.

    Args:
        text: the JSON.
        path: of the weights, for messages.
        data: the whole file, which the checksum is compared with; weights of older versions have none.
        members: as for :func:`check_header`.

    Raises:
        ValueError: it is no JSON, the file's bytes have another checksum, or see there.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is no JSON ({error})") from None
    if isinstance(header, dict) and "checksum" in header:
        checksum = str(header.pop("checksum"))
        if (
            data is not None
            and hashlib.sha256(data.replace(checksum.encode(errors="replace"), UNSEALED.encode(), 1)).hexdigest()
            != checksum
        ):
            raise ValueError(
                f"{path}: damaged or edited, as its checksum doesn't fit: train, or fetch the weights, again"
            )
    return check_header(header, path, members=members)


def check_header(header: object, path: str | Path, *, members: bool = False) -> dict[str, Any]:
    """Checks every key that this project knows; others may hold anything.

    Args:
        header: as read from JSON.
        path: of the weights, for messages.
        members: whether they are the classifier's, whose architecture is of :class:`tb.net.TBNet`.

    Returns:
        The header.

    Raises:
        ValueError: a key has another type, or a value that no network has; one line that names the file.
    """
    if not isinstance(header, dict):
        raise ValueError(f"{path}: {FORMAT!r} in its header is no JSON object")
    architecture = header.get("architecture")
    if not isinstance(architecture, dict):
        raise ValueError(f"{path}: no architecture in the header")
    architecture = {RENAMED.get(key, key): value for key, value in architecture.items()}
    if not members and "members" in architecture:
        raise ValueError(f"{path}: weights of the tuberculosis classifier, not of a segmenter")
    if members and "members" not in architecture:
        raise ValueError(f"{path}: no tuberculosis classifier: its header names no members, so it is a segmenter's?")
    known = _CLASSIFIER if members else _UNET
    unknown = set(architecture) - set(known)
    if unknown:
        raise ValueError(
            f"{path}: the header's architecture has {', '.join(map(repr, sorted(unknown)))}, which this version "
            "doesn't know"
        )
    for rules, values in ((known, architecture), (_SCREENER if members else _SEGMENTER, header)):
        for name in rules.keys() & values.keys():
            kind, holds = rules[name]
            if not holds(values[name]):
                raise ValueError(
                    f"{path}: {name} in the header is {kind}, not {values[name]!r:.60}: damaged or edited; train, or "
                    "fetch the weights, again"
                )
    heads, classes = header.get("heads") or [], architecture.get("classes", 1)
    if heads and len(heads) != classes:
        raise ValueError(f"{path}: the header names {len(heads)} heads, the network has {classes}")
    from .quality import check_fit

    try:
        check_fit(header.get("quality", {"why_not": ""}))
    except ValueError as error:
        raise ValueError(f"{path}: in the header, {error}") from None
    return {**header, "architecture": architecture}


Rule = tuple[str, Callable[[object], bool]]  # in words, and whether a value keeps it


def _whole(least: int, most: int) -> Rule:
    return (f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def _number(least: float, most: float) -> Rule:
    return (f"a number from {least:g} to {most:g}", lambda v: type(v) in (int, float) and least <= v <= most)


def _one_of(*choices: object) -> Rule:
    return f"one of {', '.join(map(repr, choices))}", lambda v: type(v) is type(choices[0]) and v in choices


def _names(least: int) -> Rule:
    return (
        f"a list of {'one name or more' if least else 'names'}, each there once",
        lambda v: (
            isinstance(v, list)
            and len(v) >= least
            and all(isinstance(name, str) and name for name in v)
            and len(set(v)) == len(v)
        ),
    )


def _a(kind: type, name: str) -> Rule:
    return name, lambda v: type(v) is kind


def _as_set(name: str) -> Rule:
    """What a whole number or a choice of :class:`TrainConfig` can be."""
    (about,) = (f.metadata for f in fields(TrainConfig) if f.name == name)
    return _one_of(*about["choices"]) if about["choices"] else _whole(*about["within"])


_UNET = {name: _as_set(name) for name in ("base_channels", "depth", "patch", "norm", "up", "conv")} | {
    "in_channels": _whole(1, 64),
    "classes": _whole(1, 64),
    "dims": _one_of(2, 3),
}
_CLASSIFIER = {"first": _whole(0, 6), "last": _whole(0, 6), "members": _whole(1, 1)}
_SEGMENTER = {
    "size": _whole(*SIDES),
    "sources": _names(1),
    "heads": _names(0),
    "normalisation": _one_of(NORMALISATION),
    "parameters": _whole(1, 10**12),
    "validation": _a(dict, "an object"),
    "config": _a(dict, "an object"),
    "films": _a(dict, "an object"),
    "licence": (
        "a text, or a list of texts",
        lambda v: isinstance(v, str) or (isinstance(v, list) and all(isinstance(t, str) for t in v)),
    ),
    "command": _a(str, "a text"),
    "commit": _a(str, "a text"),
    "fingerprint": _a(str, "a text"),
    "built_in": _whole(0, 10**12),
}
_SCREENER = {
    "size": _whole(*SIDES),
    "variant": _one_of("whole", "box", "lungs", "blanked"),
    "temperature": _number(1e-3, 1e3),
    "threshold": _number(0, 1),
}
