"""What gas, devices, text, blinds, noise, blur and hard windows cost: Dice with each artefact drawn into the films.

    python -m benchmarks.artefacts --data segmentation
    python -m benchmarks.artefacts --data segmentation --split val --weights light=runs/a/best.safetensors gas=…

Each network is scored on the films of the sets that it was trained on, by its own heads, as they are and with every
artefact of :mod:`kaggle_utils.augment.artefacts`, the same for all networks; without averaging with the mirrored film,
Dice at 256 px. Writes ``results/artefacts.csv``, a row per network, split, set and artefact; other networks' rows stay.
"""

from __future__ import annotations

import argparse

import pandas as pd
from tqdm import tqdm

from benchmarks.common import RESULTS, films_of, make_parser, write_table
from benchmarks.robustness import training
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter
from kaggle_utils.tuning.artefacts import SCORES, artefact_scores, summarise_artefacts

TABLE = RESULTS / "artefacts.csv"
KEY = ["network", "split"]
COLUMNS = [*KEY, "source", "artefact", *SCORES, "trained_by"]


def measured(name: str, segmenter: LungSegmenter, frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """A network's rows of the table, of the films of a split."""
    found = summarise_artefacts(artefact_scores(frame, segmenter))
    return found.assign(network=name, split=split, trained_by=training(segmenter))[COLUMNS]


def together(new: pd.DataFrame) -> pd.DataFrame:
    """The table with new rows in the place of the same networks' and splits'."""
    old = pd.read_csv(TABLE) if TABLE.exists() else new.head(0)
    again = old.set_index(KEY).index.isin(new.set_index(KEY).index)
    return pd.concat([old[~again], new], ignore_index=True)


def network(text: str) -> tuple[str, str]:
    """``NAME=PATH`` of the command line."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument(
        "--weights",
        nargs="+",
        type=network,
        metavar="NAME=PATH",
        default=[("shipped", DEFAULT_WEIGHTS)],
        help="networks by the names that they get in the table; the shipped one if not given",
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    args = parser.parse_args()
    segmenters = {name: LungSegmenter(path) for name, path in args.weights}
    rows = []
    for name, segmenter in tqdm(segmenters.items(), desc="networks", disable=None):
        frame = films_of(args.data, args.split, segmenter.header["sources"])
        rows.append(measured(name, segmenter, frame, args.split))
    write_table(TABLE, together(pd.concat(rows)))


if __name__ == "__main__":
    main()
