"""Films a second of `predict` over a folder: as it is, and without what makes it quick.

    python -m benchmarks.predict [--films 275] [--rounds 3] [--quick]

Synthetic radiographs of 500 px become masks, overlays and tables, in one process, in turn: as ``LungSegmenter`` is
made; with batch normalisation that is not folded into the convolutions; and with PyTorch's threads sharing a batch,
instead of a film for each. In float32, and in bfloat16 where the processor computes in it. A first round warms up.
Seconds are the clock's, which other processes move, and the processor's, which they move less. Writes
``results/predict.json``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import RESULTS, command, machine, make_parser, median, write_json
from kaggle_utils.image import write_image
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import load_weights
from kaggle_utils.predictions import predict
from kaggle_utils.synthetic import AppearanceModel

PX = 500


def draw(folder: Path, count: int) -> None:
    """Writes so many synthetic radiographs."""
    for film in AppearanceModel.load().stream(count, seed=0, size=PX):
        write_image(folder / f"{film.name}.png", film.image)


def as_it_is(segmenter: LungSegmenter) -> None:
    """Changes nothing."""


def not_folded(segmenter: LungSegmenter) -> None:
    """Gives a segmenter the network as its weights' file has it."""
    segmenter.model = load_weights(segmenter.path).to(memory_format=torch.channels_last)


def shared_batch(segmenter: LungSegmenter) -> None:
    """Has all threads work on one batch."""
    segmenter.threads = None


VARIANTS: dict[str, Callable[[LungSegmenter], None]] = {
    "as it is": as_it_is,
    "normalisation not folded": not_folded,
    "threads share a batch": shared_batch,
}


def segmenters() -> dict[tuple[str, str], LungSegmenter]:
    """By precision and variant."""
    found = {}
    for variant, change in VARIANTS.items():
        for precision, dtype in {"float32": None, "bfloat16": torch.bfloat16}.items():
            segmenter = LungSegmenter(device="cpu")
            if dtype in (None, segmenter.dtype):
                change(segmenter)
                segmenter.dtype = dtype
                found[precision, variant] = segmenter
    return found


def once(films: Path, segmenter: LungSegmenter) -> dict[str, float]:
    """Films a second, and the processor's milliseconds per film."""
    with tempfile.TemporaryDirectory() as out:
        clock, cpu = time.perf_counter(), time.process_time()
        count = len(predict([films], out, segmenter))
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"films_per_second": count / clock, "cpu_ms": 1000 * cpu / count}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--films", type=int, default=275)
    parser.add_argument("--rounds", type=int, default=3, help="turns, after one that warms up")
    parser.add_argument("--quick", action="store_true", help="16 films, one turn, and no file: does it work at all?")
    args = parser.parse_args()
    count, rounds = (16, 1) if args.quick else (args.films, args.rounds)
    torch.set_num_threads(os.cpu_count())
    todo = segmenters()
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), count)
        turns = [{key: once(Path(name), segmenter) for key, segmenter in todo.items()} for _ in range(rounds + 1)][1:]
    found: dict[str, dict] = {}
    for precision, variant in todo:
        runs = [turn[precision, variant] for turn in turns]
        medians = {what: median([run[what] for run in runs], 1) for what in runs[0]}
        found.setdefault(precision, {})[variant] = medians
        print(f"{precision}, {variant}: {medians}")
    if not args.quick:
        head = {"command": command(), "machine": machine("torch"), "films": count, "px": PX, "rounds": rounds}
        write_json(RESULTS / "predict.json", head | found)


if __name__ == "__main__":
    main()
