"""The command line: ``python -m kaggle_utils COMMAND --help``. Parses, calls one function, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, files

if TYPE_CHECKING:
    import pandas as pd

    from .infer import LungSegmenter


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """The default after each option that has one worth saying."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False:
            return action.help or ""
        return super()._get_help_string(action) or ""


def prep(args: argparse.Namespace) -> int:
    from .prep import prepare
    from .scale.s3 import fetch
    from .tables import read_csv

    frame = prepare(fetch(args.input), args.out, size=args.size, workers=args.workers, split=args.split, seed=args.seed)
    print(frame.groupby(["source", "split"]).size().unstack(fill_value=0).to_string())
    problems = read_csv(Path(args.out) / "problems.csv")
    print(
        f"{len(frame)} radiographs in {args.out}; {len(problems)} could not be used"
        + (", see problems.csv:" if len(problems) else "")
    )
    for problem in problems.head(5).itertuples():
        print(f"  {problem.name}: {files.printable(problem.reason)}")
    hidden = problems[problems["source"].isna()]  # folders, of no set
    for folder in hidden.itertuples():
        print(f"  {folder.reason}", file=sys.stderr)
    return 3 if len(hidden) else 0


def shards(args: argparse.Namespace) -> int:
    from .scale.shards import write_shards

    frame = write_shards(args.data, args.out, films=args.films, size=args.size)
    print(f"{len(frame)} films in {frame['shard'].nunique()} shards in {args.out}")
    return 0


def train(args: argparse.Namespace) -> int:
    from .config import TrainConfig
    from .distributed import is_main
    from .trainer import train

    config = TrainConfig.from_dict({f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    trainer = train(args.data, args.out, config, resume=args.resume)
    if is_main():
        print(
            f"{len(trainer.history)} epochs in {trainer.seconds / 60:.1f} min, {trainer.precision} on "
            f"{trainer.device}; "
            f"best validation Dice {trainer.best_dice:.4f}; weights: {Path(args.out) / 'best.safetensors'}"
        )
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from .metrics import summarise
    from .predictions import evaluate

    scores = evaluate(args.data, _segmenter(args), split=args.split, sizes=args.sizes, raw=args.input)
    summary = summarise(scores, ["source", "protocol", "size"])
    print(summary.to_string(index=False, float_format="{:.4f}".format))
    if args.out:
        out = args.out.removesuffix(".csv")
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        _write_table(Path(f"{out}.csv"), scores.round(5))
        _write_table(Path(f"{out}_summary.csv"), summary.round(5))
    return 0


def _segmenter(args: argparse.Namespace) -> LungSegmenter:
    from .infer import LungSegmenter
    from .scale.s3 import fetch

    return LungSegmenter(
        fetch(args.weights),
        device=args.device,
        flip=args.flip,
        clean=not args.raw,
        head=args.head,
        backend=args.backend,
        threshold=args.threshold,
    )


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Replaces a table of an earlier run, which has the same columns, and nothing else."""
    from .tables import to_csv

    heading = ",".join(table.columns)
    if path.exists() and path.read_text(errors="replace").partition("\n")[0].strip() != heading:
        raise ValueError(f"{path}: it is there, and no table of scores: choose another name; the scores are above")
    files.write_bytes(path, to_csv(table))


def predict(args: argparse.Namespace) -> int:
    if args.ray:
        return _predict_on_cluster(args)
    from .predictions import predict
    from .quality import why_no_estimate
    from .scale.s3 import as_addresses, fetch, results

    segmenter = _segmenter(args)
    with results(args.out) as out:
        table = predict(
            [fetch(path, args.out) for path in args.path],
            out,
            segmenter,
            batch=args.batch_size,
            force=args.force,
            formats=args.format,
        )
    failed = table[table["error"] != ""]
    refused = int(failed["height"].notna().sum())
    print(
        f"{len(table) - len(failed)} masks in {args.out}, {len(failed) - refused} files could not be read, {refused} "
        f"{'film' if refused == 1 else 'films'} refused" + " (--force segments them)" * bool(refused)
    )
    without = why_no_estimate(segmenter.quality)
    if without:
        print(f"  {without}")
    doubtful = table[table["flag"].isin(("check", "reject"))]
    for film in doubtful.head(5).itertuples():
        print(f"  {film.name}: {film.flag}, a Dice of about {film.quality:.2f}: {film.reasons}")
    if len(doubtful) > 5:
        print(f"  and {len(doubtful) - 5} more to look at: flag and reasons in {args.out}/predictions.csv")
    for film in failed.head(5).itertuples():
        print(f"  {as_addresses(film.error)}", file=sys.stderr)
    return 3 if len(failed) else 0


def _predict_on_cluster(args: argparse.Namespace) -> int:
    from .scale.cluster import Settings, predict
    from .scale.s3 import fetch

    if args.format != ["png"]:
        raise ValueError("--ray writes Parquet with COCO run lengths and no other format: leave --format away")
    settings = Settings(
        batch=args.batch_size,
        force=args.force,
        flip=args.flip,
        clean=not args.raw,
        head=args.head,
        backend=args.backend,
    )
    weights = fetch(args.weights)
    manifest = predict(args.path, args.out, settings, weights=weights, device=args.device, address=args.ray)
    result: Any = manifest["result"]
    print(
        f"{result['masks']} masks in {args.out}, {result['unreadable']} files could not be read, {result['refused']} "
        "films refused"
        + " (--force segments them)" * bool(result["refused"])
        + f"; {result['doubtful']} masks to look at: flag and reasons there"
    )
    for error in result["errors"]:
        print(f"  {error}", file=sys.stderr)
    return 3 if result["errors"] else 0


def app(args: argparse.Namespace) -> int:
    from .page.app import serve
    from .tb import TBScreener

    serve(TBScreener(segmenter=_segmenter(args), device=args.device), host=args.host, port=args.port)
    return 0


def screen(args: argparse.Namespace) -> int:
    from .infer import LungSegmenter
    from .scale.s3 import as_addresses, fetch, results
    from .tb import PRESUMPTIVE, TBScreener, screen

    screener = TBScreener(
        fetch(args.weights), segmenter=LungSegmenter(fetch(args.segmenter), device=args.device), device=args.device
    )
    with results(args.out) as out:
        table = screen([fetch(path, args.out) for path in args.path], out, screener, batch=args.batch_size)
    without = table[table["probability"].isna()]
    presumptive = (table["label"] == PRESUMPTIVE).sum()
    print(
        f"{len(table) - len(without)} of {len(table)} radiographs have a probability, {presumptive} of them "
        f"presumptive tuberculosis: {args.out}/screening.csv. No medical device"
    )
    for film in without.head(5).itertuples():
        print(f"  {film.name}: {as_addresses(film.reason)}", file=sys.stderr)
    return 3 if len(without) else 0


def export(args: argparse.Namespace) -> int:
    from .export import export_onnx
    from .infer import DEFAULT_WEIGHTS
    from .scale.s3 import fetch

    weights = Path(fetch(args.weights or DEFAULT_WEIGHTS))
    out = Path(args.out or f"{weights.stem}.onnx")
    export_onnx(weights, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, computes what PyTorch does")
    return 0


def synth(args: argparse.Namespace) -> int:
    from .synthetic import write_raw

    write_raw(args.out, n=args.n, seed=args.seed, size=args.size)
    print(
        f"{args.n} synthetic radiographs in {args.out}, in the layout of the raw sets, with their masks: prep them "
        "next, or "
        f"predict '{args.out}/**/CXR_png/*.png'"
    )
    return 0


def fit_synth(args: argparse.Namespace) -> int:
    from .quality import save_shape
    from .synthetic import ASSET, AppearanceModel, fit_prepared
    from .synthetic.model import check_replaceable

    out = Path(args.out or ASSET)
    if args.out:
        check_replaceable(out)
    fit_prepared(args.data).save(out)
    if not args.out:
        save_shape(AppearanceModel.load().arrays)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def protocol(args: argparse.Namespace) -> int:
    from .tuning import run_protocol

    for name in args.name:
        out = Path(args.out) / name
        summary = run_protocol(name, args.data, out, steps=args.steps, raw=args.input, flip=not args.no_flip)
        print(summary.to_string(index=False, float_format="{:.4f}".format))
    return 0


def tune(args: argparse.Namespace) -> int:
    from .tuning import BASE, run_study, summarise_runs

    table = run_study(
        args.study,
        args.data,
        seeds=args.seeds,
        config=replace(BASE, size=args.size, epochs=args.epochs),
        jobs=args.jobs,
        trials=args.trials,
        storage=args.storage,
        out=args.out,
    )
    print(summarise_runs(table).to_string(index=False, float_format="{:.4f}".format))
    return 0


def kaggle_publish(args: argparse.Namespace) -> int:
    from .kaggle.publish import publish

    for line in publish(args.owner):
        print(line, flush=True)
    return 0


def kaggle_push(args: argparse.Namespace) -> int:
    from .kaggle.publish import push

    for line in push(args.notebooks, args.owner, out=args.out, wait=not args.no_wait):
        print(line, flush=True)
    return 0


def s3_upload(args: argparse.Namespace) -> int:
    from .scale.s3 import upload

    print(f"{args.address}: {upload(args.folder, args.address)}")
    return 0


def s3_download(args: argparse.Namespace) -> int:
    from .scale.s3 import download

    print(f"{args.folder}: {download(args.address, args.folder)}")
    return 0


def s3_unzip(args: argparse.Namespace) -> int:
    from .scale.s3 import unzip

    print(f"{args.address}: {unzip(args.archive, args.address)}")
    return 0


def plots(args: argparse.Namespace) -> int:
    from .plots import FIGURES
    from .plots.figures import check_replaceable

    for name in FIGURES:
        check_replaceable(Path(args.out) / name)
    for name, draw in FIGURES.items():
        try:
            draw(Path(args.out) / name)  # type: ignore[operator]
            print(Path(args.out) / name)
        except FileNotFoundError as error:  # of results that were not made
            print(f"{name} left as it is: {error}")
    return 0


def _prep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--input", required=True, help="folder with the raw sets, in any nesting, or s3://bucket/prefix")
    sub.add_argument("--out", default="segmentation", help="folder to write; a second run does what is missing")
    sub.add_argument("--size", type=_side, default=512, help="px, side of the prepared images")
    sub.add_argument("--workers", type=_positive, help="threads; one per core if not given")
    sub.add_argument(
        "--split",
        choices=("published", "random"),
        default="published",
        help="the frozen published lists, or 50 radiographs for the test and the rest 80:20",
    )
    sub.add_argument("--seed", type=int, default=0, help="of the random split")


def _synth_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--n", type=_positive, default=200, help="how many")
    sub.add_argument("--out", required=True, help="folder to write")
    sub.add_argument("--size", type=_side, default=512, help="px, side of the images")
    sub.add_argument("--seed", type=int, default=0, help="the same seed gives the same images on every machine")


def _fit_synth_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder with the real Montgomery and Shenzhen")
    sub.add_argument("--out", help="file to write; the package's own two models if not given")


def _shards_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--out", required=True, help="folder to write; train --data takes it, and its s3:// address once it is uploaded"
    )
    sub.add_argument(
        "--films",
        type=_positive,
        help="radiographs per shard; if not given 100, or an eighth of a split where that is less, since each of up "
        "to 8 "
        "processes needs a shard of its own",
    )
    sub.add_argument("--size", type=_side, help="px, side of the images in the shards; as prepared if not given")


def _train_options(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "On several GPUs: torchrun --standalone --nproc-per-node 2 -m kaggle_utils train ...; "
        "see kaggle_utils/distributed.py."
    )
    sub.add_argument(
        "--data",
        nargs="+",
        default=["segmentation"],
        help="prepared folders, of which the first gives the validation set; or one folder of shards, here or in S3",
    )
    sub.add_argument("--out", required=True, help="folder of the run: weights, checkpoint, history")
    sub.add_argument("--resume", action="store_true", help="go on with the run in that folder where it stopped")
    _add_config(sub)


def _evaluate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument("--split", choices=("train", "val", "test"), default="test", help="which part of it")
    sub.add_argument("--sizes", type=_side, nargs="+", default=[256, 512], help="px at which masks are compared")
    sub.add_argument(
        "--input", help="folder with the raw sets: compare at the original sizes too (size 0 in the table)"
    )
    sub.add_argument("--out", help="write OUT.csv, one row per radiograph, and OUT_summary.csv")
    _add_weights(sub)


def _protocol_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", nargs="+", help="both, montgomery, shenzhen or jsrt: whose training list to train on")
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--input", help="folder with the raw sets: compare at the original sizes too (size 0 in the table)"
    )
    sub.add_argument("--out", default="runs/protocols", help="folder of the runs; a stopped one is resumed")
    sub.add_argument("--steps", type=_positive, default=3000, help="optimiser steps per training, about")
    sub.add_argument("--no-flip", action="store_true", help="test without averaging over the mirrored image")


def _tune_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("study", help="bugs, augmentation, longer, loss, capacity, optimisation, data, check or search")
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--seeds", type=_positive, default=3, help="how often to repeat each run; a search repeats nothing"
    )
    sub.add_argument("--size", type=_side, default=128, help="px, where the study doesn't vary it")
    sub.add_argument("--epochs", type=_positive, default=8, help="of each run, where the study doesn't vary them")
    sub.add_argument("--jobs", type=_positive, help="single-threaded trainings side by side; one per core if not given")
    sub.add_argument("--trials", type=_positive, default=60, help="of the search, earlier ones included")
    sub.add_argument("--storage", help="of the search, an SQLAlchemy URL; runs/tuning/search.db if not given")
    sub.add_argument("--out", default="results/tuning", help="folder of the tables")


def _predict_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "path",
        nargs="+",
        help="files, folders (searched below, through links) and globs: PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, "
        "NIfTI of "
        "one slice and DICOM, also gzip'd, under any name; and s3:// addresses of objects and prefixes, without globs",
    )
    sub.add_argument("--out", default="predictions", help="folder to write, or s3://bucket/prefix")
    _add_batch_size(sub)
    sub.add_argument(
        "--force",
        action="store_true",
        help="also segment what would be refused: no frontal chest radiograph, blank, too small",
    )
    sub.add_argument(
        "--format",
        nargs="+",
        choices=("png", "coco", "dicom-seg"),
        default=["png"],
        metavar="FORMAT",
        help="png, coco, dicom-seg, one or more: masks and overlays as PNG; COCO run lengths of both lungs in "
        "OUT/coco.parquet; a DICOM "
        "segmentation object for each film that is DICOM",
    )
    sub.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        type=_ray_address,
        help="on the Ray cluster at HOST:PORT or on the one that this machine is in (auto), or on one of this "
        "machine's own if no "
        "address is given; films and OUT may be s3:// prefixes, other films are on a disk that every node sees; OUT "
        "gets shards of Parquet, a row a film; the same command goes on with a stopped run; needs ray[data]",
    )
    _add_weights(sub)


def _app_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at: this machine alone; 0.0.0.0 is for all who reach it, without a password",
    )
    sub.add_argument("--port", type=_positive, default=7860, help="port to listen at")
    _add_weights(sub)


def _screen_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "path",
        nargs="+",
        help="files, folders (searched below) and globs, as for predict; and s3:// addresses of objects and prefixes, "
        "without globs",
    )
    sub.add_argument(
        "--out", default="screening", help="folder to write, or s3://bucket/prefix: screening.csv and overlays"
    )
    sub.add_argument(
        "--weights", help="of the classifier, a safetensors file, here or in S3; the shipped one if not given"
    )
    sub.add_argument(
        "--segmenter", help="weights of the network that finds the lungs, here or in S3; the shipped one if not given"
    )
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    _add_batch_size(sub)


def _export_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", choices=("onnx",), default="onnx", help="of the file")
    sub.add_argument("--weights", help="safetensors file; the shipped one if not given")
    sub.add_argument("--out", help="file to write; the weights' name with .onnx, in this folder, if not given")


def _plots_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", default="images", help="folder to write")


def _kaggle_publish_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--owner", required=True, help="your name on Kaggle")


def _kaggle_push_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "notebooks", nargs="*", default=["all"], metavar="NOTEBOOK", help="01 to 05, or all that are there"
    )
    sub.add_argument("--owner", required=True, help="your name on Kaggle")
    sub.add_argument(
        "--out", default="runs/kaggle", help="folder to write, a folder below it for each notebook's outputs"
    )
    sub.add_argument("--no-wait", action="store_true", help="push only; not for notebooks that read one another")


def _s3_upload_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", help="folder, without its own name, or file")
    sub.add_argument("address", help="s3://bucket/prefix; a file's name is added where the address doesn't end in it")


def _s3_download_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("address", help="s3://bucket/prefix")
    sub.add_argument("folder", help="folder to write")


def _s3_unzip_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("archive", help="s3://bucket/set.zip")
    sub.add_argument("address", help="s3://bucket/prefix to write to")


# Each command: what runs it, what it is about, and what adds its options.
_COMMANDS = (
    (
        prep,
        "make a prepared folder from the raw public sets; exit status 3 if a folder could not be searched",
        _prep_options,
    ),
    (
        synth,
        "write synthetic radiographs, drawn from a statistical model, in the layout of the raw sets",
        _synth_options,
    ),
    (fit_synth, "fit the statistical model of the synthetic radiographs again", _fit_synth_options),
    (
        shards,
        "pack a prepared set into tar files, for training on more than memory holds; needs webdataset",
        _shards_options,
    ),
    (train, "train a U-Net on a prepared folder", _train_options),
    (evaluate, "score weights on a prepared folder, radiograph by radiograph", _evaluate_options),
    (
        protocol,
        "train and test by the published protocols; writes results/protocols.csv and its summary",
        _protocol_options,
    ),
    (tune, "run a study, into results/tuning/STUDY.csv; the same command resumes a stopped one", _tune_options),
    (
        predict,
        "write masks, overlays, measurements and a table; exit status 3 if files could not be read or were refused",
        _predict_options,
    ),
    (
        app,
        "open a page that outlines and measures the lungs of the radiograph you drop on it and screens it for "
        "tuberculosis, for research; nothing leaves the machine or stays on it; needs gradio",
        _app_options,
    ),
    (
        screen,
        "give a probability of tuberculosis with a heat map, or the reason why there is none: for research and "
        "teaching, no medical device; exit status 3 if some have none",
        _screen_options,
    ),
    (export, "write the network for runtimes other than PyTorch, and check it against PyTorch", _export_options),
    (plots, "draw the README's pictures again", _plots_options),
)
_GROUPS = {
    "kaggle": (
        "notebooks and code on Kaggle, by Kaggle's own package; run it in the folder of the clone",
        "publish or push; each has a --help of its own",
        (
            (
                kaggle_publish,
                "put code and weights up as private datasets, or as new versions of them",
                _kaggle_publish_options,
            ),
            (
                kaggle_push,
                "push notebooks, wait until each has run, and fetch its outputs; publish first",
                _kaggle_push_options,
            ),
        ),
    ),
    "s3": (
        "copy folders to S3 and back, unpack archives there; credentials from the usual chain, "
        "a server other than Amazon's from AWS_ENDPOINT_URL",
        "upload, download or unzip; the same command resumes a stopped one",
        (
            (s3_upload, "copy a folder, or a file, to S3", _s3_upload_options),
            (s3_download, "copy all below a prefix, or an object, from S3", _s3_download_options),
            (s3_unzip, "unpack a zip archive within S3, in little memory and without a disk", _s3_unzip_options),
        ),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser, with a subcommand for each function above."""
    parser = argparse.ArgumentParser(prog=_prog(), description="Lung segmentation in chest radiographs with a U-Net.")
    parser.add_argument("--version", action="version", version=f"unet-lung {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run, about, add_options in _COMMANDS:
        _add_command(commands, run.__name__.replace("_", "-"), run, about, add_options)
    for group, (about, actions, members) in _GROUPS.items():
        nested = commands.add_parser(group, help=about, description=about)
        within = nested.add_subparsers(dest="action", required=True, metavar="ACTION", help=actions)
        for run, about, add_options in members:
            _add_command(within, run.__name__.removeprefix(f"{group}_"), run, about, add_options)
    return parser


def _prog() -> str:
    """The command as it was typed."""
    name = Path(sys.argv[0]).stem
    return name if name == "unet-lung" else "python -m kaggle_utils"


def _add_command(commands, name: str, run: Callable, about: str, add_options: Callable) -> None:
    sub = commands.add_parser(name, help=about, description=about, formatter_class=_Help)
    sub.set_defaults(function=run)
    add_options(sub)


# Options that take s3:// addresses, by command.
_REMOTE = {
    "prep": ("input",),
    "train": ("data",),
    "evaluate": ("weights",),
    "predict": ("path", "out", "weights"),
    "app": ("weights",),
    "screen": ("path", "out", "weights", "segmenter"),
    "export": ("weights",),
    "s3": ("address", "archive"),
}


def _check_addresses(args: argparse.Namespace) -> None:
    """Raises ValueError for an s3:// address where only a path works: it would become a folder ``s3:`` here."""
    from .scale.s3 import is_address

    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if is_address(path) and name not in _REMOTE.get(args.command, ()):
                raise ValueError(
                    f"{name} is a folder or a file of this machine, not {path}; `python -m kaggle_utils s3 --help` "
                    "says how to copy"
                )


def _check_paths(args: argparse.Namespace) -> None:
    """Raises OSError, before the libraries are loaded, for a path that is not there or is of the wrong kind."""
    from .pictures.find import check_patterns
    from .scale.s3 import is_address

    checks = {
        "data": files.manifest_path,
        "input": files.check_input,
        "weights": files.check_weights,
        "segmenter": files.check_weights,
        "path": lambda pattern: check_patterns([pattern]),
        "out": files.check_out_file if args.function in (export, fit_synth) else files.check_out,
    }
    for name, check in checks.items():
        given = getattr(args, name, None)
        for path in given if isinstance(given, list) else [given]:
            if path and not is_address(path):
                check(path)


def _lock(args: argparse.Namespace) -> AbstractContextManager:
    """Keeps a second run from what a command writes on this machine, for as long as the first one runs."""
    from .scale.s3 import is_address

    out = args.folder if args.function is s3_download else getattr(args, "out", None)
    if args.function is export and args.weights:
        out = out or f"{Path(args.weights).stem}.onnx"
    if not out or is_address(out) or args.function is kaggle_push or not _writes():
        return nullcontext()
    out = Path(out) / args.study if args.function is tune else Path(out)  # studies have tables of their own
    is_folder = args.function not in (evaluate, export, fit_synth, tune)
    return files.locked(
        out / files.LOCK if is_folder else out.with_name(f".{out.name.removesuffix('.csv')}{files.LOCK}"), out
    )


def _writes() -> bool:
    """Whether this process is not one of those that train with the one that writes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's; PyTorch isn't loaded to be asked
        return True
    from .distributed import is_main

    return is_main()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _side(text: str) -> int:
    from .config import PREPARED_SIDES

    least, most = PREPARED_SIDES
    if not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
    return int(text)


def _ray_address(text: str) -> str:
    if text in ("auto", "local") or text.rpartition(":")[2].strip("/").isdecimal():
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no address of a cluster: films go before --ray")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", help="safetensors file, or an exported one, here or in S3; the shipped one if not given"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "openvino"),
        default="torch",
        help="what runs the network; onnxruntime and openvino are for CPUs and are installed apart",
    )
    parser.add_argument(
        "--threshold", type=_share, default=0.5, help="probability, between 0 and 1, above which a pixel is lung"
    )
    parser.add_argument("--flip", action="store_true", help="average over the mirrored image: twice the time")
    parser.add_argument("--head", help="set whose annotation rules to follow, one of those in the weights' header")
    parser.add_argument("--raw", action="store_true", help="keep small components and holes in the masks")


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_positive, default=8, help="radiographs per forward pass")


def _add_config(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of TrainConfig, with its default and its help text."""
    from .config import RENAMED, TrainConfig

    earlier = {new: old for old, new in RENAMED.items()}
    for setting in fields(TrainConfig):
        assert setting.default is not MISSING
        option: dict[str, Any] = {}
        if isinstance(setting.default, bool):
            option["action"] = argparse.BooleanOptionalAction
        elif isinstance(setting.default, tuple):
            option["nargs"] = "+"
        else:
            option |= {"type": type(setting.default), "choices": setting.metadata["choices"] or None}
        about = setting.metadata["about"].replace("%", "%%")
        parser.add_argument(f"--{setting.name.replace('_', '-')}", help=about, default=setting.default, **option)
        if setting.name in earlier:
            option |= {"dest": setting.name, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            parser.add_argument(f"--{earlier[setting.name]}", **option)


# Of what was stopped, by command.
_WAY_ON = {
    "train": "; --resume goes on from the last checkpoint",
    "kaggle": "; what was pushed runs on at Kaggle",
    **dict.fromkeys(("prep", "predict", "screen", "protocol", "tune", "s3"), "; the same command resumes it"),
}


def _explain(error: BaseException, args: argparse.Namespace) -> str | None:
    """What a user can do about an error, in one line; None where it is a fault of this program."""
    way_on = _WAY_ON.get(args.command, "")
    if isinstance(error, KeyboardInterrupt):
        return f"stopped{way_on}"
    if isinstance(error, OSError) and error.errno in files.FULL:
        place = error.filename or getattr(args, "out", None) or "a folder"
        return f"{place}: {error.strerror}: make room there{way_on}"
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return str(error)
    if isinstance(error, ImportError):
        advice = "" if "pip install" in str(error) else ": pip install -r requirements.txt"
        return f"{error}{advice}"
    if _lacks_memory(error):
        smaller = [
            f"--{name.replace('_', '-')}"
            for name in ("batch_size", "size", "sizes", "base_channels", "workers", "jobs")
            if hasattr(args, name)
        ]
        advice = f": try a smaller {' or '.join(smaller)}" if smaller else ""
        return f"the memory is too small for this{advice}"
    return None


def _lacks_memory(error: BaseException) -> bool:
    """Whether it is Python's, PyTorch's or OpenCV's way of saying so; only Python's has a type known without them."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    words = ("can't allocate memory", "not enough memory", "Insufficient memory", "Unable to allocate")
    return any(word in said for word in words)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; what a user can mend is one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no letters for ends no run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        _check_addresses(args)
        _check_paths(args)
        with _lock(args):
            return args.function(args)
    except (Exception, KeyboardInterrupt) as error:
        line = _explain(error, args)
        if line is None:
            raise
        print(f"unet-lung {args.command}: {files.printable(line)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    sys.exit(main())
