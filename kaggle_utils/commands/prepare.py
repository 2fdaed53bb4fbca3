"""Commands that make films to learn from: raw sets to a prepared folder, synthetic radiographs, shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import files
from .common import SAME_COMMAND, Command, positive, side


def _prep_options(sub: argparse.ArgumentParser) -> None:
    given = sub.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", help="folder with the raw public sets, in any nesting, or s3://bucket/prefix")
    given.add_argument("--images", help="folder with the radiographs of a set of your own; goes with --masks")
    sub.add_argument("--masks", help="their masks: a folder, or a table of run lengths (CSV, Parquet, COCO's JSON)")
    sub.add_argument("--name", default="own", help="of your own set, which train --sources and predict --head take")
    sub.add_argument(
        "--labels", type=int, nargs="+", default=[], help="grays of the lungs, if your masks map other organs too"
    )
    sub.add_argument("--out", default="segmentation", help="folder to write; a second run does what is missing")
    sub.add_argument("--size", type=side, default=512, help="px, side of the prepared images")
    sub.add_argument("--workers", type=positive, help="threads; one per core if not given")
    sub.add_argument(
        "--split",
        default="published",
        help="published: the frozen lists; random: a fifth, at most 50, for the test and the rest 80:20; or a CSV file "
        "with the columns name and split, or name and patient, or all three",
    )
    sub.add_argument("--seed", type=int, default=0, help="of the random split")


def prep(args: argparse.Namespace) -> int:
    from ..prep import prepare
    from ..scale.s3 import fetch
    from ..tables import read_csv

    if bool(args.images) != bool(args.masks):
        raise ValueError("--images and --masks go together")
    frame = prepare(
        fetch(args.images or args.input),
        args.out,
        size=args.size,
        workers=args.workers,
        split=args.split,
        seed=args.seed,
        masks=fetch(args.masks),
        source=args.name,
        labels=args.labels,
    )
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


def _synth_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--n", type=positive, default=200, help="how many")
    sub.add_argument("--out", required=True, help="folder to write")
    sub.add_argument("--size", type=side, default=512, help="px, side of the images")
    sub.add_argument("--seed", type=int, default=0, help="the same seed gives the same images on every machine")


def synth(args: argparse.Namespace) -> int:
    from ..synthetic import write_raw

    write_raw(args.out, n=args.n, seed=args.seed, size=args.size)
    print(
        f"{args.n} synthetic radiographs in {args.out}, in the layout of the raw sets, with their masks: prep them "
        "next, or "
        f"predict '{args.out}/**/CXR_png/*.png'"
    )
    return 0


def _fit_synth_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder with the real Montgomery and Shenzhen")
    sub.add_argument("--out", help="file to write; the package's own two models if not given")


def fit_synth(args: argparse.Namespace) -> int:
    from ..quality import save_shape
    from ..synthetic import ASSET, AppearanceModel, fit_prepared
    from ..synthetic.model import check_replaceable

    out = Path(args.out or ASSET)
    if args.out:
        check_replaceable(out)
    fit_prepared(args.data).save(out)
    if not args.out:
        save_shape(AppearanceModel.load().arrays)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _shards_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument(
        "--out", required=True, help="folder to write; train --data takes it, and its s3:// address once it is uploaded"
    )
    sub.add_argument(
        "--films",
        type=positive,
        help="radiographs per shard; if not given 100, or an eighth of a split where that is less, since each of up "
        "to 8 "
        "processes needs a shard of its own",
    )
    sub.add_argument("--size", type=side, help="px, side of the images in the shards; as prepared if not given")


def shards(args: argparse.Namespace) -> int:
    from ..scale.shards import write_shards

    frame = write_shards(args.data, args.out, films=args.films, size=args.size)
    print(f"{len(frame)} films in {frame['shard'].nunique()} shards in {args.out}")
    return 0


COMMANDS = (
    Command(
        "prep",
        prep,
        "make a prepared folder from the raw public sets or your own; exit status 3 if a folder could not be searched",
        _prep_options,
        s3=("input", "images", "masks"),
        way_on=SAME_COMMAND,
    ),
    Command(
        "synth",
        synth,
        "write synthetic radiographs, drawn from a statistical model, in the layout of the raw sets",
        _synth_options,
    ),
    Command(
        "fit-synth",
        fit_synth,
        "fit the statistical model of the synthetic radiographs again",
        _fit_synth_options,
        is_folder=False,
        check_out=files.check_out_file,
    ),
    Command(
        "shards",
        shards,
        "pack a prepared set into tar files, for training on more than memory holds; needs webdataset",
        _shards_options,
    ),
)
