"""Fits the estimate of a mask's Dice of the shipped weights, and measures it on films that it was not fitted on.

    python -m benchmarks.quality [fit] [test] --data segmentation
    python -m benchmarks.quality run --data runs/synthetic/segmentation --weights runs/synthetic/best.safetensors

fit   on the validation films of the sets that the shipped weights were trained on, 64 of each at most, a damaged copy
      of each by every kind of damage (:mod:`kaggle_utils.quality.damages`), and drawn pictures that are no films;
      writes it into the weights' header. All choices are made by its cross-validation over films: leaving out a second
      view, mirrored, smaller and shifted, is one; a fit for each convention of masks is another.
test  on the test lists, all of JSRT, adults' test films with gas drawn below the diaphragm, without the masks that a
      review left out, damaged copies of all, and pictures that the fit had nothing like: photographs and micrographs
      that come with scikit-image, and other drawn ones
run   the estimate that a run of training ended with, on its own test films and damaged copies of them

The true Dice is taken at 256 px, films by their own set's head, without averaging with the mirrored film. Films are
segmented as damaged: ``predict`` would put most negatives right first, see ``checks.check_film``. What the network said
of the films is kept in ``runs/quality`` and not computed again with the same weights. Writes ``results/quality.json``.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks import common
from kaggle_utils.augment.artefacts import draw_one
from kaggle_utils.config import CONVENTIONS
from kaggle_utils.data import read_manifest
from kaggle_utils.files import write_bytes
from kaggle_utils.image import read_image, read_mask, resize_image, resize_prob
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter
from kaggle_utils.model import load_weights, update_header
from kaggle_utils.quality import why_no_estimate
from kaggle_utils.quality.damages import DAMAGES, DRAWN
from kaggle_utils.quality.estimate import OK, REASONS, REJECT, SIDE
from kaggle_utils.quality.fit import (
    BATCH,
    FIT_KINDS,
    Item,
    by_convention,
    drawn,
    judged,
    levelled,
    measured_fit,
    no_film,
    observed_one,
    out_of_fold,
    with_copies,
)
from kaggle_utils.splits import excluded_masks
from kaggle_utils.training import MOST_OF_A_SET

RESULT, RUNS = common.RESULTS / "quality.json", common.RUNS / "quality"
POOR, USELESS = OK, REJECT  # true Dice below which a mask should be flagged, and rejected: the estimate's own limits
ZOOM, SHIFT = 0.92, (0.05, 0.02)  # of the second view; shift along x and y, of the side
SECOND_VIEW = ("change", "wavering")  # how far its mask and its probabilities differ
TEST_KINDS, PICTURES = DRAWN[len(FIT_KINDS) :], 12  # of no film, and how many of each


def films(frame: pd.DataFrame, copies: int, artefact: str = "") -> list[Item]:
    """The films of a manifest with their masks, an artefact drawn into them, and so many damaged copies of each."""
    items = []
    for film in frame.itertuples():
        image, truth = read_image(film.image), read_mask(film.mask)
        if artefact:
            image = draw_one(artefact, image, truth, seed=film.name)
        items.append(Item(film.name, film.source, "none", 0, image, truth))
    return with_copies(items, copies)


def bundled() -> list[Item]:
    """The photographs, micrographs, textures and drawings that come with scikit-image."""
    import skimage.data

    paths = sorted(path for path in Path(skimage.data.__file__).parent.iterdir() if path.suffix in (".png", ".jpg"))
    return [no_film(path.stem, "scikit-image", read_image(path)) for path in paths]


def collect(name: str, items: list[Item], segmenter: LungSegmenter, *, second_view: bool = False) -> pd.DataFrame:
    """True Dice and features of each item's mask; kept, and read again for the same pictures, weights and features."""
    key = hashlib.sha256(f"{fingerprint(segmenter)} {[*REASONS]} {ZOOM} {SHIFT} {second_view}".encode())
    for item in items:
        key.update(item.image.tobytes())
    path = RUNS / f"{name}_{key.hexdigest()[:12]}.csv"
    if path.exists():
        return pd.read_csv(path)
    rows = []
    for at in tqdm(range(0, len(items), BATCH), desc=name, disable=None):
        batch = items[at : at + BATCH]
        heads = [item.source for item in batch]
        images = [resize_image(item.image, segmenter.size) for item in batch]
        probs = segmenter.probabilities(images, heads)
        others = differences(segmenter, images, probs, heads) if second_view else [{}] * len(batch)
        rows += [observed_one(item, prob, segmenter) | other for item, prob, other in zip(batch, probs, others)]
    table = pd.DataFrame(rows)
    RUNS.mkdir(parents=True, exist_ok=True)
    write_bytes(path, table.to_csv(index=False).encode())
    return table


def fingerprint(segmenter: LungSegmenter) -> str:
    """Of the weights alone: the fit is written into their file's header."""
    found = hashlib.sha256()
    for name, tensor in load_weights(segmenter.path).state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def differences(
    segmenter: LungSegmenter, images: list[np.ndarray], probs: np.ndarray, heads: list[str]
) -> list[dict[str, float]]:
    """How far each film's mask and probabilities change when it is segmented again, mirrored, smaller and shifted."""
    matrix = view_matrix(segmenter.size)
    back, rows = cv2.invertAffineTransform(matrix), []
    for prob, other in zip(probs, segmenter.probabilities([_warp(image, matrix) for image in images], heads)):
        prob, other = (resize_prob(p, (SIDE, SIDE)) for p in (prob, _warp(other, back)))
        raw, moved = prob > segmenter.threshold, other > segmenter.threshold
        change = 1 - 2 * (raw & moved).sum() / max(raw.sum() + moved.sum(), 1)
        wavering = np.abs(prob - other).sum() / max(raw.sum(), 1)
        rows.append(dict(zip(SECOND_VIEW, np.log(np.array([change, wavering]) + 0.003))))
    return rows


def view_matrix(side: int) -> np.ndarray:
    """Affine matrix ``(2, 3)`` that mirrors a square of ``side`` px, makes it smaller and shifts it."""
    margin = (1 - ZOOM) / 2 * side
    return np.float32([[-ZOOM, 0, ZOOM * (side - 1) + margin + SHIFT[0] * side], [0, ZOOM, margin + SHIFT[1] * side]])


def measured(table: pd.DataFrame) -> dict:
    """How well the estimate of judged rows tells the true Dice, and poor masks from good ones."""
    dice, error = table["dice"], table["estimate"] - table["dice"]
    flagged, rejected, poor = table["flag"] != "ok", table["flag"] == "reject", dice < POOR
    shares = {
        "pearson": pearsonr(dice, table["estimate"])[0],
        "spearman": spearmanr(dice, table["estimate"])[0],
        "auc": roc_auc_score(poor, -table["estimate"]) if 0 < poor.sum() < len(poor) else None,
        "mean_error": error.abs().mean(),
        "bias": error.mean(),
        "poor_flagged": flagged[poor].mean(),
        "good_flagged": flagged[~poor].mean(),
        "useless_rejected": rejected[dice < USELESS].mean(),
        "good_rejected": rejected[~poor].mean(),
    }
    rounded = {name: None if pd.isna(value) else round(float(value), 4) for name, value in shares.items()}
    return {"n": len(table), "poor": int(poor.sum())} | rounded


def by_state(table: pd.DataFrame) -> dict[str, dict]:
    """:func:`measured` of films as they are, of damaged copies, and of both."""
    untouched = table["damage"] == "none"
    return {"untouched": measured(table[untouched]), "damaged": measured(table[~untouched]), "both": measured(table)}


def fit(data: Path, segmenter: LungSegmenter) -> dict:
    """Fits the estimate and writes it into the shipped weights' header.

    Returns what cross-validation says of it, of one fit for all conventions, and of fits with a second view.
    """
    frame = common.films_of(data, "val", segmenter.header["sources"])
    frame = frame.sample(frac=1, random_state=0).groupby("source").head(MOST_OF_A_SET).sort_values("name")
    items = {"validation": films(frame, len(DAMAGES)), "drawn": drawn(FIT_KINDS, PICTURES)}
    tables = [collect(name, those, segmenter, second_view=True) for name, those in items.items()]
    table = pd.concat(tables, ignore_index=True)
    unseen = out_of_fold(table, partial(by_convention, fit=levelled))
    real = unseen["source"] != "none"
    quality = by_convention(table, measured_fit) | {"command": "python -m benchmarks.quality fit"}
    segmenter.header["quality"] = quality
    update_header(DEFAULT_WEIGHTS, quality=quality)
    sets = {"both with a second view": [*REASONS, *SECOND_VIEW], "both by a second view alone": list(SECOND_VIEW)}
    fits = quality.get("conventions", {"all": quality})
    return {
        "weights in sd": {name: _in_sd(each, table) for name, each in fits.items()},
        "by set": {source: by_state(rows) for source, rows in unseen[real].groupby("source")},
        "by set, one fit for all": {
            source: by_state(rows) for source, rows in out_of_fold(table, levelled)[real].groupby("source")
        },
        **by_state(unseen[real]),
        **{
            name: measured(out_of_fold(table, partial(by_convention, fit=partial(levelled, features=features)))[real])
            for name, features in sets.items()
        },
        "pictures that are no films": no_films(unseen[~real]),
    }


def _in_sd(fit: dict, table: pd.DataFrame) -> dict[str, float]:
    """Logits by which a standard deviation of each feature lowers the estimate."""
    return {name: round(weight * float(table[name].std()), 3) for name, (_, weight) in fit["features"].items()}


def test(data: Path, segmenter: LungSegmenter) -> dict:
    """What the shipped estimate is worth on films and pictures that it was not fitted on or chosen by."""
    frame = read_manifest(data)
    lists = common.films_of(data, "test", segmenter.header["sources"])
    adults = lists[(lists["source"].map(CONVENTIONS) == "lung-field") & ~lists["name"].isin(excluded_masks()["name"])]
    items = {
        "test": films(lists, 3),
        "jsrt": films(frame.query("source == 'jsrt' and mask != ''"), 2),
        "gas": films(adults, 3, artefact="gas"),
        "pictures": bundled() + drawn(TEST_KINDS, PICTURES),
    }
    quality = segmenter.header["quality"]
    own, jsrt, gas, pictures = (judged(collect(name, those, segmenter), quality) for name, those in items.items())
    tables = {"test lists": own, "JSRT, foreign": jsrt}
    result = {f"{name}, {state}": found for name, rows in tables.items() for state, found in by_state(rows).items()}
    every = pd.concat(tables.values())
    result["by damage"] = {kind: measured(rows) for kind, rows in every.groupby("damage", sort=False)}
    sets = dict(list(own.groupby("source"))) | {"jsrt": jsrt, "gas": gas}
    result["by set"] = {name: by_state(rows) for name, rows in sets.items()}
    return result | {"pictures that are no films": no_films(pictures)}


def run(data: Path, segmenter: LungSegmenter) -> dict:
    """What the estimate in a run's own weights is worth on its test films, and how many good masks it flags."""
    if why_no_estimate(segmenter.quality):
        raise ValueError(why_no_estimate(segmenter.quality))
    frame = common.films_of(data, "test", segmenter.header["sources"])
    table = judged(collect("run", films(frame, 3), segmenter), segmenter.header["quality"])
    untouched, harmed = table[table["damage"] == "none"], table[table["damage"] != "none"]
    means = {f"mean_{name}": round(float(untouched[name].mean()), 4) for name in ("dice", "estimate")}
    return {
        "trained": segmenter.header["command"],
        "built_in": segmenter.header["built_in"],
        "films": segmenter.header["films"],
        "fit": segmenter.header["quality"],
        "untouched": means | {"flagged": int((untouched["flag"] != "ok").sum())} | measured(untouched),
        "damaged": measured(harmed),
    }


def no_films(table: pd.DataFrame) -> dict[str, dict]:
    """Of each kind of picture: how many, and the shares flagged and rejected."""
    return {
        kind: {
            "n": len(rows),
            "flagged": round(float((rows["flag"] != "ok").mean()), 3),
            "rejected": round(float((rows["flag"] == "reject").mean()), 3),
        }
        for kind, rows in table.groupby("damage", sort=False)
    }


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


STEPS = {"fit": fit, "test": test, "run": run}


def main() -> None:
    parser = common.make_parser(__doc__, data=True)
    parser.add_argument(
        "step", nargs="*", choices=[*STEPS, []], default=["fit", "test"], help="fit and test if not given"
    )
    parser.add_argument("--weights", type=Path, help="of a run, for that step alone; results name them by their folder")
    args = parser.parse_args()
    if ("run" in args.step) != (args.weights is not None) or (args.weights and len(args.step) > 1):
        parser.error("--weights are for the step run, which needs them and is done alone")
    if "test" in args.step:
        common.need("skimage")
    segmenter = LungSegmenter(args.weights)
    for step in args.step:
        found = STEPS[step](args.data, segmenter)
        if step == "run":
            found = common.read_json(RESULT).get(step, {}) | {args.weights.parent.name: found}
        common.add_json(RESULT, step, found)


if __name__ == "__main__":
    main()
