"""Cold starts of ``deploy/lambda/handler.py``: seconds until it takes events and its first film is done, and memory.

    python -m benchmarks.lambda_cold [--runs 5]

Each run is a fresh process on one core, with 512 MB for its data (``RLIMIT_DATA``, which the handler sets), that gets
one event of a server (moto) on this machine: a film of 512 px, and one as large as the function takes, of 16 bits.
Seconds are the clock's, which other processes move, and the process's own. Writes ``results/lambda.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.common import RESULTS, ROOT, machine, make_parser, median, s3_server, write_json
from kaggle_utils.export import export_onnx
from kaggle_utils.image import encode_image, resize_image
from kaggle_utils.infer import DEFAULT_WEIGHTS
from kaggle_utils.scale import s3
from kaggle_utils.synthetic import AppearanceModel

MEMORY_MB, START_S = 512, 2.0  # the limits
CHILD = r"""
import json, os, re, sys, time
begun = float(sys.argv[1])
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
sys.path[:0] = [{root!r}, {root!r} + "/deploy/lambda"]
import handler
ready, cpu = time.time() - begun, time.process_time()
film = {{"bucket": {{"name": "films"}}, "object": {{"key": sys.argv[2]}}}}
outcome = handler.handler({{"Records": [{{"s3": film}}]}})[0]["outcome"]
heavy = [name for name in ("torch", "pandas", "albumentations") if name in sys.modules]
first = time.time() - begun - ready
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())  # getrusage's is the parent's too
print(json.dumps({{"outcome": outcome, "start_s": ready, "start_cpu_s": cpu, "first_film_s": first, "heavy": heavy,
                   "peak_rss_mb": int(peak[1]) / 1024}}))
"""


def cold_start(key: str) -> dict[str, object]:
    """One process from its start to its first film."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=str(ROOT)), str(time.time()), key],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def films() -> dict[str, np.ndarray]:
    """Synthetic radiographs: one of 512 px, and one of 20 megapixels and 16 bits."""
    film = AppearanceModel.load().sample(1, 0, size=512, acquire=False)[0].image
    large = resize_image(film, (4472, 4472)).astype(np.uint16) * 257
    noise = np.random.default_rng(0).integers(-300, 300, large.shape, np.int16)
    return {
        "512 px": film,
        "20 megapixels, 16 bits": np.clip(large.astype(np.int32) + noise, 0, 65535).astype(np.uint16),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="processes per film")
    runs = parser.parse_args().runs
    result = {
        "machine": f"{machine()}, the process has one",
        "load_before": round(os.getloadavg()[0], 1),
        "niceness": os.nice(0),
        "runs": runs,
        "limits": {"memory_mb": MEMORY_MB, "start_s": START_S},
    }
    with tempfile.TemporaryDirectory() as folder, s3_server():
        os.environ |= {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(MEMORY_MB), "MODEL": f"{folder}/lungs.onnx"}
        export_onnx(DEFAULT_WEIGHTS, f"{folder}/lungs.onnx")
        client = s3.connect()
        client.create_bucket(Bucket="films")
        for name, film in films().items():
            client.put_object(Bucket="films", Key="films/film.png", Body=encode_image(film, ".png"))
            done = [cold_start("films/film.png") for _ in range(runs)]
            assert all(run["outcome"] == "segmented" and not run["heavy"] for run in done), done
            measures = ("start_s", "start_cpu_s", "first_film_s", "peak_rss_mb")
            result[name] = {f"{each}_median": median([run[each] for run in done], 2) for each in measures}
            print(name, result[name], flush=True)
    write_json(RESULTS / "lambda.json", result)


if __name__ == "__main__":
    main()
