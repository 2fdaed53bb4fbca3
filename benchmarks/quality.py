"""Fits the estimate of a mask's Dice of ``kaggle_utils/quality.py``, and measures it on films that it was not fitted on.

    python -m benchmarks.quality [fit] [test] --data segmentation

fit   on the validation films of the sets that the shipped weights were trained on, a damaged copy of each by every kind of damage
      (``benchmarks/damages.py``), and drawn pictures that are no films; writes ``kaggle_utils/assets/quality.json``. All choices
      are made by its cross-validation over films: that a second view, mirrored, smaller and shifted, is left out is one.
test  on the published test lists, all of JSRT, damaged copies of both, and pictures that the fit had nothing like: photographs and
      micrographs that come with scikit-image, and other drawn ones

The true Dice is taken at 256 px, films by their own set's head, without averaging with the mirrored film. Films are segmented as damaged:
``predict`` would put most negatives right first, see ``checks.check_film``. What the network
said of the films is kept in ``runs/quality`` and not computed again with the same weights. Writes ``results/quality.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data
from scipy.optimize import lsq_linear
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm

from benchmarks.damages import DAMAGES, STRENGTHS, damaged
from kaggle_utils.calibrate import auc
from kaggle_utils.data import read_manifest
from kaggle_utils.image import read_image, read_mask, resize_image, resize_mask, resize_prob, write_bytes
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import confusion, overlap
from kaggle_utils.quality import ASSET, OK, REASONS, REJECT, SIDE, calibration, observe

ROOT = Path(__file__).parents[1]
RESULT, RUNS = ROOT / "results/quality.json", ROOT / "runs/quality"
POOR, USELESS = OK, REJECT  # true Dice below which a mask should be flagged, and rejected: the estimate's own limits
ZOOM, SHIFT = 0.92, (0.05, 0.02)  # of the second view; shift along x and y, of the side
SECOND_VIEW = ("change", "wavering")  # how far its mask and its probabilities differ
RIDGE, FOLDS, BATCH = 3.0, 7, 8
LOGIT = (0.01, 0.995)  # Dice is held within these before its logit is taken
FIT_KINDS, TEST_KINDS = ("noise", "gradient", "clouds", "stripes", "discs"), ("text", "rectangles", "rings", "mirrored clouds")


@dataclass(frozen=True)
class Item:
    """A picture with the truth of its lungs."""

    name: str
    source: str
    damage: str
    strength: int
    image: np.ndarray  # uint8 (H, W)
    truth: np.ndarray  # uint8 (H, W) in {0, 1}


def films(frame: pd.DataFrame, kinds: int) -> list[Item]:
    """Each film as it is, and damaged in so many ways, kinds and strengths drawn at a fixed seed."""
    rng, found = np.random.default_rng(0), []
    for film in frame.itertuples():
        image, truth = read_image(film.image), read_mask(film.mask)
        settings = [("none", 0), *((kind, int(rng.choice(STRENGTHS))) for kind in rng.permutation(list(DAMAGES))[:kinds])]
        found += [Item(film.name, film.source, kind, strength, *damaged(image, truth, kind, strength, seed=film.name))
                  for kind, strength in settings]
    return found


def drawn(kinds: tuple[str, ...], n: int = 12) -> list[Item]:
    """Pictures of no chest, ``n`` of each kind."""
    return [_no_film(f"{kind} {seed}", kind, draw(kind, np.random.default_rng([seed, *kind.encode()]))) for kind in kinds for seed in range(n)]


def draw(kind: str, rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """A picture of a kind of :data:`FIT_KINDS` or :data:`TEST_KINDS`, ``uint8 (side, side)``."""
    y, x = np.mgrid[-1:1:side * 1j, -1:1:side * 1j]
    canvas = np.full((side, side), int(rng.integers(256)), np.uint8)
    if kind == "noise":
        return rng.integers(0, 256, (side, side), np.uint8)
    if kind == "gradient":
        return _stretched(np.cos(angle := rng.uniform(0, 2 * np.pi)) * x + np.sin(angle) * y + rng.uniform(0, 2) * x * y)
    if kind.endswith("clouds"):
        clouds = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), rng.uniform(5, 40))
        return _stretched(clouds + clouds[:, ::-1] if kind.startswith("mirrored") else clouds)
    if kind == "stripes":
        return _stretched(np.sin(rng.uniform(3, 40) * x + rng.uniform(3, 40) * y))
    if kind == "rings":
        return _stretched(np.cos(rng.uniform(5, 40) * np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1))))
    for _ in range(rng.integers(3, 20)):
        at, size, gray = rng.integers(0, side, 2).tolist(), int(rng.integers(8, side // 3)), int(rng.integers(256))
        if kind == "discs":
            cv2.circle(canvas, at, size, gray, -1)
        elif kind == "rectangles":
            cv2.rectangle(canvas, at, [at[0] + size, at[1] + int(rng.integers(8, side // 2))], gray, -1)
        else:
            cv2.putText(canvas, "".join(map(chr, rng.integers(65, 91, 6))), at, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 3), gray, 2)
    return canvas


def bundled() -> list[Item]:
    """The photographs, micrographs, textures and drawings that come with scikit-image."""
    paths = sorted(path for path in Path(skimage.data.__file__).parent.iterdir() if path.suffix in (".png", ".jpg"))
    return [_no_film(path.stem, "scikit-image", read_image(path)) for path in paths]


def collect(name: str, items: list[Item], segmenter: LungSegmenter, *, second_view: bool = False) -> pd.DataFrame:
    """True Dice and features of each item's mask; the table is kept, and read again for the same pictures, weights and names of features."""
    key = hashlib.sha256(f"{segmenter.version} {[*REASONS]} {ZOOM} {SHIFT} {second_view}".encode())
    for item in items:
        key.update(item.image.tobytes())
    path = RUNS / f"{name}_{key.hexdigest()[:12]}.csv"
    if path.exists():
        return pd.read_csv(path)
    rows = []
    for at in tqdm(range(0, len(items), BATCH), desc=name, disable=None):
        batch = items[at:at + BATCH]
        heads = [item.source if item.source in segmenter.heads else segmenter.head for item in batch]
        images = [resize_image(item.image, segmenter.size) for item in batch]
        probs = segmenter.probabilities(images, heads)
        others = differences(segmenter, images, probs, heads) if second_view else [{}] * len(batch)
        for item, prob, other in zip(batch, probs, others):
            mask = segmenter.finish(prob, (SIDE, SIDE))
            found = observe(prob, mask, segmenter.threshold)
            dice = overlap(confusion(mask, resize_mask(item.truth, SIDE)))["dice"]
            # No lung found in a picture of none is right, and still nothing to go on with.
            rows.append({"name": item.name, "source": item.source, "damage": item.damage, "strength": item.strength,
                         "dice": dice if item.truth.any() else 0.0, **(found or dict.fromkeys(REASONS, np.nan)), **other, "found": found is not None})
    RUNS.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    write_bytes(path, table.to_csv(index=False).encode())
    return table


def differences(segmenter: LungSegmenter, images: list[np.ndarray], probs: np.ndarray, heads: list[str]) -> list[dict[str, float]]:
    """How far each film's mask and probabilities ``probs`` change when it is segmented again, mirrored, smaller and shifted."""
    matrix = view_matrix(segmenter.size)
    back, rows = cv2.invertAffineTransform(matrix), []
    for prob, other in zip(probs, segmenter.probabilities([_warp(image, matrix) for image in images], heads)):
        prob, other = (resize_prob(p, (SIDE, SIDE)) for p in (prob, _warp(other, back)))
        raw, moved = prob > segmenter.threshold, other > segmenter.threshold
        change = 1 - 2 * (raw & moved).sum() / max(raw.sum() + moved.sum(), 1)
        rows.append(dict(zip(SECOND_VIEW, np.log(np.array([change, np.abs(prob - other).sum() / max(raw.sum(), 1)]) + 0.003))))
    return rows


def view_matrix(side: int) -> np.ndarray:
    """Affine matrix ``(2, 3)`` that mirrors a square of ``side`` px, makes it smaller and shifts it."""
    margin = (1 - ZOOM) / 2 * side
    return np.float32([[-ZOOM, 0, ZOOM * (side - 1) + margin + SHIFT[0] * side], [0, ZOOM, margin + SHIFT[1] * side]])


def regress(table: pd.DataFrame, features: list[str] = [*REASONS]) -> dict:
    """Ridge regression of the logit of Dice on the features, none of which may raise it; rows without a mask are left out."""
    table = table[table["found"]]
    x = table[features].to_numpy()
    usual, scale = np.nanmedian(x[table["damage"] == "none"], 0), np.nanstd(x, 0) + 1e-9
    z = np.nan_to_num((x - usual) / scale)
    y = _logit(table["dice"].to_numpy())
    penalty = np.c_[np.zeros(z.shape[1]), np.sqrt(RIDGE) * np.eye(z.shape[1])]
    bounds = np.r_[-np.inf, np.zeros(z.shape[1])], np.full(z.shape[1] + 1, np.inf)
    found = lsq_linear(np.r_[np.c_[np.ones(len(z)), -z], penalty], np.r_[y, np.zeros(len(penalty))], bounds).x
    return {"bias": round(float(found[0]), 4),
            "features": {name: [round(float(u), 4), round(float(w), 4)] for name, u, w in zip(features, usual, found[1:] / scale)}}


def judged(table: pd.DataFrame, fit: dict | None = None) -> pd.DataFrame:
    """The table with estimate and flag as :func:`kaggle_utils.quality.judge` gives them, by a fit or by the shipped one."""
    fit = fit or calibration()
    usual, weights = np.array([*fit["features"].values()]).T
    lowers = np.nan_to_num((table[[*fit["features"]]].to_numpy() - usual) * weights).sum(1)
    estimate = np.where(table["found"], expit(fit["bias"] - lowers), 0.0)
    return table.assign(estimate=estimate, flag=np.select([estimate >= OK, estimate >= REJECT], ["ok", "check"], "reject"))


def out_of_fold(table: pd.DataFrame, features: list[str] = [*REASONS]) -> pd.DataFrame:
    """Each row judged by a fit on other films."""
    fold = table["name"].map({name: k % FOLDS for k, name in enumerate(sorted(set(table["name"])))})
    return pd.concat([judged(table[fold == k], regress(table[fold != k], features)) for k in range(FOLDS)])


def measured(table: pd.DataFrame) -> dict:
    """How well the estimate of judged rows tells the true Dice, and poor masks from good ones."""
    dice, estimate, flagged = table["dice"], table["estimate"], table["flag"] != "ok"
    poor = dice < POOR
    found = {"n": len(table), "poor": int(poor.sum()), "pearson": pearsonr(dice, estimate)[0], "spearman": spearmanr(dice, estimate)[0],
             "auc": auc(-estimate.to_numpy(), poor.to_numpy()) if 0 < poor.sum() < len(poor) else None, "mean_error": (estimate - dice).abs().mean(), "bias": (estimate - dice).mean(),
             "poor_flagged": flagged[poor].mean(), "good_flagged": flagged[~poor].mean(),
             "useless_rejected": (table["flag"] == "reject")[dice < USELESS].mean(), "good_rejected": (table["flag"] == "reject")[~poor].mean()}
    return {name: None if pd.isna(value) else round(float(value), 4) if isinstance(value, float) else value for name, value in found.items()}


def fit(data: Path, segmenter: LungSegmenter) -> dict:
    """Fits and writes the asset; what cross-validation says of it, and of the same with a second view of each film."""
    frame = read_manifest(data)
    frame = frame[(frame["split"] == "val") & frame["source"].isin(segmenter.header["sources"])]
    table = pd.concat([collect("validation", films(frame, len(DAMAGES)), segmenter, second_view=True),
                       collect("drawn", drawn(FIT_KINDS), segmenter, second_view=True)], ignore_index=True)
    asset = regress(table) | {"command": "python -m benchmarks.quality fit", "weights": segmenter.version}
    write_bytes(ASSET, (json.dumps(asset, indent=1) + "\n").encode())
    calibration.cache_clear()
    unseen = out_of_fold(table)
    real = unseen["source"] != "none"
    sets = {"": list(REASONS), " with a second view": [*REASONS, *SECOND_VIEW], " by a second view alone": list(SECOND_VIEW)}
    return {"weights in sd": {name: round(weight * float(table[name].std()), 3) for name, (_, weight) in asset["features"].items()},
            "untouched": measured(unseen[real & (unseen["damage"] == "none")]), "damaged": measured(unseen[real & (unseen["damage"] != "none")]),
            **{"both" + name: measured(out_of_fold(table, features)[lambda rows: rows["source"] != "none"]) for name, features in sets.items()},
            "pictures that are no films": no_films(unseen[~real])}


def test(data: Path, segmenter: LungSegmenter) -> dict:
    """What the shipped asset is worth on films and pictures that it was not fitted on or chosen by."""
    frame = read_manifest(data)
    frame = frame[frame["mask"] != ""]
    own = frame[(frame["split"] == "test") & frame["source"].isin(segmenter.header["sources"])]
    tables = {"test lists": judged(collect("test", films(own, 3), segmenter)),
              "JSRT, foreign": judged(collect("jsrt", films(frame[frame["source"] == "jsrt"], 2), segmenter))}
    result = {f"{name}, {state}": measured(rows[(rows["damage"] == "none") == (state == "untouched")])
              for name, rows in tables.items() for state in ("untouched", "damaged")}
    result |= {f"{name}, both": measured(rows) for name, rows in tables.items()}
    every = pd.concat(tables.values())
    result["by damage"] = {kind: measured(rows) for kind, rows in every.groupby("damage", sort=False)}
    pictures = judged(collect("pictures", bundled() + drawn(TEST_KINDS), segmenter))
    return result | {"pictures that are no films": no_films(pictures)}


def no_films(table: pd.DataFrame) -> dict[str, dict]:
    """Of each kind of picture: how many, and the shares flagged and rejected."""
    return {kind: {"n": len(rows), "flagged": round(float((rows["flag"] != "ok").mean()), 3),
                   "rejected": round(float((rows["flag"] == "reject").mean()), 3)} for kind, rows in table.groupby("damage", sort=False)}


def _logit(dice: np.ndarray) -> np.ndarray:
    held = np.clip(dice, *LOGIT)
    return np.log(held / (1 - held))


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _no_film(name: str, kind: str, image: np.ndarray) -> Item:
    return Item(name, "none", kind, 0, image, np.zeros(image.shape, np.uint8))


def _stretched(values: np.ndarray) -> np.ndarray:
    return cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


STEPS = {"fit": fit, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", nargs="*", choices=[*STEPS, []], default=list(STEPS), help="both if not given")
    parser.add_argument("--data", default="segmentation", type=Path, help="prepared folder with the real sets")
    args = parser.parse_args()
    segmenter = LungSegmenter()
    for step in args.step or STEPS:
        result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        result[step] = STEPS[step](args.data, segmenter)
        write_bytes(RESULT, (json.dumps(result, indent=2) + "\n").encode())
        print(step, json.dumps(result[step], indent=2))


if __name__ == "__main__":
    main()
