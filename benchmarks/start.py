"""How long the program takes to start: until a mistyped path is told, the network is open, one film is done.

    python -m benchmarks.start [--runs 5]

Each run is a process of its own, and the first of each kind isn't counted, as it reads the libraries from the disk.
Seconds are the clock's, which other processes move, and the processor's, which they hardly do; the network's are of
``LungSegmenter()`` alone, in a process that has imported it, and PyTorch. The film is a synthetic radiograph of
512 px. Writes ``results/start.json``; exit status 1 if a median is over its limit.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, command, machine, make_parser, median, write_json
from kaggle_utils.image import write_image
from kaggle_utils.synthetic import AppearanceModel

OPEN = """
import time
from kaggle_utils import data, export, hardware, model  # what the first one would import: PyTorch
from kaggle_utils.infer import LungSegmenter
clock, cpu = time.perf_counter(), time.process_time()
LungSegmenter(device="cpu")
print(time.perf_counter() - clock, time.process_time() - cpu)
"""
COMMAND = [sys.executable, "-m", "kaggle_utils", "predict"]
KINDS = {  # of each: the command, the status that it ends with, and the limit, clock seconds of a quiet machine
    "a mistyped path is told": ([*COMMAND, "nowhere.png", "--out", "out"], 1, 0.5),
    "LungSegmenter() after the imports": ([sys.executable, "-c", OPEN], 0, 0.3),
    "one film by command line": ([*COMMAND, "film.png", "--out", "out", "--device", "cpu"], 0, 3.0),
}


def seconds(command: list[str], status: int, folder: str) -> tuple[float, float]:
    """Clock and processor seconds of one process, or those that it measured itself."""
    clock, cpu = time.perf_counter(), _children_cpu()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    clock, cpu = time.perf_counter() - clock, _children_cpu() - cpu
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}, not {status}: {done.stderr}")
    return tuple(map(float, done.stdout.split())) if command[1] == "-c" else (clock, cpu)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(runs: int) -> dict[str, dict[str, object]]:
    """Medians, and all runs, of each kind."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder, "film.png"), AppearanceModel.load().film(7, 0, size=512, tb=0).image)
        for kind, (command, status, limit) in KINDS.items():
            clock, cpu = zip(*[seconds(command, status, folder) for _ in range(runs + 1)][1:])
            found[kind] = {
                "seconds": median(clock, 3),
                "cpu_seconds": median(cpu, 3),
                "limit": limit,
                "all_seconds": [round(s, 3) for s in clock],
            }
    return found


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="per kind, besides the first")
    found = measure(parser.parse_args().runs)
    write_json(RESULTS / "start.json", {"command": command(), "machine": machine(), "medians": found})
    for kind, times in found.items():
        print(f"{kind}: {times['seconds']} s, {times['cpu_seconds']} s of the processor (limit {times['limit']} s)")
    return int(any(times["seconds"] > times["limit"] for times in found.values()))


if __name__ == "__main__":
    sys.exit(main())
