"""Commands that reach other places: Kaggle and S3."""

from __future__ import annotations

import argparse

from .common import SAME_COMMAND, Command


def _kaggle_publish_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--owner", required=True, help="your name on Kaggle")
    sub.add_argument("--wheel", action="store_true", help="the code as a wheel, which notebooks install")


def kaggle_publish(args: argparse.Namespace) -> int:
    from ..kaggle.publish import publish

    for line in publish(args.owner, wheel=args.wheel):
        print(line, flush=True)
    return 0


def _kaggle_push_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "notebooks", nargs="*", default=["all"], metavar="NOTEBOOK", help="01 to 05, or all that are there"
    )
    sub.add_argument("--owner", required=True, help="your name on Kaggle")
    sub.add_argument(
        "--out", default="runs/kaggle", help="folder to write, a folder below it for each notebook's outputs"
    )
    sub.add_argument("--no-wait", action="store_true", help="push only; not for notebooks that read one another")


def kaggle_push(args: argparse.Namespace) -> int:
    from ..kaggle.publish import push

    for line in push(args.notebooks, args.owner, out=args.out, wait=not args.no_wait):
        print(line, flush=True)
    return 0


def _s3_upload_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", help="folder, without its own name, or file")
    sub.add_argument("address", help="s3://bucket/prefix; a file's name is added where the address doesn't end in it")


def s3_upload(args: argparse.Namespace) -> int:
    from ..scale.s3 import upload

    print(f"{args.address}: {upload(args.folder, args.address)}")
    return 0


def _s3_download_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("address", help="s3://bucket/prefix")
    sub.add_argument("folder", help="folder to write")


def s3_download(args: argparse.Namespace) -> int:
    from ..scale.s3 import download

    print(f"{args.folder}: {download(args.address, args.folder)}")
    return 0


def _s3_unzip_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("archive", help="s3://bucket/set.zip")
    sub.add_argument("address", help="s3://bucket/prefix to write to")


def s3_unzip(args: argparse.Namespace) -> int:
    from ..scale.s3 import unzip

    print(f"{args.address}: {unzip(args.archive, args.address)}")
    return 0


_PUSHED = "; what was pushed runs on at Kaggle"
KAGGLE = (
    Command(
        "publish",
        kaggle_publish,
        "put the code up as a private dataset and the weights as a private model, or as new versions of them",
        _kaggle_publish_options,
        way_on=_PUSHED,
    ),
    Command(
        "push",
        kaggle_push,
        "push notebooks, wait until each has run, and fetch its outputs; publish first",
        _kaggle_push_options,
        writes=lambda args: None,
        way_on=_PUSHED,
    ),
)
S3 = (
    Command(
        "upload", s3_upload, "copy a folder, or a file, to S3", _s3_upload_options, s3=("address",), way_on=SAME_COMMAND
    ),
    Command(
        "download",
        s3_download,
        "copy all below a prefix, or an object, from S3",
        _s3_download_options,
        s3=("address",),
        writes=lambda args: args.folder,
        way_on=SAME_COMMAND,
    ),
    Command(
        "unzip",
        s3_unzip,
        "unpack a zip archive within S3, in little memory and without a disk",
        _s3_unzip_options,
        s3=("address", "archive"),
        way_on=SAME_COMMAND,
    ),
)
