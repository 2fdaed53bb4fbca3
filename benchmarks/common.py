"""What the benchmarks share: their options, the machine's name, and results that are written whole or not at all."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_utils.files import write_bytes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd  # not for all: some measure how little memory they need
    from torch import nn

    from kaggle_utils.infer import LungSegmenter

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = ROOT / "results", ROOT / "runs"
AWS = {  # of a server on this machine, which lets everybody in
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def make_parser(about: str | None, *, data: bool = False) -> argparse.ArgumentParser:
    """A benchmark's options.

    Args:
        about: its docstring, which is the help.
        data: whether it reads a prepared set: ``--data``.
    """
    parser = argparse.ArgumentParser(
        f"python -m {_module()}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if data:
        parser.add_argument("--data", type=Path, default="segmentation", help="prepared folder with the real sets")
    return parser


def need(*packages: str) -> None:
    """Raises ModuleNotFoundError for the first package of the ``dev`` extra that is not installed."""
    for package in packages:
        if not find_spec(package):
            raise ModuleNotFoundError(name=package)


def command() -> str:
    """What was typed, for the results."""
    return shlex.join(["python", "-m", _module(), *sys.argv[1:]])


def _module() -> str:
    return f"benchmarks.{Path(sys.argv[0]).stem}"


def machine(*packages: str) -> str:
    """What the numbers were measured on: the machine, and the packages that count."""
    from kaggle_utils.hardware import choose_device, choose_precision

    bf16 = ["AVX512-BF16"] if choose_precision(choose_device("cpu")) == "bf16" else []
    versions = [f"{name} {version(name)}" for name in packages]
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", *bf16, *versions])


def read_json(path: Path) -> dict[str, Any]:
    """A benchmark's results so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Replaces a benchmark's results, wholly or not at all."""
    write_bytes(path, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())


def add_json(path: Path, name: str, result: dict[str, Any]) -> None:
    """Puts one part beside the other results, and prints it."""
    write_json(path, read_json(path) | {name: result})
    print(name, json.dumps(result, indent=2, ensure_ascii=False), flush=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Replaces a table of results, wholly or not at all, and prints it."""
    write_bytes(path, table.to_csv(index=False).encode())
    print(table.to_string(index=False))


def films_of(data: Path, split: str, sources: Sequence[str] = ("montgomery", "shenzhen")) -> pd.DataFrame:
    """The manifest's rows of a split of these sets."""
    from kaggle_utils.data import read_manifest

    frame = read_manifest(data)
    return frame[(frame["split"] == split) & frame["source"].isin(sources)]


def draw_set(folder: Path) -> Path:
    """A prepared set of synthetic radiographs, to train or to score on."""
    from kaggle_utils.synthetic import write_prepared

    return write_prepared(folder, n=160, seed=0)


def grainy(film: np.ndarray, px: int, seed: int = 0) -> np.ndarray:
    """A radiograph ``uint8 (H, W)`` enlarged to a square, with the grain of a digitised film."""
    import numpy as np

    from kaggle_utils.image import resize_image

    grain = np.random.default_rng(seed).normal(0, 1.2, (px, px))
    return (resize_image(film, px) + grain).clip(0, 255).astype(np.uint8)


def validation_dice(data: Path, segmenter: LungSegmenter, size: int) -> pd.Series:
    """Dice at so many px of each validation film of the sets that a network learned, by the head of its own set."""
    from kaggle_utils.predictions import evaluate

    scores = evaluate(data, segmenter, split="val", sizes=[size], whole=())
    return scores.loc[scores["source"].isin(segmenter.header["sources"]), "dice"]


def peer(name: str) -> nn.Module:
    """MONAI UNet as its 2d_segmentation/torch/unet_training_dict.py has it, MONAI BasicUNet, or the classic U-Net."""
    from monai.networks import nets

    from kaggle_utils.model import UNet

    if name == "MONAI UNet":
        return nets.UNet(2, 1, 1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    if name == "MONAI BasicUNet":
        return nets.BasicUNet(spatial_dims=2, in_channels=1, out_channels=1)
    return UNet(base_channels=64, up="transposed")


@contextmanager
def s3_server() -> Iterator[None]:
    """A server of S3's protocol (moto), which this process and those that it starts take for AWS."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    os.environ |= AWS | {"AWS_ENDPOINT_URL": "http://{}:{}".format(*moto.get_host_and_port())}
    try:
        yield
    finally:
        moto.stop()


def seconds(job: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def median(values: Sequence[float], digits: int) -> float:
    """Rounded, for the results."""
    return round(statistics.median(values), digits)


def peak_mb() -> float:
    """Peak resident memory of this process alone: getrusage's is at least what its parent had."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
