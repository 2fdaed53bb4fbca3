"""What commands have in common: how one is described, options that several have, and the kinds of numbers they take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..config import CONVENTIONS, THRESHOLD

if TYPE_CHECKING:
    import pandas as pd

    from ..infer import LungSegmenter


@dataclass(frozen=True)
class Command:
    """A command, and what the command line has to know of it before and after it runs.

    Args:
        name: as typed.
        run: does it, and returns the exit status.
        about: its help.
        add_options: adds its options to a parser.
        s3: those options that may be ``s3://`` addresses.
        writes: what no second run may write at the same time; what ``--out`` names if not given.
        is_folder: whether that is a folder, and not a file.
        check_out: raises OSError where ``--out`` can't be written.
        way_on: said after a stop or a full disk: how to go on.
    """

    name: str
    run: Callable[[argparse.Namespace], int]
    about: str
    add_options: Callable[[argparse.ArgumentParser], None]
    s3: tuple[str, ...] = ()
    writes: Callable[[argparse.Namespace], str | Path | None] = lambda args: getattr(args, "out", None)
    is_folder: bool = True
    check_out: Callable[[str | Path], None] = files.check_out
    way_on: str = ""


SAME_COMMAND = "; the same command resumes it"


def switches(args: argparse.Namespace) -> dict[str, Any]:
    """How a network is used, of the options of :func:`add_weights`."""
    names = ("flip", "head", "backend", "threshold")
    return {"clean": not args.raw, **{name: getattr(args, name) for name in names}}


def make_segmenter(args: argparse.Namespace) -> LungSegmenter:
    from ..infer import LungSegmenter
    from ..scale.s3 import fetch

    return LungSegmenter(fetch(args.weights), device=args.device, **switches(args))


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds which network to use, and how."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--weights",
        help="safetensors file, or an exported one, here or in S3; or the name of one that ships: lungs, the one if "
        "not given, or lungs-ccby, whose licence is CC BY 4.0",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    group.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "openvino"),
        default="torch",
        help="what runs the network; onnxruntime and openvino are for CPUs and are installed apart",
    )
    group.add_argument(
        "--threshold", type=share, default=THRESHOLD, help="probability, between 0 and 1, above which a pixel is lung"
    )
    group.add_argument("--flip", action="store_true", help="average over the mirrored image: twice the time")
    rules = group.add_mutually_exclusive_group()
    rules.add_argument(
        "--convention",
        dest="head",
        choices=sorted(set(CONVENTIONS.values())),
        help="lung-field leaves out what the heart hides, with-heart takes it in; with-heart needs weights "
        "that learned it; lung-field if not given",
    )
    rules.add_argument("--head", help="set whose annotation rules to follow, one of those in the weights' header")
    group.add_argument("--raw", action="store_true", help="keep small components and holes in the masks")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=positive, default=8, help="radiographs at once")


def counted(number: int, noun: str) -> str:
    """``1 mask`` or ``2 masks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_scores(summary: pd.DataFrame) -> None:
    """Prints what counts of a summary of scores in six columns; its size 0, the radiographs' own, is ``own``."""
    table = summary.sort_values("size", key=lambda size: size.replace(0, size.max() + 1), kind="stable")
    shown = {
        "tested on": table["source"] + ", " + table["protocol"],
        "px": table["size"].astype(object).replace(0, "own"),
        "n": table["n"],
        "Dice": table["dice"].map("{:.4f}".format),
        "95 % interval": [f"{low:.4f}-{high:.4f}" for low, high in zip(table["low"], table["high"])],
        "worst": table["worst"].map("{:.4f}".format),
    }
    print(table.assign(**shown)[[*shown]].to_string(index=False))


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None


def positive(text: str) -> int:
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def side(text: str) -> int:
    from ..config import PREPARED_SIDES

    least, most = PREPARED_SIDES
    number = whole(text)
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{number} is not from {least} to {most}")
    return number
