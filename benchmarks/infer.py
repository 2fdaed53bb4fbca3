"""Milliseconds per film: PyTorch, ONNX Runtime and OpenVINO, beside MONAI's U-Nets and the classic 31M U-Net.

    python -m benchmarks.infer [--data segmentation] [--rounds 3]

Everyone computes on all cores, in turn, in one run: the network alone on normalised films of 256 and 512 px, one or 32
at a time; and from a PNG of 512 or 3000 px to a mask of the film's own size, as ``LungSegmenter`` does at the shipped
weights' size. A batch that would take more than ``LIMIT_S`` is left out. The int8 network is calibrated on training
films; the formats of this project's network are scored on the validation films too. Writes ``results/bench_infer.csv``.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.common import (
    RESULTS,
    draw_set,
    films_of,
    grainy,
    machine,
    make_parser,
    need,
    peer,
    seconds,
    validation_dice,
    write_table,
)
from kaggle_utils.data import LungDataset
from kaggle_utils.export import open_graph, to_onnx
from kaggle_utils.image import read_image, write_image
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter
from kaggle_utils.model import count_parameters, fold_norm, load_weights
from kaggle_utils.synthetic import AppearanceModel

sys.modules.setdefault("openvino_telemetry", None)  # else OpenVINO and NNCF report to the vendor over the network

LIMIT_S, SHARE_S = 3.0, 0.3  # of a batch, by what one film took; of a job in a round
JOB = ["network", "runtime", "what", "px", "films"]
Run = Callable[[torch.Tensor], torch.Tensor]  # normalised films (B, 1, H, W) to logits


def pytorch(model: nn.Module, *, bf16: bool) -> Run:
    """The network as LungSegmenter computes it."""
    model = fold_norm(model.eval()).to(memory_format=torch.channels_last)

    def run(films: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(films).float()

    return run


def int8(graph: bytes, films: np.ndarray) -> Run:
    """OpenVINO after quantisation; ``films``, float32 ``(N, 1, H, W)``, set the ranges of the activations."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core = openvino.Core()
    quantised = nncf.quantize(
        core.read_model(graph), nncf.Dataset([film[None] for film in films]), subset_size=len(films)
    )
    network = core.compile_model(quantised, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda films: torch.from_numpy(network(films.numpy())[0])


def networks() -> dict[str, nn.Module]:
    """This project's weights, and U-Nets that people use, untrained: the network's time doesn't depend on the weights.

    Cleaning a mask does take longer the noisier it is, so an untrained network's PNG to mask is no measure of a trained
    one's.
    """
    peers = {name: peer(name) for name in ("MONAI UNet", "MONAI BasicUNet", "classic U-Net")}
    return {name: model.eval() for name, model in ({"this project": load_weights(DEFAULT_WEIGHTS)} | peers).items()}


def runtimes(name: str, model: nn.Module, calibration: np.ndarray) -> dict[tuple[str, str], Run]:
    """(network, runtime) to what computes it: PyTorch and ONNX Runtime for all, OpenVINO for this project's network."""
    ours = name == "this project"
    graph = to_onnx(model) if ours else to_onnx(model, (1, 1, 256, 256))  # MONAI's pad otherwise, but can't export it
    found = {
        "PyTorch bfloat16": pytorch(model, bf16=True),
        "PyTorch float32": pytorch(model, bf16=False),
        "ONNX Runtime float32": open_graph(graph, "onnxruntime"),
    }
    if ours:
        found |= {
            "OpenVINO float32": open_graph(graph, "openvino"),
            "OpenVINO bfloat16": open_graph(graph, "openvino", bf16=True),
            "OpenVINO int8": int8(graph, calibration),
        }
    return {(name, runtime): run for runtime, run in found.items()}


def segmenter_of(runtime: str, run: Run) -> LungSegmenter:
    """A segmenter with this network in place of its own."""
    segmenter = LungSegmenter(device="cpu")
    segmenter.model, segmenter.dtype = run, None
    if not runtime.startswith("PyTorch"):
        segmenter.threads = None  # as with any other backend
    return segmenter


def jobs(runtime: str, run: Run, pngs: dict[int, Path]) -> dict[tuple[str, int, int], Callable[[], object]]:
    """(what, px, films) to a call that does it."""
    segmenter, found = segmenter_of(runtime, run), {}
    for batch in (1, 32):
        for px in (256, 512):
            films = torch.randn(batch, 1, px, px)
            found["network", px, batch] = lambda films=films: run(films)
        for px, png in pngs.items():
            found["PNG to mask", px, batch] = lambda png=png, n=batch: segmenter.masks(
                [read_image(png) for _ in range(n)]
            )
    return found


def measure(job: Callable[[], object]) -> list[float]:
    """The seconds of each call, of one at least, for about ``SHARE_S``."""
    times = [seconds(job)]
    while sum(times) + times[0] < SHARE_S:
        times.append(seconds(job))
    return times


def write_pngs(folder: Path) -> dict[int, Path]:
    """Side in px to a synthetic radiograph of that size; the large one with the grain of a digitised film."""
    film = AppearanceModel.load().sample(1, seed=0, size=512)[0].image
    pngs = {512: folder / "512.png", 3000: folder / "3000.png"}
    write_image(pngs[512], film)
    write_image(pngs[3000], grainy(film, 3000))
    return pngs


def time_all(runs: dict[tuple[str, str], Run], pngs: dict[int, Path], rounds: int) -> pd.DataFrame:
    """Milliseconds per film of every job of every network, in turn, in as many rounds, after one that warms up.

    Args:
        runs: by network and runtime.
        pngs: see :func:`jobs`.
        rounds: that count.
    """
    todo = {(*key, *what): job for key, run in runs.items() for what, job in jobs(key[1], run, pngs).items()}
    alone: dict[tuple, float] = {}  # seconds of one film
    rows = []
    for turn in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for (*key, films), job in todo.items():
            if films == 1 or alone[tuple(key)] * films < LIMIT_S:
                times = measure(job)
                alone[tuple(key)] = min(times)
                if turn:
                    rows += [(*key, films, 1000 * each / films) for each in times]
    calls = pd.DataFrame(rows, columns=[*JOB, "ms"]).groupby(JOB, sort=False)["ms"]
    return calls.agg(median_ms="median", min_ms="min", calls="size").round(2).reset_index()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="prepared set to calibrate and score with; synthetic if not given")
    parser.add_argument("--rounds", type=int, default=3, help="turns, after one that warms up")
    args = parser.parse_args()
    need("monai", "nncf", "onnxruntime", "openvino")
    torch.set_num_threads(os.cpu_count())
    models = networks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pngs, data = write_pngs(folder), args.data or draw_set(folder)
        films = LungDataset(films_of(data, "train").iloc[:64], 256)
        calibration = np.stack([films[i]["image"].numpy() for i in range(len(films))])
        runs = {key: run for name, model in models.items() for key, run in runtimes(name, model, calibration).items()}
        dice = {
            key: validation_dice(data, segmenter_of(key[1], run), 256).mean()
            for key, run in runs.items()
            if key[0] == "this project"
        }
        table = time_all(runs, pngs, args.rounds)
    parameters = {name: count_parameters(model) for name, model in models.items()}
    table.insert(2, "parameters", table["network"].map(parameters))
    table["validation_dice"] = [round(dice.get(key, np.nan), 5) for key in zip(table["network"], table["runtime"])]
    packages = machine("torch", "onnxruntime", "openvino", "nncf", "monai")
    write_table(RESULTS / "bench_infer.csv", table.assign(machine=packages))


if __name__ == "__main__":
    main()
