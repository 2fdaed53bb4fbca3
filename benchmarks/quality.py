"""Fits the estimate of a mask's Dice of the shipped weights, and measures it on films that it was not fitted on.

    python -m benchmarks.quality [fit] [test] --data segmentation
    python -m benchmarks.quality run --data runs/synthetic/segmentation --weights runs/synthetic/best.safetensors

fit   on the validation films of the sets that the shipped weights were trained on, 64 of each at most, a damaged copy
      of each by every kind of damage (:mod:`kaggle_utils.quality.damages`), and drawn pictures that are no films;
      writes it into the weights' header, and what its cross-validation over films says
test  on the test lists, all of JSRT, adults' test films with gas drawn below the diaphragm, without the masks that a
      review left out, damaged copies of all, and pictures that the fit had nothing like: photographs and micrographs
      that come with scikit-image, and other drawn ones
run   the estimate that a run of training ended with, on its own test films and damaged copies of them

The true Dice is taken at 256 px, films by their own set's head, without averaging with the mirrored film. Films are
segmented as damaged: ``predict`` would put most negatives right first, see ``checks.check_film``. Writes
``results/quality.json``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks import common, negatives
from kaggle_utils.augment.artefacts import draw_one
from kaggle_utils.config import CONVENTIONS
from kaggle_utils.data import read_manifest
from kaggle_utils.image import read_image, read_mask
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter
from kaggle_utils.model import update_header
from kaggle_utils.quality import why_no_estimate
from kaggle_utils.quality.damages import DAMAGES
from kaggle_utils.quality.fit import (
    Item,
    by_convention,
    drawn,
    judged,
    levelled,
    measured_fit,
    no_film,
    observed,
    out_of_fold,
    with_copies,
)
from kaggle_utils.quality.flags import OK, REJECT
from kaggle_utils.splits import excluded_masks
from kaggle_utils.training import MOST_OF_A_SET

RESULT = common.RESULTS / "quality.json"
TEST_KINDS, PICTURES = ("page", "shapes", "chart"), 12  # of no film, and how many of each


def films(frame: pd.DataFrame, copies: int, artefact: str = "") -> list[Item]:
    """The films of a manifest with their masks, an artefact drawn into them, and so many damaged copies of each."""
    items = []
    for film in frame.itertuples():
        image, truth = read_image(film.image), read_mask(film.mask)
        if artefact:
            image = draw_one(artefact, image, truth, seed=film.name)
        items.append(Item(film.name, film.source, "none", 0, image, truth))
    return with_copies(items, copies)


def pictures() -> list[Item]:
    """The photographs, micrographs, textures and drawings that come with scikit-image, and drawn pictures."""
    import skimage.data

    paths = sorted(path for path in Path(skimage.data.__file__).parent.iterdir() if path.suffix in (".png", ".jpg"))
    found, rng = [no_film(path.stem, "scikit-image", read_image(path)) for path in paths], np.random.default_rng(0)
    for kind in TEST_KINDS:
        found += [no_film(f"{kind} {n}", kind, negatives.draw(kind, rng, "test", [])) for n in range(PICTURES)]
    return found


def measured(table: pd.DataFrame) -> dict:
    """How well the estimate of judged rows tells the true Dice, and poor masks from good ones."""
    dice, error = table["dice"], table["estimate"] - table["dice"]
    flagged, rejected, poor = table["flag"] != "ok", table["flag"] == "reject", dice < OK
    shares = {
        "pearson": pearsonr(dice, table["estimate"])[0],
        "spearman": spearmanr(dice, table["estimate"])[0],
        "auc": roc_auc_score(poor, -table["estimate"]) if 0 < poor.sum() < len(poor) else None,
        "mean_error": error.abs().mean(),
        "bias": error.mean(),
        "poor_flagged": flagged[poor].mean(),
        "good_flagged": flagged[~poor].mean(),
        "useless_rejected": rejected[dice < REJECT].mean(),
        "good_rejected": rejected[~poor].mean(),
    }
    rounded = {name: None if pd.isna(value) else round(float(value), 4) for name, value in shares.items()}
    return {"n": len(table), "poor": int(poor.sum())} | rounded


def by_state(table: pd.DataFrame) -> dict[str, dict]:
    """:func:`measured` of films as they are, of damaged copies, and of both."""
    untouched = table["damage"] == "none"
    return {"untouched": measured(table[untouched]), "damaged": measured(table[~untouched]), "both": measured(table)}


def by_set(table: pd.DataFrame) -> dict[str, dict]:
    """:func:`by_state` of each set."""
    return {source: by_state(rows) for source, rows in table.groupby("source")}


def fit(data: Path, segmenter: LungSegmenter) -> dict:
    """Fits the estimate and writes it into the shipped weights' header; returns what cross-validation says of it."""
    frame = common.films_of(data, "val", segmenter.header["sources"])
    frame = frame.sample(frac=1, random_state=0).groupby("source").head(MOST_OF_A_SET).sort_values("name")
    table = observed([*films(frame, len(DAMAGES)), *drawn(PICTURES)], segmenter)
    quality = by_convention(table, measured_fit) | {"command": "python -m benchmarks.quality fit"}
    segmenter.header["quality"] = quality
    update_header(DEFAULT_WEIGHTS, quality=quality)
    unseen = out_of_fold(table, partial(by_convention, fit=levelled))
    real = unseen["source"] != "none"
    return {
        "by set": by_set(unseen[real]),
        **by_state(unseen[real]),
        "pictures that are no films": no_films(unseen[~real]),
    }


def test(data: Path, segmenter: LungSegmenter) -> dict:
    """What the shipped estimate is worth on films and pictures that it was not fitted on or chosen by."""
    lists = common.films_of(data, "test", segmenter.header["sources"])
    adults = lists[(lists["source"].map(CONVENTIONS) == "lung-field") & ~lists["name"].isin(excluded_masks()["name"])]
    items = (
        films(lists, 3),
        films(read_manifest(data).query("source == 'jsrt' and mask != ''"), 2),
        films(adults, 3, artefact="gas"),
        pictures(),
    )
    quality = segmenter.header["quality"]
    own, jsrt, gas, others = (judged(observed(those, segmenter), quality) for those in items)
    tables = {"test lists": own, "JSRT, never seen": jsrt}
    result = {f"{name}, {state}": found for name, rows in tables.items() for state, found in by_state(rows).items()}
    every = pd.concat(tables.values())
    result["by damage"] = {kind: measured(rows) for kind, rows in every.groupby("damage", sort=False)}
    result["by set"] = by_set(pd.concat([every, gas.assign(source="gas")]))
    return result | {"pictures that are no films": no_films(others)}


def run(data: Path, segmenter: LungSegmenter) -> dict:
    """What the estimate in a run's own weights is worth on its test films, and how many good masks it flags."""
    if why_no_estimate(segmenter.quality):
        raise ValueError(why_no_estimate(segmenter.quality))
    frame = common.films_of(data, "test", segmenter.header["sources"])
    table = judged(observed(films(frame, 3), segmenter), segmenter.header["quality"])
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
