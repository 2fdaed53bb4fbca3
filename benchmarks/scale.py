"""Radiographs per second, and memory against the number of films, of ``predict --ray`` on one machine.

    python -m benchmarks.scale speed [--films 128]
    python -m benchmarks.scale memory [--films 1000 10000 100000]

``speed``: synthetic radiographs of 1024, 1536 and 2048 px as PNG, with the grain of a digitised film, by the shipped
weights, with 1 and 2 workers. ``memory``: the whole way with a tiny network over hard links to 200 different films of
96 px, with 2 workers.

Rates are those after the first quarter of the films, so that the start of Ray and of its workers doesn't count.
``cpu_s_per_film`` is what the workers computed per film: unlike ``images_per_s`` it hardly depends on what else the
machine does (``load``, before the row). Peaks are resident memory (RSS), with pages that processes share counted in
each. A command replaces its rows of ``results/scale.csv``.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # before Ray: loopback alone

import numpy as np
import pandas as pd
import torch

from benchmarks.common import RESULTS, grainy, machine, make_parser, need
from kaggle_utils.image import write_image
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.scale import cluster
from kaggle_utils.synthetic import AppearanceModel

SIZES = (1024, 1536, 2048)  # px
DISTINCT = 200  # films of the memory rows


class Watch(threading.Thread):
    """Peak MB of this process, of the largest worker and of all together, and the workers' CPU seconds over time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.over, self.driver, self.worker, self.workers, self.cpu = threading.Event(), 0.0, 0.0, 0.0, []
        self.spent = {}  # seconds by process, also of those that are gone

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self.over.wait(0.5):
            sizes = [0.0]
            for process in me.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(process.cmdline()):
                        sizes.append(process.memory_info().rss / 1e6)
                        self.spent[process.pid] = sum(process.cpu_times()[:2])
                except psutil.Error:  # it is gone
                    continue
            self.driver, self.worker = max(self.driver, me.memory_info().rss / 1e6), max(self.worker, *sizes)
            self.workers = max(self.workers, sum(sizes))
            self.cpu.append((time.time(), sum(self.spent.values())))


def run(films: Path, out: Path, workers: int, shard: int, weights: Path | None = None) -> dict[str, float]:
    """A row of one run, on a cluster of its own."""
    from ray.cluster_utils import Cluster

    load, watch = os.getloadavg()[0], Watch()
    node = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": workers, "include_dashboard": False, "node_ip_address": "127.0.0.1"},
    )
    watch.start()
    start = time.time()
    try:
        manifest = cluster.predict_on_cluster([films], out, weights=weights, address=node.address, shard=shard)
    finally:
        watch.over.set()
        node.shutdown()
    whole = sorted(path.stat().st_mtime for path in out.glob("*.parquet"))
    first = len(whole) // 4
    seconds, count = whole[-1] - whole[first], shard * (len(whole) - 1 - first)
    spent = np.interp([whole[first], whole[-1]], *zip(*watch.cpu))
    return {
        "workers": workers,
        "films": manifest["films"],
        "masks": manifest["result"]["masks"],
        "total_s": round(whole[-1] - start, 1),
        "images_per_s": round(count / seconds, 2),
        "cpu_s_per_film": round(float(spent[1] - spent[0]) / count, 4),
        "driver_mb": round(watch.driver),
        "worker_mb": round(watch.worker),
        "workers_mb": round(watch.workers),
        "out_bytes_per_film": round(sum(path.stat().st_size for path in out.glob("*.parquet")) / manifest["films"]),
        "load": round(load, 1),
    }


def write_films(folder: Path, n: int, px: int) -> float:
    """Films of one size; returns their mean size in MB."""
    folder.mkdir(parents=True)
    for k, film in enumerate(AppearanceModel.load().sample(n, seed=0, size=min(px, 512))):
        write_image(folder / f"{k:05d}.png", grainy(film.image, px, k))
    return sum(path.stat().st_size for path in folder.iterdir()) / n / 1e6


def link_films(source: Path, folder: Path, n: int) -> None:
    """``n`` films of a folder's few, a thousand in each folder below."""
    files = sorted(source.iterdir())
    for k in range(n):
        below = folder / f"{k // 1000:04d}"
        below.mkdir(parents=True, exist_ok=True)
        os.link(files[k % len(files)], below / f"{k:07d}.png")


def speed(folder: Path, films: int) -> list[dict]:
    rows = []
    for px in SIZES:
        size = write_films(folder / str(px), films, px)
        for workers in (1, 2):
            found = run(folder / str(px), folder / f"out-{px}-{workers}", workers, shard=8)
            rows.append({"what": "speed", "px": px, "mb_per_film": round(size, 2)} | found)
            print(rows[-1], flush=True)
    return rows


def memory(folder: Path, counts: list[int]) -> list[dict]:
    torch.manual_seed(8)  # by chance a network that finds two large regions: they are measured and encoded as lungs are
    weights, rows = folder / "tiny.safetensors", []
    save_weights(weights, UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    size = write_films(folder / "distinct", DISTINCT, 96)
    for n in counts:
        link_films(folder / "distinct", folder / f"films-{n}", n)
        found = run(folder / f"films-{n}", folder / f"out-{n}", 2, shard=100, weights=weights)
        del found["cpu_s_per_film"]  # of a network that nobody uses
        rows.append({"what": "memory", "px": 96, "mb_per_film": round(size, 3)} | found)
        print(rows[-1], flush=True)
    return rows


KEY = ["films", "workers", "px", "what"]  # of a row, which a new run replaces


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument(
        "--films", type=int, nargs="+", help="per size, 128 if not given; or how many, in a run per number"
    )
    args = parser.parse_args()
    need("psutil", "ray")
    with tempfile.TemporaryDirectory(prefix="ul", ignore_cleanup_errors=True) as name:
        os.environ["RAY_TMPDIR"] = name
        if args.what == "speed":
            rows = speed(Path(name), *(args.films or [128]))
        else:
            rows = memory(Path(name), args.films or [1000, 10000, 100000])
    table, path = pd.DataFrame(rows).assign(machine=machine("ray", "torch")), RESULTS / "scale.csv"
    table = pd.concat([pd.read_csv(path), table]).drop_duplicates(KEY, keep="last")
    table.sort_values(KEY[::-1], kind="stable").to_csv(path, index=False)


if __name__ == "__main__":
    main()
