"""Commands that use a trained network: masks, scores, screening, the page, other runtimes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..pictures.find import SHEET
from .common import (
    SAME_COMMAND,
    Command,
    add_batch_size,
    add_weights,
    counted,
    make_segmenter,
    positive,
    print_scores,
    side,
    switches,
)

if TYPE_CHECKING:
    import pandas as pd


def _evaluate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="segmentation", help="prepared folder")
    sub.add_argument("--split", choices=("train", "val", "test"), default="test", help="which part of it")
    sub.add_argument("--sizes", type=side, nargs="+", default=[256, 512], help="px at which masks are compared")
    sub.add_argument(
        "--input", help="folder with the raw sets: compare at the original sizes too (size own; 0 in CSV files)"
    )
    sub.add_argument("--out", help="write OUT.csv, one row per radiograph, and OUT_summary.csv")
    add_weights(sub)


def evaluate(args: argparse.Namespace) -> int:
    from ..metrics import summarise
    from ..predictions import evaluate

    scores = evaluate(args.data, make_segmenter(args), split=args.split, sizes=args.sizes, raw=args.input)
    summary = summarise(scores, ["source", "protocol", "size"])
    print_scores(summary)
    if not args.out:
        print("all scores, radiograph by radiograph: --out FILE")
    else:
        out = args.out.removesuffix(".csv")
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        _write_table(Path(f"{out}.csv"), scores.round(5))
        _write_table(Path(f"{out}_summary.csv"), summary.round(5))
        print(f"all scores: {out}_summary.csv; radiograph by radiograph: {out}.csv")
    return 0


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Replaces a table of an earlier run, which has the same columns, and nothing else."""
    from ..tables import to_csv

    heading = ",".join(table.columns)
    if path.exists() and path.read_text(errors="replace").partition("\n")[0].strip() != heading:
        raise ValueError(f"{path}: it is there, and no table of scores: choose another name; the scores are above")
    files.write_bytes(path, to_csv(table))


def _predict_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "path",
        nargs="+",
        help="files, folders (searched below, through links) and globs: PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, "
        "NIfTI of one slice and DICOM, also gzip'd, under any name; and s3:// addresses of objects and prefixes",
    )
    sub.add_argument("--out", default="predictions", help="folder to write, or s3://bucket/prefix")
    add_batch_size(sub)
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
        help="one or more of png (masks and overlays), coco (run lengths of both lungs in OUT/coco.parquet) and "
        "dicom-seg (a DICOM segmentation object for each radiograph that is DICOM)",
    )
    sub.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        type=_ray_address,
        help="on the Ray cluster at HOST:PORT, on the one that this machine is in (auto), or on one of its own if no "
        "address is given; radiographs and OUT are s3:// prefixes or on a disk that every node sees; OUT gets shards "
        "of Parquet, one row per radiograph; the same command resumes a stopped run; needs ray[data]",
    )
    add_weights(sub)


def _ray_address(text: str) -> str:
    if text in ("auto", "local") or text.rpartition(":")[2].strip("/").isdecimal():
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no address of a cluster: films go before --ray")


def predict(args: argparse.Namespace) -> int:
    if args.ray:
        return _predict_on_cluster(args)
    from ..predictions import predict
    from ..quality import why_no_estimate
    from ..scale.s3 import as_addresses, fetch, results

    segmenter = make_segmenter(args)
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
    print(_outcome(args.out, len(table) - len(failed), len(failed) - refused, refused))
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
    if len(failed) < len(table):
        print(_next(args.out, args.format))
    return 3 if len(failed) else 0


def _next(out: str, formats: list[str]) -> str:
    """What to do with masks."""
    return (
        f"next: look at {out}/{SHEET}, the most doubtful masks first" if "png" in formats else f"next: look into {out}"
    )


def _outcome(out: str, masks: int, unreadable: int, refused: int) -> str:
    said = f"{counted(masks, 'mask')} in {out}, {counted(unreadable, 'file')} could not be read, "
    said += f"{counted(refused, 'film')} refused"
    return f"{said} (--force segments them)" if refused else said


def _predict_on_cluster(args: argparse.Namespace) -> int:
    from ..scale.cluster import Settings, predict_on_cluster
    from ..scale.s3 import fetch

    if args.format != ["png"]:
        raise ValueError("--ray writes Parquet with COCO run lengths and no other format: leave --format away")
    settings = Settings(batch=args.batch_size, force=args.force, **switches(args))
    weights = fetch(args.weights)
    manifest = predict_on_cluster(args.path, args.out, settings, weights=weights, device=args.device, address=args.ray)
    result: Any = manifest["result"]
    outcome = _outcome(args.out, result["masks"], result["unreadable"], result["refused"])
    print(f"{outcome}; {counted(result['doubtful'], 'mask')} to look at: flag and reasons there")
    for error in result["errors"]:
        print(f"  {error}", file=sys.stderr)
    return 3 if result["errors"] else 0


def _app_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at: this machine alone; 0.0.0.0 is for all who reach it, without a password",
    )
    sub.add_argument("--port", type=positive, default=7860, help="port to listen at")
    add_weights(sub)


def app(args: argparse.Namespace) -> int:
    from ..page.app import serve
    from ..tb import TBScreener

    serve(TBScreener(segmenter=make_segmenter(args), device=args.device), host=args.host, port=args.port)
    return 0


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
        "--calibrate-on",
        metavar="FOLDER",
        help="radiographs of the same hospital, 20 or more, without labels and as mixed as they come: levels of its "
        "machines stop counting as disease",
    )
    sub.add_argument(
        "--segmenter", help="weights of the network that finds the lungs, here or in S3; the shipped one if not given"
    )
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    add_batch_size(sub)


def screen(args: argparse.Namespace) -> int:
    from ..infer import LungSegmenter
    from ..scale.s3 import as_addresses, fetch, results
    from ..tb import PRESUMPTIVE, TBScreener, screen

    screener = TBScreener(
        fetch(args.weights), segmenter=LungSegmenter(fetch(args.segmenter), device=args.device), device=args.device
    )
    if args.calibrate_on:
        used = screener.calibrate([fetch(args.calibrate_on)])
        print(f"standardised by {counted(used, 'radiograph')} of {args.calibrate_on}")
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


def _export_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", choices=("onnx",), default="onnx", help="of the file")
    sub.add_argument("--weights", help="safetensors file, or a name as for predict; the shipped one if not given")
    sub.add_argument("--out", help="file to write; the weights' name with .onnx, in this folder, if not given")


def _exported(args: argparse.Namespace) -> str | None:
    return args.out or args.weights and f"{Path(args.weights).stem}.onnx"


def export(args: argparse.Namespace) -> int:
    from ..export import export_onnx
    from ..files import find_weights
    from ..scale.s3 import fetch

    weights = find_weights(fetch(args.weights))
    out = Path(args.out or f"{weights.stem}.onnx")
    export_onnx(weights, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, computes what PyTorch does")
    return 0


COMMANDS = (
    Command(
        "evaluate",
        evaluate,
        "score weights on a prepared folder, radiograph by radiograph",
        _evaluate_options,
        s3=("weights",),
        writes=lambda args: args.out and args.out.removesuffix(".csv"),
        is_folder=False,
    ),
    Command(
        "predict",
        predict,
        "write masks, overlays, a contact sheet, measurements and a table; exit status 3 if files could not be read "
        "or were refused",
        _predict_options,
        s3=("path", "out", "weights"),
        way_on=SAME_COMMAND,
    ),
    Command(
        "app",
        app,
        "open a page that outlines and measures the lungs of the radiograph you drop on it and screens it for "
        "tuberculosis, for research; nothing leaves the machine or stays on it; needs gradio",
        _app_options,
        s3=("weights",),
    ),
    Command(
        "screen",
        screen,
        "give a probability of tuberculosis with a heat map, or the reason why there is none: for research and "
        "teaching, no medical device; exit status 3 if some have none",
        _screen_options,
        s3=("path", "out", "weights", "segmenter", "calibrate_on"),
        way_on=SAME_COMMAND,
    ),
    Command(
        "export",
        export,
        "write the network for runtimes other than PyTorch, and check it against PyTorch",
        _export_options,
        s3=("weights",),
        writes=_exported,
        is_folder=False,
        check_out=files.check_out_file,
    ),
)
