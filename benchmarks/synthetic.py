"""Are synthetic radiographs copies of patients' films, and are they worth training on? ``results/synthetic.json``.

    python -m benchmarks.synthetic STUDY [STUDY …] --data segmentation [--steps …]

privacy   no sample is nearer to a training film than training films are to each other; no mode is mostly one film
alone     trained on samples alone, tested on real films
mixed     real films and samples against real films alone, at equal steps
number    samples alone: Dice against how many there are, at equal steps
modes     samples alone: Dice against how many texture modes the model has, at equal steps
transfer  trained on real films (the weights of `mixed`), tested on samples

Each study adds its key to the file; a finished training is not run again (its folder in ``runs/synthetic`` is kept).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, RUNS, add_json, command, make_parser
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import read_manifest
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import summarise
from kaggle_utils.predictions import evaluate
from kaggle_utils.synthetic import ASSET, AppearanceModel, fit_prepared, write_prepared
from kaggle_utils.synthetic.fit import FitConfig
from kaggle_utils.synthetic.model import check_privacy
from kaggle_utils.trainer import train

FOLDER = RUNS / "synthetic"
SAMPLES = 1600  # drawn; one in ten has no mask, 50 go to the test and a fifth of the rest to validation


def samples(n: int = SAMPLES, *, seed: int = 1, model: AppearanceModel | None = None, name: str = "samples") -> Path:
    """A prepared set of samples, made once; seed 0 is the one that `make run` trains on."""
    asset = hashlib.sha256(ASSET.read_bytes()).hexdigest()[:8]
    return write_prepared(FOLDER / f"{name}_{n}_{seed}_{asset}", n, seed, model=model, size=256)


def trained(name: str, data: list[Path], steps: int, *, films: int = 0) -> Path:
    """Weights of a run of about so many steps on these sets, validated on the first one's validation films."""
    out, batch = FOLDER / name, TrainConfig().batch_size
    n = count(data)
    epochs = max(1, round(steps * batch / min(n, films or n)))
    # All settings that the results were taken with and that have other defaults since.
    config = TrainConfig(
        epochs=epochs, films=films, ema_decay=0.995, base_channels=24, size=256, heads=False, flagged_masks=True
    )
    train(data, out, config, resume=True)
    return out / "best.safetensors"


def tested(weights: Path, data: Path) -> dict[str, dict]:
    """Dice at 256 px on the published Montgomery and Shenzhen test lists and on all of JSRT."""
    table = summarise(evaluate(data, LungSegmenter(weights), sizes=[256]), ["source", "protocol"])
    return by_set(table[(table["protocol"] == "all") == (table["source"] == "jsrt")])


def by_set(table: pd.DataFrame) -> dict[str, dict]:
    """Of a summary: n, Dice with its interval, the worst film's, and HD95 in px of each set."""
    return table.set_index("source")[["n", "dice", "low", "high", "worst", "hd95"]].round(4).to_dict("index")


def count(data: list[Path]) -> int:
    """How many training films these sets have."""
    frames = [read_manifest(root) for root in data]
    return sum(int((f["split"].eq("train") & f["source"].isin(TrainConfig().sources)).sum()) for f in frames)


def privacy(data: Path, steps: int) -> dict:
    return check_privacy(AppearanceModel.load(), data)


def alone(data: Path, steps: int) -> dict:
    return {"training_films": count([samples()]), **tested(trained("alone", [samples()], steps), data)}


def mixed(data: Path, steps: int) -> dict:
    return {
        "training_films": [count([data]), count([data, samples()])],
        "real": tested(trained("real", [data], steps), data),
        "real_and_samples": tested(trained("mixed", [data, samples()], steps), data),
    }


def number(data: Path, steps: int) -> dict:
    return {
        str(n): tested(trained(f"number_{n}", [samples()], steps, films=n), data) for n in (50, 400, count([samples()]))
    }


def modes(data: Path, steps: int) -> dict:
    result = {}
    for texture, windows, linked in ((10, 60, 10), (30, 250, 40)):
        config = FitConfig(texture=texture, windows=windows, linked=linked)
        set_ = samples(800, model=fit_prepared(data, config), name=f"modes_{texture}")
        result[f"{texture} global, {windows} local"] = tested(
            trained(f"modes_{texture}", [set_], steps, films=400), data
        )
    result["100 global, 860 local"] = tested(trained("number_400", [samples()], steps, films=400), data)
    return result


def transfer(data: Path, steps: int) -> dict:
    segmenter, drawn = LungSegmenter(trained("real", [data], steps)), samples(400, seed=2, name="unseen")
    table = pd.concat([evaluate(drawn, segmenter, split=split, sizes=[256]) for split in ("train", "val", "test")])
    return by_set(summarise(table, ["source"]))


STUDIES = {function.__name__: function for function in (privacy, alone, mixed, number, modes, transfer)}


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("study", nargs="+", choices=STUDIES)
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps per training")
    args = parser.parse_args()
    for study in args.study:
        result = STUDIES[study](args.data, args.steps)
        add_json(RESULTS / "synthetic.json", study, result | {"command": command()})


if __name__ == "__main__":
    main()
