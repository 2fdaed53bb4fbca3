"""Commands that train: one network, the published protocols, tuning studies; and the pictures of what came of it."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from .common import SAME_COMMAND, Command, positive, print_scores, side


def _train_options(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "On several GPUs: torchrun --standalone --nproc-per-node 2 -m kaggle_utils train ...; "
        "see kaggle_utils/distributed.py."
    )
    sub.add_argument(
        "--data",
        nargs="+",
        default=["segmentation"],
        help="prepared folders: each source is validated on in the first one that has films for it. Or one folder of "
        "shards, here or in S3",
    )
    sub.add_argument("--out", required=True, help="folder of the run: weights, checkpoint, history")
    sub.add_argument("--resume", action="store_true", help="go on with the run in that folder where it stopped")
    _add_config(sub)


def _add_config(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """An option for each setting of TrainConfig but some, with its default and its help text, in groups."""
    from ..config import OPTION_GROUPS, RENAMED, TrainConfig

    earlier = {new: old for old, new in RENAMED.items()}
    for setting in fields(TrainConfig):
        if setting.name in OPTION_GROUPS:
            group = parser.add_argument_group(OPTION_GROUPS[setting.name])
        if setting.name in without:
            continue
        assert setting.default is not MISSING
        option: dict[str, Any] = {}
        if isinstance(setting.default, bool):
            option["action"] = argparse.BooleanOptionalAction
        elif isinstance(setting.default, tuple):
            option |= {"nargs": "+", "type": setting.metadata["of"]}
        else:
            option |= {"type": type(setting.default), "choices": setting.metadata["choices"] or None}
        about = setting.metadata["about"].replace("%", "%%")
        group.add_argument(f"--{setting.name.replace('_', '-')}", help=about, default=setting.default, **option)
        if setting.name in earlier:
            option |= {"dest": setting.name, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            group.add_argument(f"--{earlier[setting.name]}", **option)


def train(args: argparse.Namespace) -> int:
    from ..config import TrainConfig
    from ..distributed import is_main
    from ..trainer import train

    config = TrainConfig.from_dict({f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    trainer = train(args.data, args.out, config, resume=args.resume)
    if is_main():
        print(
            f"{len(trainer.history)} epochs in {trainer.seconds / 60:.1f} min, {trainer.precision} on "
            f"{trainer.device}; "
            f"best validation Dice {trainer.best_dice:.4f}; weights: {Path(args.out) / 'best.safetensors'}"
        )
    return 0


_DECIDED = ("sources", "epochs", "init")  # by the protocol and its steps; it starts from nothing
# As in the room tuning, which takes seconds to import.
PROTOCOLS = ("all", "both", "montgomery", "shenzhen", "jsrt", "kermany")
STUDIES = (
    "bugs",
    "augmentation",
    "longer",
    "loss",
    "capacity",
    "optimisation",
    "rules",
    "data",
    "check",
    "artefacts",
    "sets",
    "search",
)


def _protocol_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", nargs="+", choices=PROTOCOLS, help="whose training list to train on")
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--input", help="folder with the raw sets: compare at the original sizes too (size own; 0 in CSV files)"
    )
    sub.add_argument("--out", default="runs/protocols", help="folder of the runs; a stopped one is resumed")
    sub.add_argument("--steps", type=positive, default=3000, help="optimiser steps per training, about")
    sub.add_argument("--no-flip", action="store_true", help="test without averaging over the mirrored image")
    sub.add_argument(
        "--weights", help="of a network trained on the sets of the one protocol named: test it, train none"
    )
    _add_config(sub, without=_DECIDED)


def protocol(args: argparse.Namespace) -> int:
    from ..config import TrainConfig
    from ..tuning import PROTOCOLS, run_protocol

    if args.weights and len(args.name) > 1:
        raise ValueError(f"--weights are of one protocol's network, not of {' and '.join(args.name)}")
    settings = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if f.name not in _DECIDED}
    for name in args.name:
        summary = run_protocol(
            name,
            args.data,
            Path(args.out) / name,
            steps=args.steps,
            config=TrainConfig(sources=PROTOCOLS[name], **settings),
            weights=args.weights,
            raw=args.input,
            flip=not args.no_flip,
        )
        print_scores(summary.drop(columns=["trained_by", "commit"]))
    return 0


def _tune_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("study", choices=STUDIES, help="the question that is asked")
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--seeds", type=positive, help="how often to do each run: thrice if not given, those of artefacts and sets once"
    )
    sub.add_argument("--size", type=side, default=128, help="px, where the study doesn't say it")
    sub.add_argument("--epochs", type=positive, default=8, help="of each run, where the study doesn't say them")
    sub.add_argument(
        "--jobs", type=positive, help="single-threaded trainings side by side; one per GPU, or core, if not given"
    )
    sub.add_argument("--trials", type=positive, default=60, help="of the search, earlier ones included")
    sub.add_argument("--storage", help="of the search, an SQLAlchemy URL; runs/tuning/search.db if not given")
    sub.add_argument("--out", default="results/tuning", help="folder of the tables")


def tune(args: argparse.Namespace) -> int:
    from ..tuning import BASE, SCORED, run_scored, run_study, summarise_runs

    if args.study in SCORED:
        table = run_scored(args.study, args.data, seeds=args.seeds or 1, jobs=args.jobs, out=args.out)
        print(table.pivot_table("dice", ["run", "source"], "artefact", sort=False).round(4).to_string())
        return 0
    table = run_study(
        args.study,
        args.data,
        seeds=args.seeds or 3,
        config=replace(BASE, size=args.size, epochs=args.epochs),
        jobs=args.jobs,
        trials=args.trials,
        storage=args.storage,
        out=args.out,
    )
    print(summarise_runs(table).to_string(index=False, float_format="{:.4f}".format))
    return 0


def _plots_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", default="results", help="folder with the tables that benchmarks and studies wrote")
    sub.add_argument("--out", default="images", help="folder to write")


def plots(args: argparse.Namespace) -> int:
    from ..plots import CHARTS, PICTURES, check_replaceable, save

    out, missing = Path(args.out), {}
    for name in (*PICTURES, *CHARTS):
        check_replaceable(out / name)
    for name, draw_from in CHARTS.items():
        try:
            save(draw_from(args.results), out / name)
            print(out / name)
        except FileNotFoundError as error:  # of results that were not made
            missing[name] = str(error)
    if len(missing) == len(CHARTS):
        raise FileNotFoundError(f"{args.results}: no results to draw: name their folder with --results")
    for name, draw in PICTURES.items():
        save(draw(), out / name)
        print(out / name)
    for name, reason in missing.items():
        state = "left as it is" if (out / name).exists() else "not drawn"
        print(f"{name} {state}: {reason}")
    return 0


COMMANDS = (
    Command(
        "train",
        train,
        "train a U-Net on a prepared folder",
        _train_options,
        s3=("data",),
        way_on="; --resume goes on from the last checkpoint",
    ),
    Command(
        "protocol",
        protocol,
        "train and test by the published protocols; writes results/protocols.csv and its summary",
        _protocol_options,
        way_on=SAME_COMMAND,
    ),
    Command(
        "tune",
        tune,
        "run a study, into results/tuning/STUDY.csv; the same command resumes a stopped one",
        _tune_options,
        writes=lambda args: Path(args.out) / args.study,
        is_folder=False,
        way_on=SAME_COMMAND,
    ),
    Command("plots", plots, "draw the pictures of README and docs again", _plots_options),
)
