"""The published protocols: trained on these sets, tested on those, a row per film in ``results/protocols.csv``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..data import read_manifest
from ..files import LOCK, check_table, locked, write_bytes
from ..infer import LungSegmenter
from ..metrics import summarise
from ..predictions import evaluate
from ..tables import read_csv, to_csv
from ..trainer import TrainConfig, train

PROTOCOLS = {  # name: the sets whose training lists are trained on
    "both": ("montgomery", "shenzhen"),
    "montgomery": ("montgomery",),
    "shenzhen": ("shenzhen",),
    "jsrt": ("jsrt",),
}
GROUPS = ["trained_on", "source", "protocol", "size"]


def run_protocol(
    name: str,
    data: str | Path,
    out: str | Path,
    *,
    steps: int = 3000,
    config: TrainConfig | None = None,
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
        config: of the training, except for its sources and epochs.
        raw: folder with the raw sets, to compare at each film's own size too.
        flip: average with the mirrored film.
        results: folder of ``protocols.csv`` and ``protocols_summary.csv``, in which this protocol's rows are replaced.

    Raises:
        ValueError: no such protocol, or a table in ``results`` is another's.

    Returns:
        The protocol's summary: n, Dice with sd, interval and worst, HD95, ASSD for each test set and size (256 px as
        the published tables, 1024 px for Hausdorff distances as HybridGNet's, 0 for the films' own).
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}, not {name!r}")
    tables = [Path(results) / file for file in ("protocols.csv", "protocols_summary.csv")]
    for table, columns in zip(tables, (["trained_on", "name", *GROUPS[1:]], GROUPS)):
        check_table(table, columns)  # now, and not after hours
    config = replace(config or TrainConfig(), sources=PROTOCOLS[name])
    frame = read_manifest(data)
    films = int((frame["source"].isin(config.sources) & (frame["split"] == "train")).sum())
    train(data, out, replace(config, epochs=max(1, round(steps * config.batch_size / max(films, 1)))), resume=True)
    segmenter = LungSegmenter(Path(out) / "best.safetensors", flip=flip)
    scores = evaluate(data, segmenter, sizes=(256, 1024), raw=raw)
    scores.insert(0, "trained_on", name)
    with locked(Path(results) / f".protocols{LOCK}", results, wait=True):  # which other protocols' runs share
        scores = _replace(tables[0], scores.round(5))
        summary = summarise(scores, GROUPS).round(5)
        write_bytes(tables[1], to_csv(summary))
    return summary[summary["trained_on"] == name]


def _replace(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The file's rows with those of this protocol exchanged for new ones, in a stable order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = read_csv(path) if path.exists() else rows.head(0)
    table = pd.concat([old[~old["trained_on"].isin(rows["trained_on"])], rows], ignore_index=True)
    table = table.sort_values([*GROUPS, "name"], ignore_index=True)
    write_bytes(path, to_csv(table))
    return table
