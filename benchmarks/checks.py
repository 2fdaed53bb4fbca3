"""How often the checks of a film are wrong: what their limits were chosen by, and what they do to unseen films.

    python -m benchmarks.checks [PART …] --data segmentation

validation  what the limits in checks.py were chosen by: validation films of adults and of children, and pictures of the
            validation's files
test, children, jsrt
            films that nothing was fitted on or chosen by, in all positions and taken otherwise: the published test
            lists of adults, the children's test list, and all of JSRT
unlabelled  Shenzhen's films without a mask, as they are
spoilt      pictures that show no chest, and kinds of pictures kept for the end

All parts are measured if none is named. Each adds its key to ``results/checks.json``. The models are those of
``python -m benchmarks.fit_checks``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks import negatives
from benchmarks.common import RESULTS, add_json, command, make_parser, read_json, write_json
from benchmarks.fit_checks import CHILDREN, varied
from kaggle_utils.data import read_manifest
from kaggle_utils.image import read_image, read_mask, resize_image, resize_mask
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import score
from kaggle_utils.quality import Checked, check_film, check_lungs, checks
from kaggle_utils.quality.checks import frame_contact, shape_distance, view_odds

RESULT = RESULTS / "checks.json"
SEEN = ("photograph", *negatives.SPOILT, *negatives.FITTED)
N, CHOSEN_BY = 60, 200  # pictures of a kind, of those kept for the end and of those that chose the limits


def as_read(frame: pd.DataFrame) -> list[np.ndarray]:
    return [read_image(path) for path in frame["image"]]


def spread(values) -> dict[str, float]:
    """Extremes, the outer hundredths and the median of those that are finite, and how many are not."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    levels = np.percentile(finite, (0, 1, 50, 99, 100)).round(2).tolist()
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
    notes = pd.Series(said, dtype=str).value_counts().to_dict()
    return counts(checked) | refused_by_mask(checked, found) | {"notes": notes}


def positions(films: list[np.ndarray]) -> dict[str, dict[str, int]]:
    """Films laid in 8 positions, and mirrored: how many are put right to the last pixel, and what is said."""
    result = {}
    for mirrored, negative, quarters in [(False, n, q) for n in (False, True) for q in range(4)] + [(True, False, 0)]:
        checked = [check_film(lay(film, quarters, negative, mirrored)) for film in films]
        right = [np.array_equal(c.image, lay(film, 0, False, mirrored)) for c, film in zip(checked, films)]
        said = [word for word, so in (("mirrored", mirrored), ("negative", negative)) if so]
        result[", ".join([*said, f"{90 * quarters}°"])] = {"right": sum(right), **counts(checked)}
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
            "refused or noted": share([c.problems + c.notes + said for c, said in zip(checked, lungs)]),
        }
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


def validation(frame: pd.DataFrame) -> dict:
    """What the limits were chosen by."""
    adults, children = frame[frame["source"] != CHILDREN], frame[frame["source"] == CHILDREN]
    films = as_read(adults)
    return {
        "adults": chosen_by(adults),
        "children": chosen_by(children),
        "no films, chest": no_films_odds(films + as_read(children)),
        "dice of films shrunk to px": shrunk(films, true_masks(adults)),
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
    return unlabelled(frame) | {"positions": positions(films), "taken otherwise": taken_otherwise(films)}


def unlabelled(frame: pd.DataFrame) -> dict:
    """Such films without a mask."""
    films = as_read(frame)
    return {"untouched": untouched(films, masks_of(films, LungSegmenter()))}


def spoilt(frame: pd.DataFrame) -> dict:
    """Pictures of no chest, some made of films."""
    return {"no films": no_films(as_read(frame))}


LIMITS = ("LEAST_SIDE", "LEAST_CONTRAST", "COLOURED", "CHEST", "DOUBTFUL", "SURE", "MIRRORED", "CUT", "UNUSUAL")
OF_ADULTS = "split == 'test' and source in ('montgomery', 'shenzhen')"
PARTS = {  # what is done, with which films
    "validation": (validation, "split == 'val' and source != 'jsrt'"),
    "test": (final, OF_ADULTS),
    "children": (final, "split == 'test' and source == 'kermany'"),
    "jsrt": (final, "source == 'jsrt'"),
    "unlabelled": (unlabelled, "split == 'unlabelled'"),
    "spoilt": (spoilt, OF_ADULTS),
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
