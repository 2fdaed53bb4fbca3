"""What averaging brings: networks that started from the same weights, as one network and as an ensemble.

    python -m kaggle_utils train … --init lungs --seed 0 --out runs/a     (and --seed 1 --out runs/b)
    python -m benchmarks.average --data segmentation --weights a=runs/a/best.safetensors b=runs/b/best.safetensors \
        --out runs/average/best.safetensors

Each network, the mean of their weights (Wortsman et al. 2022, "Model soups") and the mean of their probabilities are
scored on the validation films of the sets that they learned from, by each film's own head, as the films are and with
every artefact of :mod:`kaggle_utils.augment.artefacts`; without averaging with the mirrored film, Dice at 256 px.
What the ensemble gains is what soft labels of it could teach one network at most. Writes ``results/average.csv``, a row
per network, set and artefact, and the averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.artefacts import measured, network
from benchmarks.common import RESULTS, films_of, make_parser, write_table
from kaggle_utils.config import code_version
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import load_weights, read_header, save_weights


class Ensemble(LungSegmenter):
    """The first of several segmenters, but for the probabilities: their mean."""

    def __init__(self, members: Sequence[LungSegmenter]):
        vars(self).update(vars(members[0]))
        self.members = members

    def probabilities(self, films: list[np.ndarray], heads: Sequence[str] | None = None) -> np.ndarray:
        return np.mean([member.probabilities(films, heads) for member in self.members], axis=0)


def average_weights(paths: Sequence[str | Path], out: str | Path) -> None:
    """Writes the mean of several files' weights; of their headers, what is true of the mean.

    Args:
        paths: networks of one architecture and with the same heads, which started from the same weights: the mean of
            others is no network.
        out: where the mean is written.

    Raises:
        ValueError: they differ in architecture, heads or what they started from.
    """
    headers, models = [read_header(path) for path in paths], [load_weights(path) for path in paths]
    for name in ("architecture", "heads", "size", "init"):
        if any(header.get(name) != headers[0].get(name) for header in headers):
            raise ValueError(f"networks of one {name} can be averaged, not {[header.get(name) for header in headers]}")
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
    header = {name: value for name, value in headers[0].items() if name not in ("validation", "quality")}
    commands = [header["command"] for header in headers]
    header |= {"averaged": commands, "command": f"the mean of {' and '.join(commands)}", "commit": code_version()}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_weights(out, models[0], header)


def main() -> None:
    parser = make_parser(__doc__, data=True)
    parser.add_argument("--weights", nargs="+", type=network, metavar="NAME=PATH", required=True)
    parser.add_argument("--out", type=Path, required=True, help="file of the averaged weights")
    args = parser.parse_args()
    average_weights([path for _, path in args.weights], args.out)
    members = {name: LungSegmenter(path) for name, path in args.weights}
    networks = {**members, "weights averaged": LungSegmenter(args.out), "ensemble": Ensemble([*members.values()])}
    frame = films_of(args.data, "val", networks["ensemble"].header["sources"])
    rows = [measured(name, segmenter, frame, "val") for name, segmenter in networks.items()]
    write_table(RESULTS / "average.csv", pd.concat(rows))


if __name__ == "__main__":
    main()
