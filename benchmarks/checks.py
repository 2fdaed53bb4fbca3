"""How often the checks of a film are wrong: what their limits were chosen by, and what they do to unseen films.

    python -m benchmarks.checks [PART …] --data segmentation

validation  what the limits in checks.py were chosen by: validation films of adults and of children, and pictures of the
            validation's files
refused     how many films are refused that nothing was fitted on or chosen by, by set and age, with the masks of each
            convention that the shipped weights learned
test, children, jsrt
            such films in all positions and taken otherwise: the published test lists of adults, the children's test
            list, and all of JSRT
spoilt      adults' test films cut or segmented as they lay, and pictures and kinds of pictures kept for the end
built_in    synthetic radiographs

All parts are measured if none is named. Each adds its key to ``results/checks.json``. The models are those of
``python -m benchmarks.fit_checks``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from benchmarks import negatives
from benchmarks.common import RESULTS, add_json, command, make_parser, read_json, seconds, write_json
from benchmarks.fit_checks import CHILDREN, varied
from kaggle_utils.config import CONVENTIONS
from kaggle_utils.data import read_manifest
from kaggle_utils.image import read_image, read_mask, resize_image, resize_mask
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import score
from kaggle_utils.quality import Checked, check_film, check_lungs, checks
from kaggle_utils.quality.checks import frame_contact, shape_distance, view_odds
from kaggle_utils.synthetic import AppearanceModel

RESULT = RESULTS / "checks.json"
SEEN = ("photograph", *negatives.SPOILT, *negatives.FITTED)
N, CHOSEN_BY = 60, 200  # pictures of a kind, of those kept for the end and of those that chose the limits
AGES = {"under 10": 10, "10 to 17": 18, "18 to 64": 65, "65 and more": 130}  # years, up to which
OF_UNKNOWN_AGE = {"kermany": "1 to 5", "jsrt": "adults"}
GROWN = ("18 to 64", "65 and more", "adults")


def as_read(frame: pd.DataFrame) -> list[np.ndarray]:
    return [read_image(path) for path in frame["image"]]


def spread(values, digits: int = 2) -> dict[str, float]:
    """Extremes, the outer hundredths and the median of those that are finite, and how many are not."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    levels = np.percentile(finite, (0, 1, 50, 99, 100)).round(digits).tolist()
    found = dict(zip(("min", "p1", "median", "p99", "max"), levels))
    if len(finite) < len(values):
        found["infinite"] = len(values) - len(finite)
    return found


def limits(films: list[np.ndarray], masks: list[np.ndarray], found: list[np.ndarray]) -> dict:
    """The numbers that chose the limits in checks.py, of films as they are and taken otherwise."""
    rng = np.random.default_rng(1)
    otherwise = [varied(film, rng, 256) for film in films for _ in range(10)]
    result = {}
    for name, views in {"films": films, "films taken otherwise": otherwise}.items():
        odds = np.stack([view_odds(view) for view in views])
        result[name] = {
            "chest": spread(np.logaddexp.reduce(odds.reshape(len(odds), -1), axis=1)),
            "upright_over_others": spread(upright_over_others(odds)),
            "plain_over_mirrored": spread(odds[:, 0, 0, 0] - odds[:, 0, 1, 0]),
        }
    for name, those in {"true": masks, "found": found}.items():
        result[f"masks {name}"] = {
            "shape_distance": spread([shape_distance(m) for m in those]),
            "frame_contact": spread([max(frame_contact(m).values()) for m in those]),
        }
    return result


def no_films_odds(films: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Log odds that pictures of no film are a chest film, by kind."""
    rng, small = np.random.default_rng(1), [resize_image(film, 256) for film in films]
    return {kind: spread([chest(negatives.draw(kind, rng, "val", small)) for _ in range(CHOSEN_BY)]) for kind in SEEN}


def upright_over_others(odds: np.ndarray) -> np.ndarray:
    positions = np.logaddexp(odds[:, :, 0], odds[:, :, 1]).reshape(-1, 8)
    return positions[:, 0] - positions[:, 1:].max(1)


def chest(image: np.ndarray) -> float:
    return float(np.logaddexp.reduce(view_odds(image), axis=None))


def counts(checked: list[Checked]) -> dict[str, int]:
    said = {
        f"called {word}": sum(word in note for film in checked for note in film.notes)
        for word in ("mirrored", "hardly", "perhaps")
    }
    return {
        "n": len(checked),
        "refused": sum(bool(c.problems) for c in checked),
        "turned": sum(c.turned > 0 for c in checked),
        "inverted": sum(c.inverted for c in checked),
        **said,
    }


def refused_by_mask(checked: list[Checked], masks: list[np.ndarray]) -> dict[str, int]:
    """How many are refused for what was found in them."""
    return {"refused after segmentation": sum(c.doubtful and bool(check_lungs(m)) for c, m in zip(checked, masks))}


def share(said: list) -> float:
    return round(float(np.mean([bool(s) for s in said])), 3)


def untouched(films: list[np.ndarray], found: list[np.ndarray]) -> dict:
    """What is said of films that nothing was done to: false alarms all, but for notes on masks that are really odd."""
    checked = [check_film(film) for film in films]
    said = [note.split(" (")[0] for mask in found for note in check_lungs(mask)]
    said += [note for film in checked for note in film.notes]
    # found is of the films in this order: none of them was turned or inverted, as the counts say
    return (
        counts(checked)
        | refused_by_mask(checked, found)
        | {"notes": pd.Series(said, dtype=str).value_counts().to_dict()}
    )


def positions(films: list[np.ndarray]) -> dict[str, dict[str, int]]:
    """Films laid in 8 positions, and mirrored: put right to the last pixel, left as they were, put wrong, refused."""
    result = {}
    for mirrored, negative, quarters in [(False, n, q) for n in (False, True) for q in range(4)] + [(True, False, 0)]:
        checked = [check_film(lay(film, quarters, negative, mirrored)) for film in films]
        right = [np.array_equal(c.image, lay(film, 0, False, mirrored)) for c, film in zip(checked, films)]
        left = [c.turned == 0 and not c.inverted and not r for c, r in zip(checked, right)]
        said = [word for word, so in (("mirrored", mirrored), ("negative", negative)) if so]
        result[", ".join([*said, f"{90 * quarters}°"])] = {
            "right": sum(right),
            "left as it was": sum(left),
            "wrong": len(films) - sum(right) - sum(left),
            **counts(checked),
        }
    return result


def lay(film: np.ndarray, quarters: int, negative: bool, mirrored: bool) -> np.ndarray:
    film = np.rot90(film[:, ::-1] if mirrored else film, quarters)
    return np.ascontiguousarray(255 - film if negative else film)


def taken_otherwise(films: list[np.ndarray]) -> dict[str, int]:
    rng = np.random.default_rng(2)
    checked = [check_film(varied(film, rng, 256)) for film in films for _ in range(3)]
    found = masks_of([c.image for c in checked], LungSegmenter())
    return counts(checked) | refused_by_mask(checked, found)


def no_films(films: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Share of pictures refused, and refused or with a note, on the picture or on the lungs found in it."""
    rng, small, segmenter = np.random.default_rng(3), [resize_image(film, 256) for film in films], LungSegmenter()
    pictures = {
        kind: [negatives.draw(kind, rng, "test", small) for _ in range(N)] for kind in (*SEEN, *negatives.UNSEEN)
    }
    pictures["scans of heads, a spine, an abdomen, ultrasound"] = negatives.scans()
    result = {}
    for kind, drawn in pictures.items():
        checked = [check_film(picture) for picture in drawn]
        lungs = [check_lungs(mask) for mask in masks_of([c.image for c in checked], segmenter)]
        refused = [c.problems or c.doubtful and said for c, said in zip(checked, lungs)]
        result[kind] = {
            "n": len(drawn),
            "refused": share(refused),
            "refused before segmentation": share([c.problems for c in checked]),
            "refused or noted": share([c.problems + c.notes + said for c, said in zip(checked, lungs)]),
        }
    return result


def cut_off(films: list[np.ndarray], truths: list[np.ndarray], part: float) -> dict[str, dict[str, float]]:
    """Films whose frame cuts off this share of the lungs' height or width: refused, or noted at the right side."""
    segmenter, result = LungSegmenter(), {}
    for side in ("top", "bottom", "left", "right"):
        cut = [film[window(truth, side, part)] for film, truth in zip(films, truths)]
        refused = [check_film(film).problems for film in cut]
        notes = ["; ".join(check_lungs(mask)) for mask in masks_of(cut, segmenter)]
        result[side] = {
            "refused": share(refused),
            "noted as cut there": share(["cut by" in n and side in n for n in notes]),
            "any word": share([r or n for r, n in zip(refused, notes)]),
        }
    return result


def window(truth: np.ndarray, side: str, part: float) -> tuple[slice, slice]:
    """Rows and columns that are left when the frame moves in until it has cut this share of the lungs' extent."""
    rows, columns = (np.flatnonzero(truth.any(axis)) for axis in (1, 0))
    tall, wide = round(part * np.ptp(rows)), round(part * np.ptp(columns))
    return {
        "top": (slice(rows[0] + tall, None), slice(None)),
        "bottom": (slice(0, rows[-1] - tall), slice(None)),
        "left": (slice(None), slice(columns[0] + wide, None)),
        "right": (slice(None), slice(0, columns[-1] - wide)),
    }[side]


def segmented_as_they_lay(films: list[np.ndarray]) -> dict[str, float]:
    """Share of films segmented while turned or negative whose masks alone say that something is wrong."""
    laid = {"90°": (1, False), "180°": (2, False), "270°": (3, False), "negative": (0, True)}
    segmenter, result = LungSegmenter(), {}
    for name, (quarters, negative) in laid.items():
        masks = masks_of([lay(film, quarters, negative, False) for film in films], segmenter)
        result[name] = share([check_lungs(mask) for mask in masks])
    return result


def shrunk(films: list[np.ndarray], masks: list[np.ndarray]) -> dict[int, float]:
    """Mean Dice at 256 px of films shrunk to so many px a side first: how small a film may be."""
    segmenter, result = LungSegmenter(), {}
    for side in (24, 32, 48, 64, 96, 128, 256):
        probs = segmenter.probabilities([resize_image(film, side) for film in films])
        dice = [score(segmenter.finish(prob, mask.shape), mask)["dice"] for prob, mask in zip(probs, masks)]
        result[side] = round(float(np.mean(dice)), 4)
    return result


def masks_of(films: list[np.ndarray], segmenter: LungSegmenter) -> list[np.ndarray]:
    """Masks at 256 px: all that the checks look at, and cheap."""
    batches = (films[at : at + 8] for at in range(0, len(films), 8))
    return [segmenter.finish(prob, (256, 256)) for batch in batches for prob in segmenter.probabilities(batch)]


def built_in(_: pd.DataFrame) -> dict:
    films = [film.image for film in AppearanceModel.load().stream(60, 72, size=256)]
    return {"untouched": untouched(films, []), "positions": positions(films)}


def milliseconds(films: list[np.ndarray], rounds: int = 5) -> dict[str, float]:
    """Of a 512 px film on one thread: the checks beside the segmentation, the fastest of some rounds each."""
    torch.set_num_threads(1)
    segmenter, films = LungSegmenter(), films[:16]
    masks = [segmenter.masks([film])[0] for film in films]
    jobs = {
        "check_film": lambda: [check_film(film) for film in films],
        "check_lungs": lambda: [check_lungs(mask) for mask in masks],
        "segmentation": lambda: [segmenter.masks([film]) for film in films],
    }
    times = [{name: seconds(job) for name, job in jobs.items()} for _ in range(rounds)]
    best = {name: round(min(turn[name] for turn in times) * 1e3 / len(films), 2) for name in jobs}
    ratio = (best["check_film"] + best["check_lungs"]) / best["segmentation"]
    return best | {"checks_over_segmentation": round(ratio, 3)}


def validation(frame: pd.DataFrame) -> dict:
    """What the limits were chosen by."""
    adults, children = frame[frame["source"] != CHILDREN], frame[frame["source"] == CHILDREN]
    films = as_read(adults)
    return {
        "adults": chosen_by(adults),
        "children": chosen_by(children),
        "no films, chest": no_films_odds(films + as_read(children)),
        "dice of films shrunk to px": shrunk(films, true_masks(adults)),
        "milliseconds": milliseconds(films),
    }


def chosen_by(frame: pd.DataFrame) -> dict:
    films = as_read(frame)
    found = masks_of(films, LungSegmenter())
    return {
        "limits chosen by": limits(films, true_masks(frame), found),
        "untouched": untouched(films, found),
        "positions": positions(films),
    }


def true_masks(frame: pd.DataFrame) -> list[np.ndarray]:
    return [resize_mask(read_mask(path), 256) for path in frame["mask"]]


def final(frame: pd.DataFrame) -> dict:
    """Films that nothing was fitted on or chosen by."""
    films = as_read(frame)
    return {
        "untouched": untouched(films, masks_of(films, LungSegmenter())),
        "positions": positions(films),
        "taken otherwise": taken_otherwise(films),
    }


def refused(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Frontal chest films refused before segmentation, or after it by the masks of a convention; by set and age."""
    films = as_read(frame)
    checked = [check_film(film) for film in films]
    table = pd.DataFrame({"n": 1, "before segmentation": [bool(c.problems) for c in checked]}, frame.index)
    table["hardly like one"] = [c.doubtful for c in checked]
    for convention in dict.fromkeys(map(CONVENTIONS.get, LungSegmenter().header["sources"])):
        masks = masks_of([c.image for c in checked], LungSegmenter(convention=convention))
        table[f"by {convention} masks"] = [c.doubtful and bool(check_lungs(m)) for c, m in zip(checked, masks)]
    age = ages(frame)
    grown = age.isin(GROWN).map({True: "adults", False: "children"})
    by = [grown, frame["source"] + ", " + age]
    return pd.concat([table.groupby(group).sum() for group in by]).astype(int).to_dict("index")


def ages(frame: pd.DataFrame) -> pd.Series:
    """Each film's age group; of some sets all that is known is whether they are of adults or of children."""
    groups = pd.cut(frame["age"], [0, *AGES.values()], right=False, labels=[*AGES]).astype(object)
    return groups.fillna(frame["source"].map(OF_UNKNOWN_AGE))


def spoilt(frame: pd.DataFrame) -> dict:
    """Pictures of no film, films cut off and films segmented as they lay."""
    films, truths = as_read(frame), [read_mask(path) for path in frame["mask"]]
    return {
        "no films": no_films(films),
        "a tenth of the lungs cut off": cut_off(films, truths, 0.1),
        "lungs noted in films not put right": segmented_as_they_lay(films),
    }


LIMITS = ("LEAST_SIDE", "LEAST_CONTRAST", "COLOURED", "CHEST", "DOUBTFUL", "SURE", "MIRRORED", "CUT", "UNUSUAL")
OF_ADULTS = "split == 'test' and source in ('montgomery', 'shenzhen')"
PARTS = {  # what is done, with which films
    "validation": (validation, "split == 'val' and source != 'jsrt'"),
    "refused": (refused, "split in ('test', 'unlabelled') or source == 'jsrt'"),
    "test": (final, OF_ADULTS),
    "children": (final, "split == 'test' and source == 'kermany'"),
    "jsrt": (final, "source == 'jsrt'"),
    "spoilt": (spoilt, OF_ADULTS),
    "built_in": (built_in, "source == 'synthetic'"),
}


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("part", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    frame = read_manifest(args.data)
    for part in args.part:
        function, films = PARTS[part]
        result = function(frame.query(films)) | {"command": command()}
        write_json(RESULT, read_json(RESULT) | {"limits": {name: getattr(checks, name) for name in LIMITS}})
        add_json(RESULT, part, result)


if __name__ == "__main__":
    main()
