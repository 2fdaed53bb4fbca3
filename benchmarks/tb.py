"""Does segmenting first help to see tuberculosis, and what is learned that holds for another hospital's radiographs?

    python -m benchmarks.tb protocols [--data segmentation] [--only both folds montgomery shenzhen] [--jobs 2]
    python -m benchmarks.tb choose · speed · ship · shipped · pretrain

Each run trains from random weights, calibrates on validation films and is asked once about the test films; its logits,
a row per film, go to ``results/tb_films.csv``, from which ``results/tb.csv`` is made. A run whose rows are there is not
done again, so a stopped sweep resumes with the same command. Nothing was chosen on test films: ``choose`` compares
settings by cross-validation inside the training and validation lists (``results/tb_choices.csv``; most were stopped
after one or two of three folds, when they were not ahead, and some rows are of forms of the code that are gone, as they
say).

What each run had seen besides its own labelled training films:

- The lungs are cut out by segmenters that saw no film of the set they cut (``crossed``: Shenzhen's films by the one
  trained on Montgomery's masks, and the other way round), so test films are cut no better than any. Where an external
  set is the test, one segmenter cuts both sets, that of the set trained on: nothing has seen the external set, not even
  its masks.
- Nothing else: to start from a segmenter's encoder, trained on the masks of the same training films (``pretrain``), was
  no better in cross-validation than to start from random weights, so no protocol does.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, make_parser, seconds, write_table
from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset, make_loader
from kaggle_utils.files import write_bytes
from kaggle_utils.image import read_image, resize_image
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.loss import make_loss
from kaggle_utils.model import UNet, load_weights, save_weights
from kaggle_utils.splits import LICENCES, flagged_masks
from kaggle_utils.tb import (
    PRESUMPTIVE,
    VARIANTS,
    TBConfig,
    TBScreener,
    calibrated,
    make_cuts,
    score_tb,
    screen,
    tb_frame,
)
from kaggle_utils.tb.calibrate import SENSITIVITY
from kaggle_utils.tb.data import Cuts, cut, folds, load_cuts, save_cuts, stack
from kaggle_utils.tb.net import TBEnsemble, TBNet, load_tb
from kaggle_utils.tb.screening import TB_WEIGHTS
from kaggle_utils.tb.train import logits_of, train_tb
from kaggle_utils.trainer import Trainer
from kaggle_utils.tuning.study import beside

SETS = ("montgomery", "shenzhen")
RUNS = ROOT / "runs" / "tb"
FILMS, TABLE, CHOICES_TABLE = (RESULTS / f"{name}.csv" for name in ("tb_films", "tb", "tb_choices"))
FOLDS = 5
BEST = "masked"  # the variant that the folds are run with, and that ships, by cross-validation
PROTOCOLS = {  # name: sets trained on, whose segmenter cuts, passes over the training films
    "both": (SETS, "crossed", 40),
    "folds": (SETS, "crossed", 40),
    "montgomery": (("montgomery",), "montgomery", 120),
    "shenzhen": (("shenzhen",), "shenzhen", 40),
}
SMALL = {"epochs": 120}  # as the protocol `montgomery`
# What is said of it, the protocol whose films it is made with, what differs from TBConfig, a segmenter to start from.
CHOICES = {
    "chosen": ("random weights, the lung fields alone", "both", {}, ""),
    "crop": ("the box around the lungs", "both", {"variant": "crop"}, ""),
    "encoder": ("from the encoder of `pretrain`", "both", {}, "runs/tb/segmenter_both"),
    "mixup": ("mixup 0.4", "both", {"mixup": 0.4}, ""),
    "lr": ("lr 3e-3", "both", {"lr": 3e-3}, ""),
    "long": ("100 epochs from the encoder of `pretrain`", "both", {"epochs": 100}, "runs/tb/segmenter_both"),
    "small: chosen": ("Montgomery's films alone, random weights", "montgomery", SMALL, ""),
    "small: encoder": (
        "Montgomery's films alone, from the segmenter of its masks",
        "montgomery",
        SMALL,
        "runs/protocols/montgomery",
    ),
}


def _trained(run: Path) -> Path:
    """The weights of a run.

    Raises:
        FileNotFoundError: they are not there; the message names the command that makes them.
    """
    weights = run / "best.safetensors"
    if not weights.exists():
        command = "benchmarks.tb pretrain" if run.parent == RUNS else f"kaggle_utils protocol {' '.join(SETS)}"
        raise FileNotFoundError(f"{weights} is not there: python -m {command} makes it")
    return weights


def prepare(data: Path, cutter: str, size: int, segmenters: Path) -> Path:
    """Cuts all films once; the films stay in ``runs/``."""
    path = RUNS / "cuts" / f"{cutter}_{size}.npz"
    if not path.exists():
        found = {name: LungSegmenter(_trained(segmenters / name)) for name in SETS}
        finder = found.get(cutter) or {"montgomery": found["shenzhen"], "shenzhen": found["montgomery"]}
        save_cuts(path, make_cuts(tb_frame(data, SETS), finder, size))
    return path


@lru_cache(maxsize=1)
def _cuts(path: Path) -> Cuts:
    return load_cuts(path)


def parts(frame: pd.DataFrame, protocol: str, seed: int) -> np.ndarray:
    """Which films a run trains on (train), calibrates on (val) and is tested on (test); the rest is left out (empty).

    In ``folds`` the seed is the fold; an eighth of the films outside it calibrates. Where one set is trained on, its
    own test list and the whole of the other set are the test.
    """
    if protocol == "folds":
        outside = np.flatnonzero(folds(frame, FOLDS) != seed)
        part = np.full(len(frame), "test", object)
        part[outside] = np.where(folds(frame.iloc[outside], 8, seed=1) == 0, "val", "train")
        return part
    own = frame["source"].isin(PROTOCOLS[protocol][0])
    return np.where(own, frame["part"], "test")


def run(path: Path, protocol: str, variant: str, seed: int) -> pd.DataFrame:
    """One training and its logits of the validation and test films; the network is kept in ``runs/``."""
    torch.set_num_threads(1)
    cuts = _cuts(path)
    part = parts(cuts.frame, protocol, seed)
    start = time.perf_counter()
    config = TBConfig(variant=variant, seed=seed, epochs=PROTOCOLS[protocol][2], size=cuts.films.shape[1])
    net = train_tb(cuts[part == "train"], config)
    spent = round(time.perf_counter() - start, 1)
    save_weights(RUNS / f"{protocol}_{variant}_{seed}.safetensors", TBEnsemble([net]))
    asked = np.isin(part, ("val", "test"))
    rest = cuts[asked]
    return rest.frame[["name", "source", "tb"]].assign(
        part=part[asked],
        list=rest.frame["part"],
        logit=logits_of([net], rest, variant).astype(float).round(4),
        protocol=protocol,
        arm=variant,
        seed=seed,
        seconds=spent,
    )


def read_films() -> pd.DataFrame:
    """Rows of finished runs."""
    if FILMS.exists():
        return pd.read_csv(FILMS, dtype={"name": str})
    return pd.DataFrame(columns=["protocol", "arm", "seed"])


def protocols(
    data: Path, only: list[str], variants: list[str], seeds: int, segmenters: Path, jobs: int
) -> pd.DataFrame:
    """Does the runs that are missing, and makes the table of all."""
    done = set(read_films()[["protocol", "arm", "seed"]].itertuples(index=False, name=None))
    tasks = [
        (prepare(data, PROTOCOLS[protocol][1], TBConfig.size, segmenters), protocol, variant, seed)
        for protocol in only
        for seed in range(FOLDS if protocol == "folds" else seeds)
        for variant in ([BEST] if protocol == "folds" else variants)
    ]
    tasks = [task for task in tasks if task[1:] not in done]
    for rows in tqdm(beside(run, tasks, jobs), "runs", len(tasks)):
        table = pd.concat([read_films(), rows]).sort_values(["protocol", "arm", "seed", "part", "name"], kind="stable")
        write_bytes(FILMS, table.round(4).to_csv(index=False).encode())
    return summarise(read_films())


def summarise(films: pd.DataFrame) -> pd.DataFrame:
    """A row per run and test set, and one for a variant's runs: ``mean`` of seeds' logits; folds ``joined``."""
    rows = []
    for (protocol, variant), runs in films.groupby(["protocol", "arm"]):
        tested = {seed: calibrated(one) for seed, one in runs.groupby("seed")}
        if protocol == "folds":
            tested = {"joined": pd.concat(tested.values())}
        elif len(tested) > 1:
            mean = runs.groupby(["name", "source", "tb", "part"], as_index=False).agg(
                {"logit": "mean", "list": "first", "seconds": "sum"}
            )
            tested["mean"] = calibrated(mean)
        for seed, test in tested.items():
            for name, some in test_sets(test, protocol):
                row = {"protocol": protocol, "arm": variant, "seed": seed, "tested_on": name}
                row |= score_tb(*(some[key].to_numpy() for key in ("prob", "tb", "presumptive")))
                means = some[["temperature", "threshold", "seconds"]].mean().rename({"seconds": "train_s"})
                rows.append(row | means.to_dict())
    return pd.DataFrame(rows).round(4)


def test_sets(test: pd.DataFrame, protocol: str) -> list[tuple[str, pd.DataFrame]]:
    """The test films of each set, of an external one its test list and all, and, where both were trained on, all."""
    own = PROTOCOLS[protocol][0]
    external = [name for name in SETS if name not in own]
    listed = test[test["list"] == "test"]
    sets = [(f"{name}, all" if name in external else name, test[test["source"] == name]) for name in SETS]
    sets += [(f"{name}, test list", listed[listed["source"] == name]) for name in external]
    if not external:
        sets.append(("both", test))
    return sets


def shown(image: np.ndarray, mask: np.ndarray, variant: str) -> tuple[np.ndarray, ...]:
    """What a variant needs of a film; the whole one needs no lungs: what stands in their place is not looked at."""
    if variant == "whole":
        return (resize_image(image, TBConfig.size),) * 4
    return cut(image, mask, TBConfig.size)


def speed(data: Path, films: int) -> pd.DataFrame:
    """Median milliseconds per film of 512 px from pixels to a logit, with its mirror image, each variant in turn."""
    torch.set_num_threads(1)
    images = [read_image(path) for path in tb_frame(data, SETS).head(films)["image"]]
    segmenter, nets = LungSegmenter(), {variant: TBNet().eval() for variant in VARIANTS}
    times: dict[str, list[float]] = {"lungs found": [], **{variant: [] for variant in VARIANTS}}

    def classify(image: np.ndarray, mask: np.ndarray, variant: str) -> None:
        arrays = shown(image, mask, variant)
        logits_of([nets[variant]], stack(pd.DataFrame(index=[0]), [arrays]), variant)

    for image in images:
        mask = segmenter.masks([image])[0]
        times["lungs found"].append(seconds(partial(segmenter.masks, [image])))
        for variant in VARIANTS:
            times[variant].append(seconds(partial(classify, image, mask, variant)))
    ms = {name: round(1e3 * float(np.median(some[3:])), 1) for name, some in times.items()}
    found = ms.pop("lungs found")
    table = pd.DataFrame({"arm": VARIANTS, "classifier_ms": ms.values(), "segmenter_ms": [0.0, *[found] * 3]})
    return table.assign(total_ms=table["classifier_ms"] + table["segmenter_ms"])


def cross_validate(path: Path, choice: str, fold: int) -> dict[str, object]:
    """One setting on one of three folds of the training and validation lists; test films are not in it."""
    torch.set_num_threads(1)
    cuts, (about, protocol, changes, encoder) = _cuts(path), CHOICES[choice]
    cuts = cuts[(cuts.frame["part"] != "test") & cuts.frame["source"].isin(PROTOCOLS[protocol][0])]
    held_out = folds(cuts.frame, 3) == fold
    config = TBConfig(size=cuts.films.shape[1], **changes)
    start = time.perf_counter()
    net = train_tb(cuts[~held_out], config, load_weights(_trained(ROOT / encoder)) if encoder else None)
    rest = cuts[held_out]
    logits, truth, source = logits_of([net], rest, config.variant), rest.frame["tb"].to_numpy(), rest.frame["source"]
    each = {f"auc_{name}": roc_auc_score(truth[source == name], logits[source == name]) for name in sorted(set(source))}
    return {
        "choice": choice,
        "fold": fold,
        "about": about,
        "auc": roc_auc_score(truth, logits),
        **each,
        "seconds": time.perf_counter() - start,
    }


def choose(data: Path, only: list[str], segmenters: Path, jobs: int) -> pd.DataFrame:
    """Does the comparisons that are missing."""
    done = pd.read_csv(CHOICES_TABLE) if CHOICES_TABLE.exists() else pd.DataFrame(columns=["choice", "fold"])
    known = set(done[["choice", "fold"]].itertuples(index=False, name=None))
    tasks = [
        (prepare(data, PROTOCOLS[CHOICES[name][1]][1], TBConfig.size, segmenters), name, fold)
        for name in only
        for fold in range(3)
        if (name, fold) not in known
    ]
    for row in tqdm(beside(cross_validate, tasks, jobs), "choices", len(tasks)):
        done = pd.concat([done, pd.DataFrame([row]).round(4)]).sort_values(["choice", "fold"])
        write_bytes(CHOICES_TABLE, done.to_csv(index=False).encode())
    return done.groupby(["choice", "about"], as_index=False)[["auc", *(f"auc_{name}" for name in SETS)]].mean()


def pretrain(data: Path) -> None:
    """A segmenter for `both`: trained on the masks of the published TB lists' training films, so on no TB test film."""
    frame = tb_frame(data, SETS)
    frame = frame[(frame["mask"] != "") & ~frame["name"].isin(flagged_masks()["name"])]
    config = TrainConfig(size=256, epochs=28, workers=0)
    loaders = []
    for part, preset in (("train", config.augment), ("val", "none")):
        films = LungDataset(frame[frame["part"] == part], config.size, preset, seed=0)
        loaders.append(make_loader(films, config.batch_size, shuffle=part == "train"))
    torch.manual_seed(config.seed)
    net = UNet(classes=2, base_channels=config.base_channels, depth=config.depth, patch=config.patch)
    loss = make_loss(config.loss, dice_weight=config.dice_weight)
    Trainer(net, loss, *loaders, config, RUNS / "segmenter_both").fit()


def ship(data: Path, out: Path, seeds: int, segmenters: Path) -> None:
    """The weights that `screen` takes when none are named: the networks of `both`, together, as float16."""
    rows = read_films().query("protocol == 'both' and arm == @BEST and seed < @seeds")
    mean = calibrated(rows.groupby(["name", "source", "tb", "part"], as_index=False)["logit"].mean())
    members = [load_tb(RUNS / f"both_{BEST}_{seed}.safetensors").members[0] for seed in range(seeds)]
    table = pd.read_csv(TABLE).query("protocol == 'both' and arm == @BEST and seed == 'mean'").set_index("tested_on")
    films = load_cuts(prepare(data, "crossed", TBConfig.size, segmenters)).frame
    counts = {part: films.loc[films["part"] == part, "source"].value_counts() for part in ("train", "val")}
    header = {
        "task": "tuberculosis in frontal chest films, for research and teaching: "
        "not for diagnosis, triage or any decision",
        "arm": BEST,
        "size": TBConfig.size,
        **mean[["temperature", "threshold"]].iloc[0].to_dict(),
        "operating_point": f"sensitivity {SENSITIVITY:.0%} of the validation films",
        "sources": list(SETS),
        "films": {part: count.to_dict() for part, count in counts.items()},
        "test": table[["n", "auc", "low", "high", "sensitivity", "specificity"]].to_dict("index"),
        "command": "python -m benchmarks.tb protocols --only both --variants masked; python -m benchmarks.tb ship",
        "config": asdict(TBConfig(epochs=PROTOCOLS["both"][2])),
        "licence": [LICENCES[name] for name in SETS],
    }
    save_weights(out, TBEnsemble(members), header, half=True)


def shipped(data: Path) -> pd.DataFrame:
    """What a user gets: `screen` with the weights and the segmenter that ship, at their operating point.

    The segmenter was trained on the masks of many of these films, the test films too, though never on their labels.
    """
    frame = tb_frame(data, SETS)
    frame = frame[frame["part"] != "train"]
    table = screen(list(frame["image"]), RUNS / "shipped", TBScreener(device="cpu"))
    table = table.merge(frame[["name", "source", "tb", "part"]], on="name")
    rows = []
    for part, films in table.groupby("part"):
        for name, some in [*films.groupby("source"), ("both", films)]:
            given = some[some["probability"].notna()]
            presumptive = given["label"] == PRESUMPTIVE
            found = score_tb(given["probability"].to_numpy(), given["tb"].to_numpy(), presumptive.to_numpy())
            rows.append({"part": part, "tested_on": name, **found, "without_probability": len(some) - len(given)})
    return pd.DataFrame(rows).round(4)


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("what", choices=("choose", "protocols", "speed", "pretrain", "ship", "shipped"))
    parser.add_argument(
        "--segmenters",
        type=Path,
        default=RUNS.parent / "protocols",
        help="folder of `python -m kaggle_utils protocol montgomery shenzhen`",
    )
    parser.add_argument("--only", nargs="+", help="protocols, or choices; all if not given")
    parser.add_argument(
        "--variants", "--arms", nargs="+", choices=VARIANTS, default=VARIANTS, help="of all protocols but the folds"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per variant")
    parser.add_argument("--films", type=int, default=40, help="that speed is measured on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="single-threaded trainings beside each other")
    args = parser.parse_args()
    if args.what == "choose":
        table = choose(args.data, args.only or list(CHOICES), args.segmenters, args.jobs)
        print(table.to_string(index=False))
    elif args.what == "protocols":
        only = args.only or list(PROTOCOLS)
        write_table(TABLE, protocols(args.data, only, args.variants, args.seeds, args.segmenters, args.jobs))
    elif args.what == "speed":
        write_table(RESULTS / "tb_speed.csv", speed(args.data, args.films))
    elif args.what == "shipped":
        write_table(RESULTS / "tb_shipped.csv", shipped(args.data))
    elif args.what == "pretrain":
        pretrain(args.data)
    else:
        ship(args.data, TB_WEIGHTS, args.seeds, args.segmenters)


if __name__ == "__main__":
    main()
