"""How Dice falls as films get worse: the shipped weights beside those shipped before, of adults and ``light`` alone.

    mkdir runs/before && git show 3a9f4dc:kaggle_utils/weights/lungs.safetensors > runs/before/best.safetensors
    python -m benchmarks.robustness --data segmentation --weights runs/before/best.safetensors

Ten kinds of damage of five strengths (:mod:`kaggle_utils.quality.damages`) on the test lists of the sets that all
networks were trained on; each film by its own set's head, without averaging with the mirrored film, Dice at 256 px.
Nothing is chosen by this table. The networks see the films as damaged: ``predict`` would recognise most
negatives and turn them over first, see ``image.is_inverted``. Writes ``results/robustness.csv``, a row per network,
set, damage and strength.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, films_of, make_parser
from kaggle_utils.config import TrainConfig
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.quality.damages import DAMAGES, STRENGTHS, damaged
from kaggle_utils.tuning.artefacts import changed_scores, summarise_changes

SETTINGS = [("none", 0), *((kind, strength) for kind in DAMAGES for strength in STRENGTHS)]


def scores(
    frame: pd.DataFrame, segmenters: dict[str, LungSegmenter], settings: list[tuple[str, int]] = SETTINGS
) -> pd.DataFrame:
    """Dice of each film by each network after each damage: name, source, network, damage, strength, dice.

    Args:
        frame: rows of ``read_manifest``.
        segmenters: by the names that the networks get in the table.
        settings: kinds and strengths.
    """
    changes = {(kind, strength): partial(damaged, kind=kind, strength=strength) for kind, strength in settings}
    tables = []
    for network, segmenter in segmenters.items():
        table = changed_scores(frame, segmenter, changes, "damaged")
        table[["damage", "strength"]] = table.pop("damaged").tolist()
        tables.append(table.assign(network=network))
    return pd.concat(tables)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Films together, see ``summarise_changes``, with what each strength is."""
    found = summarise_changes(table, ["network", "source", "damage", "strength"])
    values = [DAMAGES[row.damage].values[row.strength - 1] if row.strength else None for row in found.itertuples()]
    found.insert(4, "value", values)
    found.insert(5, "unit", [DAMAGES[kind].unit if kind in DAMAGES else "" for kind in found["damage"]])
    return found


def shared_sources(segmenters: Iterable[LungSegmenter]) -> list[str]:
    """The sets that all networks were trained on."""
    return sorted(set.intersection(*(set(segmenter.header["sources"]) for segmenter in segmenters)))


def training(segmenter: LungSegmenter) -> str:
    """How a network was trained, as its weights' header says."""
    if "averaged" in segmenter.header:
        return segmenter.header["command"]
    config = segmenter.header.get("config")
    return TrainConfig.from_dict(config).command if config else "not said in its header"


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("--weights", nargs="*", default=[], help="files of other networks, named by their folders")
    parser.add_argument("--films", type=int, help="only so many per set, and no file: does it work at all?")
    args = parser.parse_args()
    segmenters = {"shipped": LungSegmenter()} | {Path(path).parent.name: LungSegmenter(path) for path in args.weights}
    frame = films_of(args.data, "test", shared_sources(segmenters.values()))
    if args.films:
        frame = frame.groupby("source").head(args.films)
    table = summarise(scores(frame, segmenters))
    table["trained_by"] = table["network"].map({name: training(segmenter) for name, segmenter in segmenters.items()})
    if not args.films:
        table.to_csv(RESULTS / "robustness.csv", index=False)
    shown = table.pivot_table(index=["damage", "strength"], columns=["network", "source"], values="dice", sort=False)
    print(shown.to_string())


if __name__ == "__main__":
    main()
