"""The published protocols: trained on these sets, tested on those, a row per film in ``results/protocols.csv``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..config import CONVENTIONS
from ..data import read_manifest
from ..files import LOCK, check_table, locked, write_bytes
from ..infer import LungSegmenter
from ..metrics import summarise
from ..predictions import evaluate
from ..splits import excluded_masks
from ..tables import read_csv, to_csv
from ..trainer import TrainConfig, train

PROTOCOLS = {  # name: the sets whose training lists are trained on; external films get the first one's head
    "all": ("montgomery", "shenzhen", "kermany"),
    "both": ("montgomery", "shenzhen"),
    "montgomery": ("montgomery",),
    "shenzhen": ("shenzhen",),
    "jsrt": ("jsrt",),
    "kermany": ("kermany",),
}
WHOLE = ("montgomery", "shenzhen", "jsrt")  # where external; Kermany's 4,192 films are tested by their list alone
GROUPS = ["trained_on", "source", "protocol", "size"]


def run_protocol(
    name: str,
    data: str | Path,
    out: str | Path,
    *,
    steps: int = 3000,
    config: TrainConfig | None = None,
    weights: str | Path | None = None,
    raw: str | Path | None = None,
    flip: bool = True,
    results: str | Path = "results",
) -> pd.DataFrame:
    """Trains on the training lists of some sets and tests on the test lists of all, and on the whole of external sets.

    The weights are chosen on the validation lists of the sets trained on; the test films are looked at once, after
    that.

    Args:
        name: of :data:`PROTOCOLS`.
        data: prepared set.
        out: folder of the run; a stopped one is resumed, a finished one is only tested.
        steps: optimiser steps, about: small sets are passed over more often, so that all protocols train alike. Counted
            with the bad masks that training leaves out: a few percent fewer where there are any.
        config: of the training, except for its sources and epochs. Several sets are drawn evenly if it has no shares.
        weights: of a network that was trained on the protocol's sets by other means, which is tested instead.
        raw: folder with the raw sets, to compare at each film's own size too.
        flip: average with the mirrored film.
        results: folder of ``protocols.csv`` and ``protocols_summary.csv``, in which this protocol's rows are replaced.

    Raises:
        ValueError: no such protocol, weights of other sets, or a table in ``results`` is another's.

    Returns:
        The protocol's summary: n, Dice with sd, interval and worst, HD95, ASSD for each test set and size (256 px as
        the published tables, 1024 px for Hausdorff distances as HybridGNet's, 0 for the films' own). Of Shenzhen's test
        list also the ``clean`` part, without :func:`splits.excluded_masks`. ``convention`` says where a set's masks
        follow another one than the network; ``trained_by`` and ``commit`` are of the weights' header.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}, not {name!r}")
    tables = [Path(results) / file for file in ("protocols.csv", "protocols_summary.csv")]
    for table, columns in zip(tables, (["trained_on", "name", *GROUPS[1:]], GROUPS)):
        check_table(table, columns)  # now, and not after hours
    if weights is None:
        _train(name, data, out, steps, config or TrainConfig())
        weights = Path(out) / "best.safetensors"
    segmenter = LungSegmenter(weights, flip=flip)
    sources = tuple(segmenter.header["sources"])
    if sources != PROTOCOLS[name]:
        raise ValueError(f"{weights}: trained on {', '.join(sources)}, {name} is on {', '.join(PROTOCOLS[name])}")
    scores = evaluate(data, segmenter, sizes=(256, 1024), raw=raw, whole=WHOLE)
    scores.insert(0, "trained_on", name)
    scores, header = scores.round(5), segmenter.header
    summary = _summarise(scores).assign(trained_by=header.get("command", ""), commit=header.get("commit", ""))
    with locked(Path(results) / f".protocols{LOCK}", results, wait=True):  # which other protocols' runs share
        _replace(tables[0], scores, [*GROUPS, "name"])
        _replace(tables[1], summary, GROUPS)
    return summary


def _train(name: str, data: str | Path, out: str | Path, steps: int, config: TrainConfig) -> None:
    sources = PROTOCOLS[name]
    shares = config.shares or (1.0,) * len(sources) * (len(sources) > 1)
    frame = read_manifest(data)
    films = int((frame["source"].isin(sources) & (frame["split"] == "train")).sum())
    films = max(1, min(films, config.epoch_films or films))
    epochs = max(1, round(steps * config.batch_size / films))
    train(data, out, replace(config, sources=sources, shares=shares, epochs=epochs), resume=True)


def _replace(path: Path, rows: pd.DataFrame, order: list[str]) -> None:
    """Exchanges this protocol's rows of a file for new ones, in a stable order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = read_csv(path) if path.exists() else rows.head(0)
    table = pd.concat([old[~old["trained_on"].isin(rows["trained_on"])], rows])
    write_bytes(path, to_csv(table.sort_values(order)))


def _summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per group of films, Shenzhen's clean test list among them."""
    clean = scores[(scores["source"] == "shenzhen") & (scores["protocol"] == "test")]
    clean = clean[~clean["name"].isin(excluded_masks()["name"])].assign(protocol="clean")
    summary = summarise(pd.concat([scores, clean]).sort_values([*GROUPS, "name"]), GROUPS).round(5)
    gaps = [
        other_convention(trained_on, source) for trained_on, source in zip(summary["trained_on"], summary["source"])
    ]
    return summary.assign(convention=gaps)


def other_convention(trained_on: str, source: str) -> str:
    """The network's convention and that of a set's masks where they differ, which costs Dice and is no fault."""
    sources = PROTOCOLS[trained_on]
    learned = CONVENTIONS[source if source in sources else sources[0]]
    drawn = CONVENTIONS.get(source, learned)
    return "" if learned == drawn else f"{learned} for {drawn}"
