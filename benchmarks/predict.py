"""Films a second of `predict` over a folder, in float32, and in bfloat16 where the processor computes in it.

    python -m benchmarks.predict [--films 275] [--rounds 3]

Synthetic radiographs of 500 px become masks, overlays and tables, in one process, in turn. A first round warms up.
Seconds are the clock's, which other processes move, and the processor's, which they move less. Writes
``results/predict.json``.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import RESULTS, command, machine, make_parser, median, write_json
from kaggle_utils.image import write_image
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.predictions import predict
from kaggle_utils.synthetic import AppearanceModel

PX = 500


def draw(folder: Path, count: int) -> None:
    """Writes so many synthetic radiographs."""
    for film in AppearanceModel.load().stream(count, seed=0, size=PX):
        write_image(folder / f"{film.name}.png", film.image)


def segmenters() -> dict[str, LungSegmenter]:
    """By precision."""
    plain, fastest = LungSegmenter(device="cpu"), LungSegmenter(device="cpu")
    plain.dtype = None
    return {"float32": plain} | ({"bfloat16": fastest} if fastest.dtype else {})


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
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    todo = segmenters()
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), args.films)
        rounds = [{key: once(Path(name), each) for key, each in todo.items()} for _ in range(args.rounds + 1)]
    found = {}
    for precision in todo:
        runs = [each[precision] for each in rounds[1:]]
        found[precision] = {what: median([run[what] for run in runs], 1) for what in runs[0]}
        print(f"{precision}: {found[precision]}")
    head = {"command": command(), "machine": machine("torch"), "films": args.films, "px": PX, "rounds": args.rounds}
    write_json(RESULTS / "predict.json", head | found)


if __name__ == "__main__":
    main()
