"""Preparing raw films against merely decoding and resizing them.

    python -m benchmarks.prep [--films 40]

Makes 4020×4892 PNGs in Montgomery's layout, each with a left and a right mask, and runs in turn, with all cores:
``decode``, which reads each file with OpenCV and resizes it to 512 px, and ``prep``, which does everything. Writes
``results/bench_prep.json``.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import RESULTS, machine, make_parser, peak_mb, seconds, write_json
from kaggle_utils.prep import prepare
from kaggle_utils.sets import find_films

HEIGHT, WIDTH = 4020, 4892


def write_films(root: Path, n: int) -> None:
    """Films with the entropy of a digitised radiograph (5-7 MB as PNG): a smooth torso and grain of two grey levels."""
    kinds = "ManualMask/leftMask", "ManualMask/rightMask", "CXR_png"
    folders = [root / "MontgomerySet" / kind for kind in kinds]
    for folder in folders:
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 1.2, (HEIGHT, WIDTH)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    lungs = [((x - side) / 0.28) ** 2 + (y / 0.7) ** 2 < 1 for side in (0.4, -0.4)]  # patient's left is image right
    torso = 190 - 60 * x**2 - 90 * (lungs[0] | lungs[1]).astype(np.float32)
    for i in range(n):
        name = f"MCUCXR_{9000 + i}_0.png"
        film = np.clip(torso + np.roll(grain, 37 * i, axis=1), 0, 255)
        for folder, picture in zip(folders, (*(255 * lung for lung in lungs), film)):
            cv2.imwrite(str(folder / name), picture.astype(np.uint8))


def decode(root: Path) -> None:
    """The least any preparation must do: every file decoded and resized, one thread a core."""

    def work(path: Path) -> np.ndarray:
        return cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (512, 512), interpolation=cv2.INTER_AREA)

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, [path for film in find_films(root) for path in film.files.values()]))


def timed(job, *args) -> dict[str, float]:
    """Seconds and peak memory (MB) of a job in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (job, args))


def _measure(job, args) -> dict[str, float]:
    base = peak_mb()
    return {"seconds": seconds(partial(job, *args)), "mb": peak_mb() - base}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--films", type=int, default=40, help="how many radiographs to make")
    parser.add_argument("--rounds", type=int, default=3, help="times each contestant runs, in turn; the best counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        write_films(raw, args.films)
        mb = np.mean([p.stat().st_size for p in raw.rglob("CXR_png/*.png")]) / 1e6
        runs = [(timed(decode, raw), timed(prepare, raw, Path(folder) / f"out{i}")) for i in range(args.rounds)]
    decoding, preparing = (min(run[k]["seconds"] for run in runs) for k in (0, 1))
    result = {
        "machine": machine(),
        "opencv": cv2.__version__,
        "films": args.films,
        "film": f"{HEIGHT}x{WIDTH}, {mb:.1f} MB",
        "decode_s": round(decoding, 2),
        "prep_s": round(preparing, 2),
        "ratio": round(preparing / decoding, 3),
        "images_per_s": round(args.films / preparing, 2),
        "peak_mb_per_worker": round(max(run[1]["mb"] for run in runs) / os.cpu_count()),
    }
    write_json(RESULTS / "bench_prep.json", result)
    print(result)


if __name__ == "__main__":
    main()
